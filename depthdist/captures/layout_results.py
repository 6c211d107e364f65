"""What a layout finds in a listing: groups of files that are one capture each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from depthdist.captures.found_files import Kind, Listing


class Group(NamedTuple):
    """Files that a layout takes for one capture; it is one if there is one of a kind.

    stem     names it, unique under the root
    unit_mm  millimetres per unit of its points, where the layout says it
    split    that it belongs to, where the layout says it
    """

    stem: str
    rgb: list[PurePosixPath]
    xyz: list[PurePosixPath]
    grooves: list[PurePosixPath]
    unit_mm: float | None = None
    split: str | None = None


class LayoutResult(NamedTuple):
    """The captures of a layout, the files that belong to none and why, in notes for people."""

    groups: list[Group]
    left_out: Sequence[PurePosixPath] = ()
    notes: Sequence[str] = ()


Layout = Callable[[Listing], LayoutResult]


def group_by_stem(
    of_file: Callable[[PurePosixPath, Kind], str | None], listing: Listing
) -> LayoutResult:
    """Return the files that share a stem, where there are both images and points.

    of_file  the stem of a file's capture, None where the file is not of that layout
    """
    groups: dict[str, Group] = {}
    for path, kind in listing.kinds.items():
        stem = of_file(path, kind)
        if stem is not None:
            groups.setdefault(stem, Group(stem, [], [], []))
            getattr(groups[stem], kind).append(path)
    return LayoutResult([group for group in groups.values() if group.rgb and group.xyz])


def count_of(paths: Iterable[PurePosixPath], what: str) -> str:
    """Return "3 images (a.png, b.png, ...)"."""
    found = list(paths)
    names = ", ".join(str(path) for path in found[:2]) + (", ..." if len(found) > 2 else "")
    return f"{len(found)} {what}{'s' * (len(found) != 1)} ({names})"
