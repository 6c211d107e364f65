"""What a reader of a dataset's index must not miss: one line for each thing that may be wrong.

for line in dataset_warnings(index, settings):  # of depthdist shard
    print(line)
"""

from __future__ import annotations

import math
from typing import Any

from depthdist.captures.near_duplicates import format_warning
from depthdist.captures.units import unit_remark
from depthdist.core.errors import printable_path
from depthdist.geometry.image_size import choose_image_size, describe_stretch
from depthdist.shards.settings import ShardSettings

SMALL_SCALE = 0.1  # share of the normalized scale: less of it used is said
FAR_FACTOR = 10  # times the median: what lies beyond is never advised to be kept
MAX_SHOWN = 5  # warnings of captures

Stats = dict[str, Any]


def dataset_warnings(index: dict[str, Any], settings: ShardSettings) -> list[str]:
    """Return what may be wrong with a whole dataset, a line each."""
    lines = _masked_lines(index, settings)
    for name, split in index["splits"].items():
        lines += [f"WARNING   {line}" for line in left_out_lines(name, split["stats"])]
    train = index["splits"].get("train")
    about_train = _about_depths(train["stats"]) if train else []
    duplicates = [
        format_warning(index[name], held_out)
        for name, held_out in (("near_duplicates", "validation"), ("near_duplicates_test", "test"))
        if name in index
    ]
    edges = index.get("edge_agreement", {}).get("warning")
    others = (stretched_line(index), *about_train, *duplicates, edges)
    lines += [f"WARNING   {line}" for line in others if line]
    return lines


def stretched_line(index: dict[str, Any]) -> str | None:
    """Return the warning that images are stretched, None where they are not by much."""
    if not index.get("stretched"):
        return None
    image, size = tuple(index["stretched"]), tuple(index["size"])
    advice = "x".join(map(str, choose_image_size(image)))
    return f"an image of {describe_stretch(image, size)}; --size {advice} keeps its aspect"


def _about_depths(stats: Stats) -> list[str | None]:
    """Return what may be wrong with the depths of a split: scale, unit, a repeated depth."""
    median = stats.get("percentiles_mm", {}).get("50")
    return [
        small_scale(stats),
        unit_remark(median) if median else None,
        *(repeated_line(entry) for entry in stats.get("repeated", [])),
    ]


def repeated_line(entry: dict[str, Any]) -> str:
    """Return the warning that the outermost depth of most captures is one and the same."""
    depth, far = entry["depth_mm"], entry["side"] == "farthest"
    flag = f"--far {math.ceil(depth) - 1}" if far else f"--near {math.floor(depth) + 1}"
    return (
        f"{100 * entry['share']:.1f} % of the training pixels, in {entry['num_captures']} of"
        f" {entry['of']} captures, have the very same depth, {depth:.1f} mm, the {entry['side']}"
        f" there is: if it stands for no value, shard with {flag}"
    )


def capture_warnings(warned: list[dict[str, str]], out: str) -> list[str]:
    """Return what may be wrong with single captures, the first MAX_SHOWN of them.

    warned  path and reason of each
    """
    lines = [
        f"WARNING   {printable_path(warning['path'])}: {warning['reason']}"
        for warning in warned[:MAX_SHOWN]
    ]
    if len(warned) > MAX_SHOWN:
        more = len(warned) - MAX_SHOWN
        lines.append(f"WARNING   {more} more of captures, all in {out}/warnings.jsonl")
    return lines


def missing_line(index: dict[str, Any]) -> str | None:
    """Return which spellings of "no value" the point maps use, None where only NaN."""
    found = index.get("no_value", {})
    if not found.keys() - {"NaN"}:
        return None
    parts = [
        f"{value} in {entry['pixels']:,} pixels of {entry['captures']} captures"
        for value, entry in sorted(found.items(), key=lambda item: -item[1]["pixels"])
    ]
    return f"no value  {', '.join(parts)}"


# --------------------------------------------------------------------------------- depths left out


def _masked_lines(index: dict[str, Any], settings: ShardSettings) -> list[str]:
    """Return a warning for each end at which --near or --far masks measured pixels."""
    measured = index["measured"]
    lines = []
    if measured["farther"]:
        most = measured["measured_max_mm"]
        medians = [split["stats"]["percentiles_mm"]["50"] for split in index["splits"].values()]
        advice = f"--far {math.ceil(most):.0f} keeps them"
        if most > FAR_FACTOR * max(medians):
            advice = f"{FAR_FACTOR} times the median depth and more is no measurement"
        lines.append(_masked(measured, "farther", settings.far, most, advice))
    if measured["nearer"]:
        least = measured["measured_min_mm"]
        advice = "--near 0 keeps them" if settings.near else "they round to 0"
        lines.append(_masked(measured, "nearer", settings.near, least, advice))
    return lines


def _masked(
    measured: dict[str, Any], side: str, bound_mm: float, extreme_mm: float, advice: str
) -> str:
    """Return the warning that pixels were masked because of --near or --far."""
    share = 100 * measured[side] / measured["measured"]
    return (
        f"WARNING   {measured[side]:,} measured pixels ({share:.2f} %) are {side} than"
        f" {bound_mm:g} mm and were masked, to {extreme_mm:.1f} mm: {advice}"
    )


def left_out_lines(split: str, stats: Stats) -> list[str]:
    """Return a line for each end at which stray pixels do not count in a split's bounds."""
    lines = []
    for side, entry in stats.get("left_out", {}).items():
        names = ", ".join(map(printable_path, entry["captures"]))
        more = entry["num_captures"] - len(entry["captures"])
        names += f" and {more} more" if more else ""
        extreme = entry["extreme_mm"]
        keep = f"--near {math.floor(extreme) or 0.001}"
        if side == "farther":
            keep = f"--far {math.ceil(extreme) + 1}"
        plural = "s do" if entry["pixels"] != 1 else " does"
        lines.append(
            f"{split}: {entry['pixels']:,} stray pixel{plural} not count in bounds and"
            f" statistics ({100 * entry['share']:.4f} %, {side} than {entry['limit_mm']:.1f} mm, to"
            f" {extreme:.1f} mm, in {names}), and training masks them; {keep} keeps them"
        )
    return lines


def small_scale(stats: Stats) -> str | None:
    """Return a warning where nearly all pixels lie in a small part of the normalized scale."""
    near, far = stats["min_mm"], stats["max_mm"]
    percentiles = stats.get("percentiles_mm", {})
    if not {"1", "99"} <= percentiles.keys() or not 0 < near < far:
        return None
    low, high = percentiles["1"], percentiles["99"]
    used = scale_share(low, high, near, far)
    if used >= SMALL_SCALE:
        return None
    better = scale_share(low, high, 0.9 * low, 1.1 * high)
    return (
        f"98 % of the training pixels, {low:.0f} .. {high:.0f} mm, use only {100 * used:.1f} % of"
        f" the normalized scale, as the bounds are {near:.0f} .. {far:.0f} mm: little is learned"
        f" there. If the rest can be left out, shard with --near {0.9 * low:.0f} --far"
        f" {1.1 * high:.0f}: {100 * better:.0f} %"
    )


def scale_share(low_mm: float, high_mm: float, near_mm: float, far_mm: float) -> float:
    """Return the share of the inverse scale from near_mm to far_mm that low_mm to high_mm takes."""
    return (1 / low_mm - 1 / high_mm) / (1 / near_mm - 1 / far_mm)
