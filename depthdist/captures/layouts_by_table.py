"""Layouts in which a text says what belongs together: ultralytics' YAML, TUM's lists of times."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from depthdist.captures.found_files import Listing, plain
from depthdist.captures.layout_results import Group, LayoutResult, count_of
from depthdist.captures.path_text import (
    folder_of,
    join,
    join_written,
    lies_in,
    name_of,
    sort_paths,
    stem_of,
    suffix_of,
)
from depthdist.captures.time_association import Timed, associate, count_alone
from depthdist.core.errors import BadFile, one_reason

SPLITS = ("train", "val", "test")  # as ultralytics' YAML names them
TUM_UNIT_MM = 0.2  # 5000 to the metre
LISTS = {"associations", "association", "associate", "associated", "rgbdepth"}
Paths = dict[str, str]


def ultralytics_folder(listing: Listing) -> LayoutResult:
    """images/train/a.jpg + depth/train/a.png, and a YAML with path, train, val, depth_scale.

    `images` in a path becomes `depth`; of a PNG and a `.npy` the PNG is taken. A PNG has
    depth_scale (1000) units to the metre, a `.npy` is in metres. Images that no split lists are
    left out. Raise BadFile where two YAMLs differ, or one cannot be read.
    """
    datasets: list[_Dataset] = []
    for path in listing.tables:
        dataset = _read_ultralytics(listing, path)
        if dataset is not None and not any(dataset.agrees_with(other) for other in datasets):
            datasets.append(dataset)
    groups: dict[str, Group] = {}
    for dataset in datasets:
        for group in dataset.groups:
            groups.setdefault(group.stem, group)  # train stands before val
    done = {path for group in groups.values() for path in (*group.rgb, *group.xyz)}
    notes = []
    left_out: set[str] = set()
    for dataset in datasets:
        name = dataset.yaml.relative_to(listing.root)
        alone = [] if not dataset.groups else [p for p in dataset.without_depth if p not in done]
        if alone:
            notes.append(f"{name}: left out: {count_of(alone, 'image')} without depth")
        listed = done | {group.rgb[0] for group in dataset.groups}
        depth = {image: cloud for image, cloud in dataset.pairs.items() if image not in listed}
        if depth:
            notes.append(f"{name}: left out: {count_of(depth, 'image')} that no split lists")
        left_out |= {*alone, *depth.values()} - done
        left_out |= {*depth} if dataset.groups else set()  # else they are rejected
        done |= left_out
    return LayoutResult(list(groups.values()), sort_paths(left_out), notes)


def tum_sequence(listing: Listing) -> LayoutResult:
    """rgb/1.10.png + depth/1.12.png, and rgb.txt and depth.txt with a line `time file` each.

    Or associations.txt with both on a line. Depth has 5000 units to the metre.
    """
    tables = {join(folder_of(path), name_of(path).lower()): path for path in listing.tables}
    groups: list[Group] = []
    left_out: list[str] = []
    notes: list[str] = []
    lists = {folder_of(path): path for path in listing.tables if _is_list(path)}
    for folder in sort_paths({folder_of(path) for path in listing.tables}):
        both = [tables.get(join(folder, name)) for name in ("rgb.txt", "depth.txt")]
        listed = lists.get(folder)
        if listed is not None:
            rows = _rows(listing, listed, 4)
            for row in rows:
                one, other = (join_written(folder, name) for name in (row[1], row[3]))
                for rgb, xyz in ((one, other), (other, one)):  # in either order
                    if _has(listing, rgb, xyz):
                        groups.append(_tum_group(folder, rgb, xyz))
        elif both[0] and both[1]:
            images, clouds = (_timed(listing, table, folder) for table in both if table)
            pairs = [pair for pair in associate(images, clouds) if _has(listing, *pair)]
            result = count_alone(
                [_tum_group(folder, *pair) for pair in pairs], images, clouds, both[0]
            )
            groups += result.groups
            left_out += result.left_out
            notes += result.notes
    return LayoutResult(groups, left_out, notes)


# -------------------------------------------------------------------------------------- ultralytics


class _Dataset(NamedTuple):
    """What a YAML says of the images below a folder.

    root           that its paths are relative to
    groups         the captures that its splits list
    without_depth  images that they list
    pairs          each image below the root that has depth, with it, listed or not
    """

    yaml: Path
    root: str
    groups: list[Group]
    without_depth: list[str]
    pairs: Paths

    def agrees_with(self, other: _Dataset) -> bool:
        """Return whether both say the same of the same folder; raise BadFile if they differ."""
        if self.root != other.root:
            return False
        if sorted(self.groups) != sorted(other.groups):
            problem = f"has other splits or another depth_scale than {other.yaml}"
            raise BadFile(self.yaml, f"{problem}, of the same images; expected one of them")
        return True


def _read_ultralytics(listing: Listing, path: str) -> _Dataset | None:
    """Return the dataset of a YAML, None where it is none of depth; raise BadFile."""
    if suffix_of(path).lower() not in (".yaml", ".yml"):
        return None
    yaml = listing.root / path
    try:
        content = _parse_yaml(yaml)
    except ValueError as err:
        if _pairs_below(listing, folder_of(path)):
            raise BadFile(yaml, f"cannot be read as YAML ({one_reason(err)})") from err
        return None
    if not isinstance(content, dict) or not {"train", "val"} & {*content}:
        return None
    root = _dataset_root(listing, path, content.get("path"))
    pairs = _pairs_below(listing, root)
    if not pairs:
        return None
    unit_mm = 1000 / _depth_scale(yaml, content.get("depth_scale", 1000))
    groups = []
    without_depth = []
    for split in SPLITS:
        for image in _listed_images(listing, root, content.get(split)):
            cloud = pairs.get(image) or _depth_of(listing, image)  # elsewhere
            if cloud is None:
                without_depth.append(image)
                continue
            folders = image.split("/")[:-1]
            parts = [part for i, part in enumerate(folders) if i != _last_images(image)]
            stem = "/".join([*parts, stem_of(image)])
            unit = 1000.0 if suffix_of(cloud).lower() == ".npy" else unit_mm
            groups.append(Group(stem, [image], [cloud], [], unit, split))
    if not groups and "depth_scale" not in content:
        return None  # of another program
    return _Dataset(yaml, root, groups, without_depth, pairs)


def _parse_yaml(path: Path) -> Any:
    """Return what a YAML file of a dataset holds, None where it is none; raise ValueError."""
    import yaml  # takes long

    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig", "replace")
        named = re.search(r"^(train|val|depth_scale)\b", text, re.MULTILINE)
        return yaml.safe_load(content) if named else None
    except (OSError, RecursionError, yaml.YAMLError) as err:
        raise ValueError(str(err)) from err


def _depth_scale(path: Path, given: Any) -> float:
    """Return the units to the metre that a YAML says; raise BadFile."""
    try:
        scale = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError, OverflowError):
        scale = math.nan
    if not (0 < scale < math.inf and 1000 / scale < math.inf):
        raise BadFile(path, f"depth_scale is {given!r:.40}; expected a number > 0")
    return scale


def _pairs_below(listing: Listing, folder: str) -> Paths:
    """Return the images below a folder that have depth in `depth` for `images`, with it."""
    below = (image for image in listing.of_kind("rgb") if lies_in(image, folder))
    return {image: depth for image in below if (depth := _depth_of(listing, image))}


def _dataset_root(listing: Listing, path: str, given: Any) -> str:
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
                return _text_below(root, found)
    return folder_of(path)


def _listed_images(listing: Listing, base: str, given: Any) -> Iterator[str]:
    """Yield the images of `train`, `val` or `test`: a folder, a text of files, or several."""
    for place in given if isinstance(given, list) else [given]:
        if not isinstance(place, str):
            continue
        path = _inside(listing, base, place)
        if path is None:
            continue
        if suffix_of(path).lower() == ".txt":
            try:
                lines = (listing.root / path).read_text("utf-8-sig").splitlines()
            except (OSError, ValueError):
                continue
            listed = [_inside(listing, folder_of(path), line.strip()) for line in lines]
            listed += [_inside(listing, base, line.strip()) for line in lines]
            yield from dict.fromkeys(p for p in listed if p and listing.kinds.get(p) == "rgb")
        else:
            yield from (image for image in listing.of_kind("rgb") if lies_in(image, path))


def _inside(listing: Listing, base: str, place: str) -> str | None:
    """Return a path relative to the listing's root, None where it lies elsewhere."""
    root = listing.root.resolve()
    try:
        found = (root / base / place).resolve()
    except (OSError, ValueError):  # a name with a zero
        return None
    inside = found.is_relative_to(root)
    return _text_below(root, found) if inside else None


def _text_below(root: Path, path: Path) -> str:
    """Return a path relative to a folder, as a listing has it."""
    relative = path.relative_to(root).as_posix()
    return "" if relative == "." else relative


def _last_images(image: str) -> int:
    """Return where `images` stands in a path for the last time, -1 where it does not."""
    return max(
        (i for i, part in enumerate(image.split("/")[:-1]) if plain(part) == "images"), default=-1
    )


def _depth_of(listing: Listing, image: str) -> str | None:
    """Return the depth of an image: `depth` for `images`, the same name, PNG before `.npy`."""
    place = _last_images(image)
    if place < 0:
        return None
    parts = [*image.split("/")[:-1], stem_of(image)]
    parts[place] = "depth"
    for suffix in (".png", ".npy"):
        path = "/".join(parts) + suffix
        if listing.kinds.get(path) == "xyz":
            return path
    return None


# ---------------------------------------------------------------------------------------------- TUM


def _is_list(path: str) -> bool:
    return suffix_of(path).lower() == ".txt" and plain(stem_of(path)) in LISTS


def _rows(listing: Listing, path: str, count: int) -> list[list[str]]:
    """Return the lines of a text that have that many words; comments begin with #."""
    try:
        lines = (listing.root / path).read_text("utf-8-sig").splitlines()
    except (OSError, ValueError):
        return []
    rows = [line.split() for line in lines if not line.lstrip().startswith("#")]
    return [row for row in rows if len(row) == count]


def _timed(listing: Listing, path: str, folder: str) -> list[Timed]:
    """Return the files that exist of a list of times."""
    found = []
    for time, name in _rows(listing, path, 2):
        try:
            timed = Timed(float(time), join_written(folder, name))
        except ValueError:
            continue
        if timed.path in listing.kinds and math.isfinite(timed.time):
            found.append(timed)
    return found


def _has(listing: Listing, rgb: str, xyz: str) -> bool:
    return listing.kinds.get(rgb) == "rgb" and listing.kinds.get(xyz) == "xyz"


def _tum_group(folder: str, rgb: str, xyz: str) -> Group:
    unit_mm = TUM_UNIT_MM if suffix_of(xyz).lower() == ".png" else None
    return Group(join(folder, stem_of(rgb)), [rgb], [xyz], [], unit_mm)
