"""Paths as text say what pathlib says of them, and a listing never depends on the disk's order."""

import random
from pathlib import PurePosixPath

import pytest

from depthdist.captures import path_text
from depthdist.captures.found_files import as_listing, list_folder

NAMES = (
    "a",
    "a.png",
    "a.b.png",
    "a.",
    "..a",
    ".png",
    "a b",
    "a-b",
    "ünï.TIF",
    "1.5",
    "a..png",
    "-",
)
PATHS = [*NAMES, *(f"{one}/{other}" for one in NAMES for other in NAMES), "a/b/c/d.npy", "a/a/a.x"]


@pytest.mark.parametrize("path", PATHS)
def test_the_parts_of_a_path_are_those_of_pathlib(path):
    known = PurePosixPath(path)
    folder = path_text.folder_of(path)
    assert PurePosixPath(folder) == known.parent
    assert path_text.name_of(path) == known.name
    assert path_text.stem_of(path) == known.stem
    assert path_text.suffix_of(path) == known.suffix
    assert path_text.join(folder, known.name) == path
    assert [PurePosixPath(place) for place in path_text.folders_above(path)] == [*known.parents]
    for place in ("", "a", "a/b", "a-b", "a b", path):
        assert path_text.lies_in(path, place) == (PurePosixPath(place) in known.parents)
    for written in ("x.png", "./x.png", "x//./y", "../x", "/x"):
        assert path_text.join_written(folder, written) == str(known.parent / written)


def test_paths_are_sorted_as_pathlib_sorts_them():
    shuffled = random.Random(0).sample(PATHS, len(PATHS))
    assert path_text.sort_paths(shuffled) == [str(p) for p in sorted(map(PurePosixPath, PATHS))]


def test_a_listing_has_the_files_in_the_order_of_their_folders(tmp_path):
    names = ["a-b/x.png", "a/x.png", "a/b/x.png", "a.png", "b.npy", "a/x.npy", "a b/x.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    listing = list_folder(tmp_path)
    assert [*listing.kinds] == [str(path) for path in sorted(map(PurePosixPath, names))]
    assert as_listing(tmp_path, names[::-1]) == listing
