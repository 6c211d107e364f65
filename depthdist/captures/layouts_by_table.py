"""Layouts in which a text says what belongs together: ultralytics' YAML, TUM's lists of times."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from depthdist.captures.found_files import Listing, plain
from depthdist.captures.layout_results import Group, LayoutResult, count_of
from depthdist.captures.time_association import Timed, associate, count_alone

SPLITS = ("train", "val", "test")  # as ultralytics' YAML names them
TUM_UNIT_MM = 0.2  # 5000 to the metre
LISTS = {"associations", "association", "associate", "associated", "rgbdepth"}
Paths = dict[PurePosixPath, PurePosixPath]


def ultralytics_folder(listing: Listing) -> LayoutResult:
    """images/train/a.jpg + depth/train/a.png, and a YAML with path, train, val, depth_scale.

    `images` in a path becomes `depth`; of a PNG and a `.npy` the PNG is taken. A PNG has
    depth_scale (1000) units to the metre, a `.npy` is in metres.
    """
    results = [
        _read_ultralytics(listing, path, content)
        for path in listing.tables
        if path.suffix.lower() in (".yaml", ".yml")
        for content in [_parse_yaml(listing.root / path)]
        if isinstance(content, dict) and ("train" in content or "val" in content)
    ]
    groups: dict[str, Group] = {}
    for result in results:
        for group in result.groups:
            groups.setdefault(group.stem, group)  # train stands before val
    used = {path for group in groups.values() for path in (*group.rgb, *group.xyz)}
    left_out = {path for result in results for path in result.left_out} - used
    notes = [note for result in results for note in result.notes]
    return LayoutResult(list(groups.values()), sorted(left_out), notes)


def tum_sequence(listing: Listing) -> LayoutResult:
    """rgb/1.10.png + depth/1.12.png, and rgb.txt and depth.txt with a line `time file` each.

    Or associations.txt with both on a line. Depth has 5000 units to the metre.
    """
    tables = {path.parent / path.name.lower(): path for path in listing.tables}
    groups: list[Group] = []
    left_out: list[PurePosixPath] = []
    notes: list[str] = []
    lists = {path.parent: path for path in listing.tables if _is_list(path)}
    for folder in sorted({path.parent for path in listing.tables}):
        both = [tables.get(folder / name) for name in ("rgb.txt", "depth.txt")]
        listed = lists.get(folder)
        if listed is not None:
            rows = _rows(listing, listed, 4)
            for _, one, _, other in rows:  # in either order
                for rgb, xyz in ((folder / one, folder / other), (folder / other, folder / one)):
                    if _has(listing, rgb, xyz):
                        groups.append(_tum_group(folder, rgb, xyz))
        elif both[0] and both[1]:
            images, clouds = (_timed(listing, table, folder) for table in both if table)
            pairs = [pair for pair in associate(images, clouds) if _has(listing, *pair)]
            result = count_alone(
                [_tum_group(folder, *pair) for pair in pairs], images, clouds, str(both[0])
            )
            groups += result.groups
            left_out += result.left_out
            notes += result.notes
    return LayoutResult(groups, left_out, notes)


# -------------------------------------------------------------------------------------- ultralytics


def _parse_yaml(path: Path) -> Any:
    """Return what a YAML file of a dataset holds, None where it is none."""
    import yaml  # takes long

    try:
        text = path.read_text("utf-8-sig")
        return yaml.safe_load(text) if "train" in text or "val" in text else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None  # of another program


def _read_ultralytics(
    listing: Listing, path: PurePosixPath, content: dict[str, Any]
) -> LayoutResult:
    """Return the captures that a dataset's YAML lists."""
    scale = content.get("depth_scale", 1000)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
        note = f"{path}: depth_scale is {scale!r:.40}; expected a number > 0, so it was not used"
        return LayoutResult([], notes=[note])
    base = _dataset_root(listing, path, content.get("path"))
    groups = []
    without_depth: list[PurePosixPath] = []
    num_listed = 0
    for split in SPLITS:
        for image in _listed_images(listing, base, content.get(split)):
            num_listed += 1
            cloud = _depth_of(listing, image)
            if cloud is None:
                without_depth.append(image)
                continue
            parts = [part for i, part in enumerate(image.parts[:-1]) if i != _last_images(image)]
            unit_mm = 1000.0 if cloud.suffix.lower() == ".npy" else 1000 / scale
            stem = str(PurePosixPath(*parts, image.stem))
            groups.append(Group(stem, [image], [cloud], [], unit_mm, split))
    notes = []
    if without_depth:
        notes.append(f"{path}: left out: {count_of(without_depth, 'image')} without depth")
    return LayoutResult(groups, without_depth if groups else [], notes if groups else [])


def _dataset_root(listing: Listing, path: PurePosixPath, given: Any) -> PurePosixPath:
    """Return the folder that the paths of a YAML are relative to, relative to the listing's root.

    `path` may be absolute, or relative to a folder of all datasets: then its last part that exists
    beside the YAML counts, else the YAML's own folder.
    """
    root = listing.root.resolve()
    own = (listing.root / path).resolve().parent
    if isinstance(given, str) and given:
        for candidate in (own / given, own / Path(given).name):
            found = candidate.resolve()
            if found.is_dir() and found.is_relative_to(root):
                return PurePosixPath(found.relative_to(root).as_posix())
    return path.parent


def _listed_images(listing: Listing, base: PurePosixPath, given: Any) -> Iterator[PurePosixPath]:
    """Yield the images of `train`, `val` or `test`: a folder, a text of files, or several."""
    for place in given if isinstance(given, list) else [given]:
        if not isinstance(place, str):
            continue
        path = _inside(listing, base, place)
        if path is None:
            continue
        if path.suffix.lower() == ".txt":
            try:
                lines = (listing.root / path).read_text("utf-8-sig").splitlines()
            except (OSError, ValueError):
                continue
            listed = [_inside(listing, path.parent, line.strip()) for line in lines]
            listed += [_inside(listing, base, line.strip()) for line in lines]
            yield from dict.fromkeys(p for p in listed if p and listing.kinds.get(p) == "rgb")
        else:
            yield from (image for image in listing.of_kind("rgb") if path in image.parents)


def _inside(listing: Listing, base: PurePosixPath, place: str) -> PurePosixPath | None:
    """Return a path relative to the listing's root, None where it lies elsewhere."""
    root = listing.root.resolve()
    try:
        found = (root / base / place).resolve()
    except (OSError, ValueError):  # a name with a zero
        return None
    inside = found.is_relative_to(root)
    return PurePosixPath(found.relative_to(root).as_posix()) if inside else None


def _last_images(image: PurePosixPath) -> int:
    """Return where `images` stands in a path for the last time, -1 where it does not."""
    return max(
        (i for i, part in enumerate(image.parts[:-1]) if plain(part) == "images"), default=-1
    )


def _depth_of(listing: Listing, image: PurePosixPath) -> PurePosixPath | None:
    """Return the depth of an image: `depth` for `images`, the same name, PNG before `.npy`."""
    place = _last_images(image)
    if place < 0:
        return None
    parts = [*image.parts]
    parts[place] = "depth"
    for suffix in (".png", ".npy"):
        path = PurePosixPath(*parts).with_suffix(suffix)
        if listing.kinds.get(path) == "xyz":
            return path
    return None


# ---------------------------------------------------------------------------------------------- TUM


def _is_list(path: PurePosixPath) -> bool:
    return path.suffix.lower() == ".txt" and plain(path.stem) in LISTS


def _rows(listing: Listing, path: PurePosixPath, count: int) -> list[list[str]]:
    """Return the lines of a text that have that many words; comments begin with #."""
    try:
        lines = (listing.root / path).read_text("utf-8-sig").splitlines()
    except (OSError, ValueError):
        return []
    rows = [line.split() for line in lines if not line.lstrip().startswith("#")]
    return [row for row in rows if len(row) == count]


def _timed(listing: Listing, path: PurePosixPath, folder: PurePosixPath) -> list[Timed]:
    """Return the files that exist of a list of times."""
    found = []
    for time, name in _rows(listing, path, 2):
        try:
            timed = Timed(float(time), folder / name)
        except ValueError:
            continue
        if timed.path in listing.kinds and math.isfinite(timed.time):
            found.append(timed)
    return found


def _has(listing: Listing, rgb: PurePosixPath, xyz: PurePosixPath) -> bool:
    return listing.kinds.get(rgb) == "rgb" and listing.kinds.get(xyz) == "xyz"


def _tum_group(folder: PurePosixPath, rgb: PurePosixPath, xyz: PurePosixPath) -> Group:
    unit_mm = TUM_UNIT_MM if xyz.suffix.lower() == ".png" else None
    return Group(str(folder / rgb.stem), [rgb], [xyz], [], unit_mm)
