"""List the files of a folder of captures, and tell by name and header what each may be.

    listing = list_folder(root)  # .kinds by path, .tables, .results
    kind_of(root, "depth/a.png")  # "xyz" if it has 16 bits a pixel, else "rgb"

Paths below the folder are text (path_text.py).

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
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

from depthdist.captures.formats.depth_image import DEPTH_IMAGE, measures_depth
from depthdist.captures.formats.registry import BY_SUFFIX
from depthdist.captures.formats.stored_points import read_head
from depthdist.captures.path_text import (
    folder_of,
    join,
    join_written,
    name_of,
    sort_paths,
    stem_of,
    suffix_of,
)
from depthdist.core.environment import rank
from depthdist.core.errors import BadFile, printable_path
from depthdist.core.progress import with_progress

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm", ".mpo"}
TABLE_SUFFIXES = {".json", ".yaml", ".yml", ".txt", ".csv"}  # of cameras, splits, times
GROOVE_LABEL_ENDING = "_grooves.png"  # X_grooves.png beside X_color.png or X.png
IMAGE_FOLDERS = frozenset({
    "images", "image", "rgb", "color", "colour", "colors", "img", "imgs", "rgbimages",
    "colorimages",
})  # fmt: skip
DEPTH_FOLDERS = frozenset({
    "depth", "depths", "xyz", "depthimages", "depthmaps", "depthmap", "rawdepth", "depthraw",
    "syncdepth", "aligneddepth", "depthaligned", "depthregistered", "aligneddepthtocolor",
    "pointclouds", "points",
})  # fmt: skip
JOINING = re.compile(r"[\W_]+")
NUM_FOLDERS = 1024  # whose names are remembered: files come folder by folder
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
    kinds: dict[str, Kind]
    tables: list[str]
    results: list[str]
    stems: frozenset[str] = frozenset()

    def of_kind(self, kind: Kind) -> Iterator[str]:
        """Yield the files of one kind."""
        return (path for path, found in self.kinds.items() if found == kind)

    def without(self, used: Iterable[str]) -> Listing:
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


def as_listing(root: Path, paths: Iterable[str]) -> Listing:
    """Return a listing of these paths, relative to `root`."""
    paths = sort_paths(paths)
    listed = {
        file for path in paths if name_of(path) == RESULTS_LIST for file in _results(root, path)
    }
    kinds: dict[str, Kind] = {}
    for path in with_progress(paths, "telling files apart", "files", shown=rank() == 0):
        kind = "result" if path in listed else kind_of(root, path)
        if kind:
            kinds[path] = kind
    tables = [path for path, kind in kinds.items() if kind == "table"]
    results = [path for path, kind in kinds.items() if kind == "result"]
    return Listing(root, kinds, tables, results).without([*tables, *results])


def _results(root: Path, path: str) -> Iterator[str]:
    """Yield the files that a list of results names; lines of another kind have none."""
    for line in (root / path).read_bytes().splitlines():
        try:
            files = json.loads(line)["files"]
            yield from (join_written(folder_of(path), file) for file in files)
        except (ValueError, KeyError, TypeError):
            continue


def kind_of(root: Path, path: str) -> Kind | None:
    """Return what a file is by its name, or its header; None where it is none of a capture's."""
    if path.lower().endswith(GROOVE_LABEL_ENDING):
        return "grooves"
    suffix = suffix_of(path).lower()
    if suffix in TABLE_SUFFIXES:
        return "table"
    if suffix in DEPTH_IMAGE.suffixes:
        if not _is_depth_image(root, path, suffix):
            return "rgb"
    elif suffix in IMAGE_SUFFIXES:
        return "rgb"
    elif not _may_hold_points(root, path, suffix):
        return None
    return "result" if suffix in RESULT_MARKS and _is_marked_result(root / path) else "xyz"


def _may_hold_points(root: Path, path: str, suffix: str) -> bool:
    """Return whether a file is of a format of points, by its suffix or more."""
    if suffix not in BY_SUFFIX:
        return False
    look = BY_SUFFIX[suffix].may_hold_points
    return look is None or look(root / path)


def says_depth(path: str) -> bool:
    """Return whether a file's name, or one of its folders', says that it holds depth."""
    if lies_below(path, DEPTH_FOLDERS):
        return True
    stem = stem_of(path)
    lower = stem.lower()
    # most names have neither word, which is found out in a tenth of the time
    return ("depth" in lower or "xyz" in lower) and bool(DEPTH_WORD.search(stem))


def lies_below(path: str, names: frozenset[str]) -> bool:
    """Return whether one of a file's folders has one of these names."""
    return _last_named(folder_of(path), names) is not None


@lru_cache(NUM_FOLDERS)
def _last_named(folder: str, names: frozenset[str]) -> int | None:
    """Return the number of the last part of a folder's path that has one of these names."""
    parts = folder.split("/")
    return next((i for i in reversed(range(len(parts))) if plain(parts[i]) in names), None)


def last_named_folder(path: str, names: frozenset[str]) -> str:
    """Return the last of a file's folders that has one of these names, "" where none has."""
    number = _last_named(folder_of(path), names)
    return "" if number is None else path.split("/")[number]


def plain(folder: str) -> str:
    """Return a folder's name in lower case, without what joins words."""
    return JOINING.sub("", folder.lower())


@lru_cache(NUM_FOLDERS)
def without_part(folder: str, names: frozenset[str]) -> str:
    """Return a folder without its last part of these names, as it is where it has none.

    a/images/train -> a/train
    """
    number = _last_named(folder, names)
    parts = folder.split("/")
    return folder if number is None else "/".join(parts[:number] + parts[number + 1 :])


def _is_depth_image(root: Path, path: str, suffix: str) -> bool:
    """Return whether a PNG or TIFF is depth, by its name and header."""
    named = says_depth(path)
    if not named and suffix == ".png":
        return False  # a grey camera's 16 bits
    found = measures_depth(root / path)
    return named if found is None else found and (named or found == "floats")


def _is_marked_result(path: Path) -> bool:
    """Return whether a file's header says that it is a prediction of ours."""
    mark = RESULT_MARKS.get(path.suffix.lower())
    try:
        return mark is not None and mark in read_head(path, MARKED_WITHIN)
    except BadFile:  # its reader says what is wrong with it
        return False


def _walk(root: Path) -> list[str]:
    """Return all files under `root`, relative to it, but for those of folders of shards."""

    def stop(err: OSError) -> None:
        raise BadFile(Path(err.filename), f"cannot be listed: {err.strerror}")

    files: list[str] = []
    visited = set()
    folders = os.walk(root, followlinks=True, onerror=stop)
    text = f"listing {printable_path(root)}"
    for folder, subfolders, names in with_progress(folders, text, "folders", shown=rank() == 0):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:  # a link to a parent
            subfolders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(n for n in subfolders if not n.startswith(".") and n != "truth")
        relative = Path(folder).relative_to(root).as_posix() if folder != str(root) else ""
        if "index.json" in names and any(n.endswith(".tar") or n[:8] == "samples-" for n in names):
            subfolders.clear()
            continue
        files += [join(relative, name) for name in names if not name.startswith(".")]
    return files
