"""List the files of a folder of captures, and tell by name and header what each may be.

    listing = list_folder(root)  # .kinds by path, .tables, .results
    kind_of(root, PurePosixPath("depth/a.png"))  # "xyz" if it has 16 bits a pixel, else "rgb"

Depth images look like any image by their suffix: a name or a folder that says depth, and a header
of one channel of 16 bits or of floats, make a PNG or TIFF one.

What `depthdist predict` and results' `save` wrote is no measurement: it is listed apart, by the
list of results in its folder or by a mark in its header.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from depthdist.captures.formats.depth_image import DEPTH_IMAGE, measures_depth
from depthdist.captures.formats.registry import BY_SUFFIX
from depthdist.captures.formats.stored_points import read_head
from depthdist.core.errors import BadFile

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm", ".mpo"}
TABLE_SUFFIXES = {".json", ".yaml", ".yml", ".txt", ".csv"}  # of cameras, splits, times
GROOVE_LABEL_ENDING = "_grooves.png"  # X_grooves.png beside X_color.png or X.png
IMAGE_FOLDERS = {"images", "image", "rgb", "color", "colour", "colors", "img", "imgs", "rgbimages",
                 "colorimages"}  # fmt: skip
DEPTH_FOLDERS = {"depth", "depths", "xyz", "depthimages", "depthmaps", "depthmap", "rawdepth",
                 "depthraw", "syncdepth", "aligneddepth", "depthaligned", "depthregistered",
                 "aligneddepthtocolor", "pointclouds", "points"}  # fmt: skip
DEPTH_WORD = re.compile(r"(?:^|[\W_])(?:sync|raw)?_?depth(?=$|[\W_\d])|(?:^|[\W_])xyz$", re.I)

RESULTS_LIST = "done.jsonl"  # in a folder of predictions: a line an image, with its files' names
PREDICTED = "predicted by depthdist"  # a comment in .ply files
RESULT_MARKS = {".png": b"tEXtunit_mm\0", ".ply": f"\ncomment {PREDICTED}\n".encode()}
MARKED_WITHIN = 512  # bytes of the file

Kind = Literal["rgb", "xyz", "grooves", "table", "result"]


class Listing(NamedTuple):
    """The files of a folder that may be of captures.

    root     of all paths
    kinds    of each file that is not yet part of a capture, by its path below the root, sorted
    tables   texts that may hold cameras, splits or times
    results  predictions, which are no measurements
    stems    of the captures that were found already
    """

    root: Path
    kinds: dict[PurePosixPath, Kind]
    tables: list[PurePosixPath]
    results: list[PurePosixPath]
    stems: frozenset[str] = frozenset()

    def of_kind(self, kind: Kind) -> Iterator[PurePosixPath]:
        """Yield the files of one kind."""
        return (path for path, found in self.kinds.items() if found == kind)

    def without(self, used: Iterable[PurePosixPath]) -> Listing:
        """Return the listing without these files."""
        gone = set(used)
        if not gone:  # a copy of a million captures takes 80 MB
            return self
        return self._replace(kinds={p: kind for p, kind in self.kinds.items() if p not in gone})


def list_folder(root: Path) -> Listing:
    """Return the files below a folder; raise BadFile where a folder cannot be listed.

    Hidden files and folders, and folders called `truth`, are skipped; links to folders are followed
    once.
    """
    return as_listing(root, _walk(root))


def as_listing(root: Path, paths: Iterable[PurePosixPath]) -> Listing:
    """Return a listing of these paths, relative to `root`."""
    paths = sorted(paths)
    listed = {file for path in paths if path.name == RESULTS_LIST for file in _results(root, path)}
    kinds: dict[PurePosixPath, Kind] = {}
    for path in paths:
        kind = "result" if path in listed else kind_of(root, path)
        if kind:
            kinds[path] = kind
    tables = [path for path, kind in kinds.items() if kind == "table"]
    results = [path for path, kind in kinds.items() if kind == "result"]
    return Listing(root, kinds, tables, results).without([*tables, *results])


def _results(root: Path, path: PurePosixPath) -> Iterator[PurePosixPath]:
    """Yield the files that a list of results names; lines of another kind have none."""
    for line in (root / path).read_bytes().splitlines():
        try:
            files = json.loads(line)["files"]
            yield from (path.parent / file for file in files)
        except (ValueError, KeyError, TypeError):
            continue


def kind_of(root: Path, path: PurePosixPath) -> Kind | None:
    """Return what a file is by its name, or its header; None where it is none of a capture's."""
    if path.name.lower().endswith(GROOVE_LABEL_ENDING):
        return "grooves"
    suffix = path.suffix.lower()
    if suffix in TABLE_SUFFIXES:
        return "table"
    if suffix in DEPTH_IMAGE.suffixes:
        if not _is_depth_image(root / path, says_depth(path)):
            return "rgb"
    elif suffix in IMAGE_SUFFIXES:
        return "rgb"
    elif suffix not in BY_SUFFIX or not BY_SUFFIX[suffix].may_hold_points(root / path):
        return None
    return "result" if _is_marked_result(root / path) else "xyz"


def says_depth(path: PurePosixPath) -> bool:
    """Return whether a file's name, or one of its folders', says that it holds depth."""
    return bool(DEPTH_WORD.search(path.stem)) or lies_below(path, DEPTH_FOLDERS)


def lies_below(path: PurePosixPath, names: set[str]) -> bool:
    """Return whether one of a file's folders has one of these names."""
    return any(plain(folder) in names for folder in path.parts[:-1])


def plain(folder: str) -> str:
    """Return a folder's name in lower case, without what joins words."""
    return re.sub(r"[\W_]+", "", folder.lower())


def without_folder(path: PurePosixPath, names: set[str]) -> PurePosixPath | None:
    """Return a file's folder without its last part of these names, None where it has none.

    a/images/train/x.png -> a/train
    """
    parts = path.parts[:-1]
    for i in reversed(range(len(parts))):
        if plain(parts[i]) in names:
            return PurePosixPath(*parts[:i], *parts[i + 1 :])
    return None


def _is_depth_image(path: Path, named: bool) -> bool:
    """Return whether a PNG or TIFF is depth; `named` where its name says so."""
    if not named and path.suffix.lower() == ".png":
        return False  # a grey camera's 16 bits
    found = measures_depth(path)
    return named if found is None else found and (named or found == "floats")


def _is_marked_result(path: Path) -> bool:
    """Return whether a file's header says that it is a prediction of ours."""
    mark = RESULT_MARKS.get(path.suffix.lower())
    try:
        return mark is not None and mark in read_head(path, MARKED_WITHIN)
    except BadFile:  # its reader says what is wrong with it
        return False


def _walk(root: Path) -> list[PurePosixPath]:
    """Return all files under `root`, relative to it, but for those of folders of shards."""

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
        if "index.json" in names and any(n.endswith(".tar") or n[:8] == "samples-" for n in names):
            subfolders.clear()
            continue
        files += [relative / name for name in names if not name.startswith(".")]
    return files
