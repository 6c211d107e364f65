"""Layouts in which the names of files and folders say what belongs together."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import lru_cache

from depthdist.captures.formats.registry import BY_SUFFIX
from depthdist.captures.found_files import (
    DEPTH_FOLDERS,
    GROOVE_LABEL_ENDING,
    IMAGE_FOLDERS,
    NUM_FOLDERS,
    Kind,
    Listing,
    last_named_folder,
    lies_below,
    plain,
    without_part,
)
from depthdist.captures.layout_results import (
    Group,
    LayoutResult,
    beside_points,
    group_by_stem,
    of_first_format,
)
from depthdist.captures.path_text import folder_of, join, name_of, stem_of, suffix_of
from depthdist.captures.time_association import Timed, associate, count_alone, time_in_name

WORDS = re.compile(
    r"(?:(?<=[\W_])|^)"
    r"(?:sync_depth|raw_?depth|aligned_depth(?:_to_color)?|depth|colou?r|rgb|xyz|image|img|grooves)"
    r"(?=$|[\W_\d])",
    re.IGNORECASE,
)
CAMERA_SUFFIX = re.compile(r"_(colou?r|rgb|rawdepth|depth|xyz|grooves)$", re.IGNORECASE)
ALIGNED = re.compile("align|regist|sync")  # in plain names of folders of depth


def two_folders(listing: Listing) -> LayoutResult:
    """images/X_color.png + depth/X_rawDepth.npy: two sibling folders.

    Of depth/ and aligned_depth/ this and all later layouts have the aligned one.
    """
    unaligned, notes = _beside_aligned(listing)

    def stem(path: str, kind: Kind) -> str | None:
        above = _above_side(folder_of(path), kind == "xyz")
        return None if above is None else join(above, _without_camera_suffix(stem_of(path)))

    found = group_by_stem(stem, listing.without(unaligned))
    return LayoutResult(found.groups, [*unaligned, *found.left_out], [*notes, *found.notes])


@lru_cache(NUM_FOLDERS)
def _above_side(folder: str, of_points: bool) -> str | None:
    """Return the folder above one of images or of points by its name, None where it is none."""
    names = ("depth", "xyz") if of_points else ("images", "rgb", "color")
    return folder_of(folder) if name_of(folder).lower() in names else None


def same_name(listing: Listing) -> LayoutResult:
    """name.png + name.npy: side by side."""

    def stem(path: str, kind: Kind) -> str:
        ending = GROOVE_LABEL_ENDING if kind == "grooves" else suffix_of(path)
        return path[: -len(ending)]

    return group_by_stem(stem, listing)


def same_folder(listing: Listing) -> LayoutResult:
    """X_color.png + X_rawDepth.npy: side by side with the camera's suffixes."""
    return group_by_stem(
        lambda path, kind: join(folder_of(path), _without_camera_suffix(stem_of(path))), listing
    )


def words_apart(listing: Listing) -> LayoutResult:
    """rgb/train/7_rgb.jpg + depth/train/sync_depth_7.png: equal but for words for color and depth.

    Also side by side (7.color.png + 7.depth.png), and words within (X_Color_7.png).
    """
    return group_by_stem(
        lambda path, kind: join(_base(path, kind), _without_words(stem_of(path))), listing
    )


def by_time(listing: Listing) -> LayoutResult:
    """rgb/1305031102.175304.png + depth/1305031102.160407.png: times at most 0.02 s apart.

    Times are those since 1970 in s, ms, us or ns, as the names of files have them.
    """
    results = []
    for base, images, clouds in _two_sides(listing):
        timed_images = [Timed(t, p) for p in images if (t := time_in_name(stem_of(p))) is not None]
        timed_clouds = [Timed(t, p) for p in clouds if (t := time_in_name(stem_of(p))) is not None]
        if timed_images and timed_clouds:
            pairs = associate(timed_images, timed_clouds)
            groups = [
                Group(join(base, _without_words(stem_of(rgb))), [rgb], [xyz], [])
                for rgb, xyz in pairs
            ]
            results.append(count_alone(groups, timed_images, timed_clouds, base or "."))
    return LayoutResult(
        [group for result in results for group in result.groups],
        [path for result in results for path in result.left_out],
        [note for result in results for note in result.notes],
    )


def by_number(listing: Listing) -> LayoutResult:
    """rgb/left0007.jpg + depth/d7.png: two folders, the last number of the name."""
    groups = []
    for base, images, clouds in _two_sides(listing):
        of_number: dict[int, Group] = defaultdict(lambda: Group("", [], [], []))
        for side, paths in (("rgb", images), ("xyz", clouds)):
            for path in paths:
                number = re.search(r"(\d+)\D*$", stem_of(path))
                if number and folder_of(path) != base:
                    getattr(of_number[int(number[1])], side).append(path)
        groups += [
            group._replace(stem=join(base, _without_words(stem_of(group.rgb[0]))))
            for group in of_number.values()
            if group.rgb and group.xyz
        ]
    notes = []
    if groups:
        example = f"{groups[0].rgb[0]} with {groups[0].xyz[0]}"
        notes = [f"{len(groups)} captures were paired by their numbers ({example})"]
    return LayoutResult(groups, notes=notes)


def colored_points(listing: Listing) -> LayoutResult:
    """name.ply: a file that holds points and colors, with no image beside it.

    zdf/7.zdf beside images/7.png and depth/7.npy is that capture once more, and none.
    """
    by_stem: dict[str, list[str]] = defaultdict(list)
    for path in listing.of_kind("xyz"):
        suffix = suffix_of(path)
        if BY_SUFFIX[suffix.lower()].has_rgb:
            by_stem[path.removesuffix(suffix)].append(path)
    groups = []
    left_out: list[str] = []
    labels = set(listing.of_kind("grooves"))
    for stem, paths in by_stem.items():
        if {stem, join(folder_of(folder_of(stem)), name_of(stem))} & listing.stems:
            left_out += paths
            continue
        chosen = of_first_format(paths)
        left_out += [path for path in paths if path not in chosen]
        label = stem + GROOVE_LABEL_ENDING
        groups.append(Group(stem, chosen, chosen, [label] if label in labels else []))
    return LayoutResult(groups, left_out, beside_points(left_out))


def _without_camera_suffix(name: str) -> str:
    """Return `name` without what camera software appends: X_color, X_rawDepth -> X."""
    return CAMERA_SUFFIX.sub("", name) or name


def _without_words(name: str) -> str:
    """Return `name` without words for color and depth, wherever: X_Color_7 -> X_7."""
    bare = re.sub(r"([\W_])[\W_]+", r"\1", WORDS.sub("", name)).strip("._- ")
    return bare or name


def _base(path: str, kind: Kind) -> str:
    """Return a file's folder without the part that says color or depth."""
    return without_part(folder_of(path), DEPTH_FOLDERS if kind == "xyz" else IMAGE_FOLDERS)


def _beside_aligned(listing: Listing) -> tuple[list[str], list[str]]:
    """Return depth of which the same folder has it aligned to the color, and notes on that."""
    folders = {folder_of(path) for path in listing.of_kind("xyz")}
    if not any(ALIGNED.search(plain(folder)) for folder in folders):  # of most cameras
        return [], []
    sides: dict[str, dict[str, list[str]]] = {}
    for base, _, clouds in _two_sides(listing):
        for path in clouds:
            folder = last_named_folder(path, DEPTH_FOLDERS)
            if "depth" in plain(folder):
                sides.setdefault(base, {}).setdefault(folder, []).append(path)
    unaligned: list[str] = []
    notes = []
    for of_folder in sides.values():
        aligned = [folder for folder in of_folder if ALIGNED.search(plain(folder))]
        for folder in [folder for folder in of_folder if aligned and folder not in aligned]:
            unaligned += of_folder[folder]
            notes.append(f"depth of {aligned[0]}/ is taken, not of {folder}/")
    return unaligned, list(dict.fromkeys(notes))


def _two_sides(
    listing: Listing,
) -> list[tuple[str, list[str], list[str]]]:
    """Return images and points of each folder that has both, in folders that say so or itself."""
    sides: dict[str, dict[str, list[str]]] = {}
    for kind in ("rgb", "xyz"):
        for path in listing.of_kind(kind):
            if kind == "xyz" or not lies_below(path, DEPTH_FOLDERS):
                base = _base(path, kind)
                sides.setdefault(base, {"rgb": [], "xyz": []})[kind].append(path)
    return [(base, s["rgb"], s["xyz"]) for base, s in sides.items() if s["rgb"] and s["xyz"]]
