"""Associate images and depth images that a camera took at nearly the same time.

for image, cloud in associate(images, clouds):  # at most MAX_SECONDS apart, nearest first
"""

from __future__ import annotations

import bisect
import re
from typing import NamedTuple

from depthdist.captures.layout_results import Group, LayoutResult, count_of
from depthdist.captures.path_text import by_parts

MAX_SECONDS = 0.02  # as TUM's own tool has it
UNITS = {10: 1.0, 13: 1e-3, 16: 1e-6, 19: 1e-9}  # seconds, by the digits of a time since 2001


class Timed(NamedTuple):
    """A file and when it was taken, seconds."""

    time: float
    path: str


def time_in_name(name: str) -> float | None:
    """Return the time since 1970 that a name holds, in seconds; None where it holds none."""
    for number in re.findall(r"(?<!\d)\d+(?:\.\d+)?", name):
        unit = UNITS.get(len(number.partition(".")[0]))
        if unit:
            return float(number) * unit
    return None


def associate(images: list[Timed], clouds: list[Timed]) -> list[tuple[str, str]]:
    """Return the pairs at most MAX_SECONDS apart: nearest first, each file once; in image order."""
    ordered = sorted(clouds, key=lambda cloud: (cloud.time, by_parts(cloud.path)))
    times = [cloud.time for cloud in ordered]
    near = []
    for image in images:
        start = bisect.bisect_left(times, image.time - MAX_SECONDS)
        end = bisect.bisect_right(times, image.time + MAX_SECONDS)
        near += [
            (abs(image.time - cloud.time), image.path, cloud.path) for cloud in ordered[start:end]
        ]
    pairs: dict[str, str] = {}
    taken = set()
    near.sort(key=lambda found: (found[0], by_parts(found[1]), by_parts(found[2])))
    for _, image_path, cloud_path in near:
        if image_path not in pairs and cloud_path not in taken:
            pairs[image_path] = cloud_path
            taken.add(cloud_path)
    return sorted(pairs.items(), key=lambda pair: by_parts(pair[0]))


def count_alone(
    groups: list[Group], images: list[Timed], clouds: list[Timed], where: str
) -> LayoutResult:
    """Return groups, and what has no counterpart in time left out with a line that counts it."""
    used = {path for group in groups for path in (*group.rgb, *group.xyz)}
    alone = [[one.path for one in side if one.path not in used] for side in (images, clouds)]
    found = [
        f"{count_of(paths, what)} have no {other} within {MAX_SECONDS:g} s"
        for paths, what, other in zip(alone, ("image", "depth image"), ("depth", "image"))
        if paths
    ]
    notes = [f"{where}: paired by time; left out: {' and '.join(found)}"] if found else []
    return LayoutResult(groups, [path for paths in alone for path in paths], notes)
