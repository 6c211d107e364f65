"""Find the files of each capture in a folder of raw captures.

    pairs, rejects = find_pairs(folder)  # CapturePair(stem, rgb, xyz, grooves), RejectedFile

The layout of a new camera is one function in `LAYOUTS`; nothing else needs to be changed.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from depthdist.captures.formats.registry import BY_SUFFIX
from depthdist.core.errors import BadFile

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm", ".mpo"}
IMAGE_FOLDERS = ("images", "rgb", "color")
POINT_FOLDERS = ("depth", "xyz")  # beside them
GROOVE_LABEL_ENDING = "_grooves.png"  # X_grooves.png beside X_color.png or X.png
EXPECTED = (
    "expected images/X_color.png + depth/X_rawDepth.npy in two folders, or name.png + name.npy side"
    " by side"
)

Kind = Literal["rgb", "xyz", "grooves"]
UNPAIRED = {
    "rgb": "a picture without its point cloud",
    "xyz": "a point cloud without its picture",
    "grooves": "a groove label without its capture",
}


class CapturePair(NamedTuple):
    """The files of one capture.

    `stem` names it: relative to the root, `/` between folders, unique under the root.
    """

    stem: str
    rgb: Path
    xyz: Path
    grooves: Path | None = None
    camera: Path | None = None

    @property
    def files(self) -> dict[str, Path]:
        """The existing files by kind; `rgb` and `xyz` are the same where one file holds both."""
        return {kind: path for kind, path in zip(self._fields[1:], self[1:]) if path}


class RejectedFile(NamedTuple):
    """A file that no sample is made from, and why."""

    path: Path
    reason: str


# ------------------------------------------------------------------------------------------ layouts


def _kind(path: PurePosixPath) -> Kind | None:
    """Return what a file is by its name, None where it is none of a capture's."""
    if path.name.lower().endswith(GROOVE_LABEL_ENDING):
        return "grooves"
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return "rgb"
    return "xyz" if suffix in BY_SUFFIX else None


def _without_camera_suffix(name: str) -> str:
    """Return `name` without what camera software appends: X_color, X_rawDepth -> X."""
    bare = re.sub(r"_(colou?r|rgb|rawdepth|depth|xyz|grooves)$", "", name, flags=re.IGNORECASE)
    return bare or name


def two_folders(path: PurePosixPath) -> tuple[Kind, str] | None:
    """images/X_color.png + depth/X_rawDepth.npy: two sibling folders."""
    kind = _kind(path)
    folders = POINT_FOLDERS if kind == "xyz" else IMAGE_FOLDERS
    if kind is None or path.parent.name.lower() not in folders:
        return None
    return kind, str(path.parent.parent / _without_camera_suffix(path.stem))


def same_name(path: PurePosixPath) -> tuple[Kind, str] | None:
    """name.png + name.npy: side by side."""
    kind = _kind(path)
    if kind is None:
        return None
    ending = GROOVE_LABEL_ENDING if kind == "grooves" else path.suffix
    return kind, str(path)[: -len(ending)]


def same_folder(path: PurePosixPath) -> tuple[Kind, str] | None:
    """X_color.png + X_rawDepth.npy: side by side with the camera's suffixes."""
    kind = _kind(path)
    return kind and (kind, str(path.parent / _without_camera_suffix(path.stem)))


# A layout returns a file's kind and its capture's stem, or None where the file is not of that
# layout. The first one that finds both an image and a point map of a capture is used.
Layout = Callable[[PurePosixPath], "tuple[Kind, str] | None"]
LAYOUTS: tuple[Layout, ...] = (two_folders, same_name, same_folder)


# ------------------------------------------------------------------------------------------- search


class _Group(NamedTuple):
    """Files that share a stem in one layout."""

    rgb: list[PurePosixPath]
    xyz: list[PurePosixPath]
    grooves: list[PurePosixPath]


def find_pairs(root: Path | str) -> tuple[list[CapturePair], list[RejectedFile]]:
    """Return all pairs under `root`, sorted by stem, and the files without exactly one counterpart.

    Hidden files and folders, and folders called `truth`, are skipped; links to folders are followed
    once. Raise BadFile when `root` is no folder, or contains neither images nor point maps.
    """
    root = Path(root)
    if not root.is_dir():
        problem = "is a file" if root.exists() else "no such folder"
        raise BadFile(root, f"{problem}; expected a folder of captures")
    found = sorted(_walk(root))
    if not found:
        raise BadFile(root, f"no pictures and no .npy files; {EXPECTED}")
    return _pair_files(root, found)


def find_pair(path: Path | str) -> CapturePair:
    """Return the capture that a file is part of, as `find_pairs` would in the folder around it.

    Only that folder and those of the two-folder layout beside it are listed. Raise BadFile where
    the files there are no capture with this one in it.
    """
    path = Path(path).absolute()
    folders = {path.parent}
    root = path.parent
    siblings = (*IMAGE_FOLDERS, *POINT_FOLDERS)
    if root.name.lower() in siblings:
        root = root.parent
        folders |= {p for p in root.iterdir() if p.name.lower() in siblings and p.is_dir()}
    found = [
        PurePosixPath(file.relative_to(root).as_posix())
        for folder in folders
        for file in folder.iterdir()
        if not file.name.startswith(".") and _kind(PurePosixPath(file))
    ]
    pairs, rejects = _pair_files(root, sorted(found))
    for pair in pairs:
        if path in pair.files.values():
            return pair
    reasons = [reject.reason for reject in rejects if reject.path == path]
    raise BadFile(path, reasons[0] if reasons else f"is no part of one capture; {EXPECTED}")


def _pair_files(
    root: Path, found: list[PurePosixPath]
) -> tuple[list[CapturePair], list[RejectedFile]]:
    """Return the pairs among sorted files, relative to `root`, as `find_pairs` does."""
    left = [path for path in found if str(path).isprintable()]
    rejects = [
        RejectedFile(root / path, "the name holds characters that cannot be printed; rename it")
        for path in found
        if not str(path).isprintable()
    ]
    pairs: dict[str, CapturePair] = {}
    for layout in LAYOUTS:
        paired: set[PurePosixPath] = set()
        for stem, group in _group_by_stem(layout, left).items():
            if not group.rgb or not group.xyz:
                continue  # another layout may find the counterpart
            paired.update(*group)
            pair = _first_of_each(root, stem, group)
            reason = _ambiguity(stem, group) or _collision(stem, pairs)
            if reason:
                rejects.append(RejectedFile(pair.rgb, reason))
            else:
                pairs[stem] = pair
        left = [path for path in left if path not in paired]
    rejects += [_unpaired(root, path) for path in left]
    return sorted(pairs.values()), sorted(rejects)


def _group_by_stem(layout: Layout, paths: Iterable[PurePosixPath]) -> dict[str, _Group]:
    """Return the files of one layout by the stem of their capture."""
    groups: dict[str, _Group] = defaultdict(lambda: _Group([], [], []))
    for path in paths:
        match = layout(path)
        if match:
            kind, stem = match
            getattr(groups[stem], kind).append(path)
    return groups


def _first_of_each(root: Path, stem: str, group: _Group) -> CapturePair:
    grooves = root / group.grooves[0] if group.grooves else None
    return CapturePair(stem, root / group.rgb[0], root / group.xyz[0], grooves)


def _ambiguity(stem: str, group: _Group) -> str | None:
    """Return the reason to reject a group that has more than one file of a kind."""
    images, clouds, labels = group
    if max(map(len, group)) == 1:
        return None
    names = ", ".join(str(path) for path in (*images, *clouds, *labels[1:]))
    extra_labels = f", {len(labels)} groove labels" if len(labels) > 1 else ""
    return (
        f"{len(images)} pictures{extra_labels} and {len(clouds)} point clouds share the stem {stem}"
        f" ({names}); expected one of each"
    )


def _collision(stem: str, pairs: dict[str, CapturePair]) -> str | None:
    """Return the reason to reject a pair whose stem an earlier layout has used."""
    if stem not in pairs:
        return None
    return f"the stem {stem} is taken by {pairs[stem].rgb}; rename one of them"


def _unpaired(root: Path, path: PurePosixPath) -> RejectedFile:
    kind = _kind(path)
    assert kind is not None, "_walk returns only files of a known kind"
    return RejectedFile(root / path, f"{UNPAIRED[kind]}; {EXPECTED}")


def _walk(root: Path) -> list[PurePosixPath]:
    """Return the images, point maps and labels under `root`, relative to it."""

    def stop(err: OSError) -> None:
        raise BadFile(Path(err.filename), f"cannot be listed: {err.strerror}")

    files: list[PurePosixPath] = []
    visited = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=stop):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:  # a link to a parent
            subfolders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(n for n in subfolders if not n.startswith(".") and n != "truth")
        relative = PurePosixPath(Path(folder).relative_to(root).as_posix())
        files += [
            relative / name
            for name in names
            if not name.startswith(".") and _kind(PurePosixPath(name))
        ]
    return files


def is_image(path: Path) -> bool:
    """Return whether a file is an image by its name: no point map, no groove label."""
    return _kind(PurePosixPath(path)) == "rgb"


def list_images(path: Path) -> list[Path]:
    """Return the image `path`, or every image under the folder `path`; raise BadFile if none."""
    if not path.exists():
        raise BadFile(path, "no such file or folder; expected pictures, or folders of them")
    if path.is_file():
        return [path]
    found = sorted(path / name for name in _walk(path) if is_image(path / name))
    if not found:
        raise BadFile(path, f"no pictures; expected {', '.join(sorted(IMAGE_SUFFIXES))}")
    return found


def find_point_maps(images: list[Path]) -> dict[Path, Path]:
    """Return the point map of each image that has exactly one."""
    parents = {image: image.absolute().parent for image in images}
    folders = set()
    for parent in parents.values():
        folders |= {parent, parent.parent / "depth", parent.parent / "xyz"}
    clouds = [
        path
        for folder in sorted(folders)
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if _kind(PurePosixPath(path)) == "xyz"
    ]
    found: dict[Path, Path] = {}
    for layout in LAYOUTS:
        groups = _group_by_stem(layout, map(PurePosixPath, clouds))
        for image, parent in parents.items():
            match = layout(PurePosixPath(parent / image.name))
            if image in found or not match or match[1] not in groups:
                continue
            candidates = groups[match[1]].xyz
            if len(candidates) == 1:
                found[image] = Path(candidates[0])
    return found
