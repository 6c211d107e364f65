"""Find the files of each capture in a folder of raw captures.

    pairs, rejects = find_pairs(folder)  # CapturePair(stem, rgb, xyz, ...), RejectedFile
    found = search_folder(folder)  # .pairs, .rejects, and .notes: lines for people

The layout of a new camera is one function in `LAYOUTS`; nothing else needs to be changed.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import NamedTuple

from depthdist.captures.camera_files import CameraFiles, read_intrinsics
from depthdist.captures.formats.depth_image import DEPTH_IMAGE, TIFF_SUFFIXES
from depthdist.captures.formats.registry import BY_SUFFIX, format_of
from depthdist.captures.found_files import (
    DEPTH_FOLDERS,
    IMAGE_FOLDERS,
    IMAGE_SUFFIXES,
    TABLE_SUFFIXES,
    Listing,
    as_listing,
    kind_of,
    lies_below,
    list_folder,
    plain,
    says_depth,
)
from depthdist.captures.layout_results import (
    Group,
    Layout,
    count_of,
)
from depthdist.captures.layouts_by_name import (
    by_number,
    by_time,
    colored_points,
    same_folder,
    same_name,
    two_folders,
    words_apart,
)
from depthdist.captures.layouts_by_table import tum_sequence, ultralytics_folder
from depthdist.captures.path_text import sort_paths, suffix_of
from depthdist.core.errors import BadFile

EXPECTED = (
    "expected images/X_color.png + depth/X_rawDepth.npy in two folders, or name.png + name.npy side"
    " by side"
)
UNPAIRED = {
    "rgb": "a picture without its point cloud",
    "xyz": "a point cloud without its picture",
    "grooves": "a groove label without its capture",
}

FOLDERS_THAT_COUNT = 3  # above a single file, for what it is by their names
LAYOUTS: tuple[Layout, ...] = (
    ultralytics_folder,
    tum_sequence,
    two_folders,
    same_name,
    same_folder,
    words_apart,
    by_time,
    by_number,
    colored_points,
)
"""A layout groups the files that are not yet part of a capture; the first one that finds both an
image and points of a capture is used. One that guesses stands behind those that know."""


class CapturePair(NamedTuple):
    """The files of one capture.

    stem         names it: relative to the root, `/` between folders, unique under the root
    root         the folder that the names of its files are relative to
    rgb_name     its image; the same as `xyz_name` where one file holds both
    camera_name  the file of the intrinsics, of depth without X and Y
    unit_mm      millimetres per unit of the points, where the layout says it
    split        "train", "val" or "test", where the layout says it

    Names are text, and paths are made when they are asked for: of a million captures they would
    take most of the time and memory of a search.
    """

    stem: str
    root: str
    rgb_name: str
    xyz_name: str
    grooves_name: str | None = None
    camera_name: str | None = None
    unit_mm: float | None = None
    split: str | None = None

    @property
    def rgb(self) -> Path:
        """The file of the image."""
        return Path(self.root, self.rgb_name)

    @property
    def xyz(self) -> Path:
        """The file of the points or depth."""
        return Path(self.root, self.xyz_name)

    @property
    def grooves(self) -> Path | None:
        """The file of the groove label."""
        return Path(self.root, self.grooves_name) if self.grooves_name else None

    @property
    def camera(self) -> Path | None:
        """The file of the intrinsics."""
        return Path(self.root, self.camera_name) if self.camera_name else None

    @property
    def names(self) -> list[str]:
        """The names of its files: image, points, groove label, camera, each file once."""
        names = (self.rgb_name, self.xyz_name, self.grooves_name, self.camera_name)
        return [*dict.fromkeys(name for name in names if name)]

    @property
    def files(self) -> dict[str, Path]:
        """The existing files by kind; `rgb` and `xyz` are the same where one file holds both."""
        kinds = ("rgb", "xyz", "grooves", "camera")
        return {kind: path for kind in kinds if (path := getattr(self, kind))}


class RejectedFile(NamedTuple):
    """A file that no sample is made from, and why; `files` are all that the reason is of."""

    path: Path
    reason: str
    files: tuple[Path, ...] = ()


class FoundCaptures(NamedTuple):
    """The captures of a folder, sorted by stem; files that are none; what was decided, in lines."""

    pairs: list[CapturePair]
    rejects: list[RejectedFile]
    notes: list[str]


def find_pairs(root: Path | str) -> tuple[list[CapturePair], list[RejectedFile]]:
    """Return all pairs under `root`, and the files without exactly one counterpart.

    See `search_folder`, also for what it raises.
    """
    found = search_folder(root)
    return found.pairs, found.rejects


def search_folder(root: Path | str) -> FoundCaptures:
    """Return the captures under `root`.

    Hidden files and folders, and folders called `truth`, are skipped; links to folders are followed
    once. Raise BadFile when `root` is no folder, or contains neither images nor point maps.
    """
    root = Path(root)
    if not root.is_dir():
        problem = "is a file" if root.exists() else "no such folder"
        hint = " (of a YAML the folder that its `path` names)" * (root.suffix in (".yaml", ".yml"))
        raise BadFile(root, f"{problem}; expected a folder of captures{hint}")
    listing = list_folder(root)
    if not listing.kinds:
        raise BadFile(root, f"no pictures and no files of points or depth; {EXPECTED}")
    unprintable = [path for path in listing.kinds if not path.isprintable()]
    rejects = [
        RejectedFile(root / path, "the name holds characters that cannot be printed; rename it")
        for path in unprintable
    ]
    listing = listing.without(unprintable)
    pairs: dict[str, CapturePair] = {}
    notes: list[str] = []
    if listing.results:
        notes.append(f"left out: {count_of(listing.results, 'file')} that depthdist predicted")
    place = str(root)
    for layout in LAYOUTS:
        result = layout(listing)
        notes += result.notes
        used = [*result.left_out]
        groups = deque(result.groups)
        del result  # of a million captures each group goes as its pair comes
        while groups:
            group = groups.popleft()
            used += group.rgb
            used += group.xyz
            used += group.grooves
            pair = _first_of_each(place, group)
            reason = _ambiguity(group) or _collision(pair.stem, pairs)
            if reason:
                files = (*group.rgb, *group.xyz, *group.grooves)
                rejects.append(RejectedFile(pair.rgb, reason, tuple(root / path for path in files)))
            else:
                pairs[pair.stem] = pair
        listing = listing.without(used)._replace(stems=frozenset(pairs))
        del used
    drawings = [path for path in listing.of_kind("rgb") if _is_drawing(path)]
    if drawings and pairs:
        notes.append(f"left out: {count_of(drawings, 'drawing')} of depth, of 8 bits a channel")
        listing = listing.without(drawings)
    rejects += [_unpaired(root, path, kind) for path, kind in listing.kinds.items()]
    with_cameras, camera_notes = _find_cameras(listing, sorted(pairs.values()))
    return FoundCaptures(with_cameras, sorted(rejects), notes + camera_notes)


def _first_of_each(root: str, group: Group) -> CapturePair:
    return CapturePair(
        group.stem,
        root,
        group.rgb[0],
        group.xyz[0],
        group.grooves[0] if group.grooves else None,
        None,
        group.unit_mm,
        group.split,
    )


def _ambiguity(group: Group) -> str | None:
    """Return the reason to reject a group that has more than one file of a kind."""
    images, clouds, labels = group.rgb, group.xyz, group.grooves
    if len(images) == len(clouds) == 1 and len(labels) < 2:
        return None
    names = ", ".join((*images, *clouds, *labels[1:]))
    extra_labels = f", {len(labels)} groove labels" if len(labels) > 1 else ""
    return (
        f"{len(images)} pictures{extra_labels} and {len(clouds)} point clouds share the stem"
        f" {group.stem} ({names}); expected one of each"
    )


def _collision(stem: str, pairs: dict[str, CapturePair]) -> str | None:
    """Return the reason to reject a pair whose stem an earlier layout has used."""
    if stem not in pairs:
        return None
    return f"the stem {stem} is taken by {pairs[stem].rgb}; rename one of them"


def _is_drawing(path: str) -> bool:
    """Return whether an image is a drawing of depth, by its name, when its header is none's."""
    return suffix_of(path).lower() in DEPTH_IMAGE.suffixes and says_depth(path)


def _unpaired(root: Path, path: str, kind: str) -> RejectedFile:
    return RejectedFile(root / path, f"{UNPAIRED[kind]}; {EXPECTED}")


# ------------------------------------------------------------------------------------------ cameras


def _find_cameras(
    listing: Listing, pairs: list[CapturePair]
) -> tuple[list[CapturePair], list[str]]:
    """Return the pairs with the files of their cameras, and which files cannot be used and why."""
    problems: dict[str, str] = {}
    usable: set[str] = set()
    found = []
    cameras = CameraFiles(listing)
    for pair in pairs:
        name = cameras.find(pair.xyz_name)
        if name is not None and name not in problems and format_of(pair.xyz).is_depth(pair.xyz):
            if name not in usable:
                try:
                    read_intrinsics(listing.root / name)
                    usable.add(name)
                except BadFile as err:
                    problems[name] = f"WARNING   {err}; it is not used"
                    found.append(pair)
                    continue
            pair = pair._replace(camera_name=name)
        found.append(pair)
    return found, list(problems.values())


# ------------------------------------------------------------------------------- images to predict


def is_image(path: Path) -> bool:
    """Return whether a file is an image: no points, no depth image, no groove label."""
    parts = path.absolute().parts
    above = max(1, len(parts) - 1 - FOLDERS_THAT_COUNT)
    return kind_of(Path(*parts[:above]), "/".join(parts[above:])) == "rgb"


def holds_image(path: Path) -> bool:
    """Return whether a file is an image, or holds colored points."""
    form = BY_SUFFIX.get(path.suffix.lower())
    return is_image(path) or (form is not None and form.has_rgb)


def list_images(path: Path) -> list[Path]:
    """Return the image `path`, or every image under the folder `path`; raise BadFile if none.

    Files of colored points with no image beside them are images, depth images are none.
    """
    if not path.exists():
        raise BadFile(path, "no such file or folder; expected pictures, or folders of them")
    if path.is_file():
        return [path]
    listing = list_folder(path)
    images = set(listing.of_kind("rgb"))
    if any(lies_below(image, IMAGE_FOLDERS) for image in images):
        images = {image for image in images if not lies_below(image, DEPTH_FOLDERS)}
    clouds = {cloud: suffix_of(cloud).lower() for cloud in listing.of_kind("xyz")}
    floats = {p for p, suffix in clouds.items() if suffix in TIFF_SUFFIXES and not says_depth(p)}
    if floats or any(BY_SUFFIX[suffix].has_rgb for suffix in clouds.values()):
        pairs = search_folder(path).pairs
        images |= {pair.rgb_name for pair in pairs}
        # a TIFF of floats that is nobody's depth: who reads it says that it is no image
        images |= floats - {pair.xyz_name for pair in pairs}
    if not images:
        found = (
            "no images beside results of earlier predictions" if listing.results else "no pictures"
        )
        raise BadFile(path, f"{found}; expected {', '.join(sorted(IMAGE_SUFFIXES))}")
    return [path / image for image in sort_paths(images)]


def find_captures(images: list[Path]) -> dict[Path, CapturePair]:
    """Return the capture of each image that has exactly one file of points, or holds points.

    Looked for beside the image, and in the depth folders beside its folder of images.
    """
    parents = {image: image.absolute().parent for image in images}
    found: dict[Path, CapturePair] = {}
    for parent in dict.fromkeys(parents.values()):
        pairs = {pair.rgb: pair for pair in _captures_around(parent, IMAGE_FOLDERS, DEPTH_FOLDERS)}
        for image in images:
            pair = pairs.get(parent / image.name) if parents[image] == parent else None
            if pair is not None:
                found[image] = pair
    return found


def find_captures_with(points: Path) -> list[CapturePair]:
    """Return the captures of a file of points or depth, one for each image that may be its."""
    absolute = points.absolute()
    pairs = _captures_around(absolute.parent, DEPTH_FOLDERS, IMAGE_FOLDERS)
    return [pair for pair in pairs if pair.xyz == absolute]


def _captures_around(folder: Path, own: frozenset[str], other: frozenset[str]) -> list[CapturePair]:
    """Return the captures of files in a folder, and in the other folders beside it.

    own, other  plain names of folders of images and of points; several images may have the same
                points
    """
    listing = _list_around(folder, own, other)
    everything = listing
    pairs = []
    for layout in LAYOUTS:
        result = layout(listing)
        used = [*result.left_out]
        for group in result.groups:
            used += [*group.rgb, *group.xyz, *group.grooves]
            for image in group.rgb if len(group.xyz) == 1 else ():
                pairs.append(_first_of_each(str(listing.root), group._replace(rgb=[image])))
        listing = listing.without(used)
    return _find_cameras(everything, pairs)[0]


def _list_around(folder: Path, own: frozenset[str], other: frozenset[str]) -> Listing:
    """Return the files in a folder, and in the others beside it, not below them."""
    parts = folder.parts
    places = [i for i in range(1, len(parts)) if plain(parts[i]) in own]
    root = folder
    folders = {folder}
    if places:
        root = Path(*parts[: places[-1]])
        rest = parts[places[-1] + 1 :]
        beside = [path.joinpath(*rest) for path in _entries(root) if plain(path.name) in other]
        folders |= {root, *beside}
    files = {path for place in folders for path in _entries(place) if path.is_file()}
    # a camera's file may lie one folder higher
    files |= {path for path in _entries(root.parent) if path.suffix.lower() in TABLE_SUFFIXES}
    names = [
        path.relative_to(root.parent).as_posix() for path in files if not path.name.startswith(".")
    ]
    return as_listing(root.parent, names)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
