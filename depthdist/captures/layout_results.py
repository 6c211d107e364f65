"""What a layout finds in a listing: groups of files that are one capture each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from depthdist.captures.formats.registry import BY_SUFFIX
from depthdist.captures.found_files import Kind, Listing
from depthdist.captures.path_text import suffix_of


class Group(NamedTuple):
    """Files that a layout takes for one capture; it is one if there is one of a kind.

    stem     names it, unique under the root
    unit_mm  millimetres per unit of its points, where the layout says it
    split    that it belongs to, where the layout says it
    """

    stem: str
    rgb: list[str]
    xyz: list[str]
    grooves: list[str]
    unit_mm: float | None = None
    split: str | None = None


class LayoutResult(NamedTuple):
    """The captures of a layout, the files that belong to none and why, in notes for people."""

    groups: list[Group]
    left_out: Sequence[str] = ()
    notes: Sequence[str] = ()


Layout = Callable[[Listing], LayoutResult]


def group_by_stem(of_file: Callable[[str, Kind], str | None], listing: Listing) -> LayoutResult:
    """Return the files that share a stem, where there are both images and points.

    of_file  the stem of a file's capture, None where the file is not of that layout

    Of points in several formats that of `FORMATS` that comes first is taken.
    """
    groups: dict[str, Group] = {}
    for path, kind in listing.kinds.items():
        stem = of_file(path, kind)
        if stem is not None:
            group = groups.get(stem)
            if group is None:
                group = groups[stem] = Group(stem, [], [], [])
            getattr(group, kind).append(path)
    found = []
    left_out: list[str] = []
    for group in groups.values():
        if not group.rgb or not group.xyz:
            continue
        chosen = of_first_format(group.xyz)
        if len(chosen) < len(group.xyz):
            left_out += [path for path in group.xyz if path not in chosen]
            group = group._replace(xyz=chosen)
        found.append(group)
    return LayoutResult(found, left_out, beside_points(left_out))


def of_first_format(points: Sequence[str]) -> list[str]:
    """Return those files of points whose format comes first in `FORMATS`."""
    if len(points) == 1:
        return [*points]
    names = [form.name for form in BY_SUFFIX.values()]  # in the order of FORMATS
    ranks = [names.index(BY_SUFFIX[suffix_of(path).lower()].name) for path in points]
    return [path for path, rank in zip(points, ranks) if rank == min(ranks)]


def beside_points(left_out: Sequence[str]) -> list[str]:
    """Return the note of files of points that others of the same captures are taken before."""
    count = count_of(left_out, "file")
    return [f"left out: {count} of points or depth beside others of the same captures"] * bool(
        left_out
    )


def count_of(paths: Iterable[str], what: str) -> str:
    """Return "3 images (a.png, b.png, ...)"."""
    found = list(paths)
    names = ", ".join(found[:2]) + (", ..." if len(found) > 2 else "")
    return f"{len(found)} {what}{'s' * (len(found) != 1)} ({names})"
