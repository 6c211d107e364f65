"""Tables and sentences of a study of holes, for the terminal and for reports."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from depthdist.core.text_table import format_table
from depthdist.evaluation.holes.measures import WITHIN_MM
from depthdist.evaluation.holes.study import COMPLETION

DECIMALS = {"mae_mm": 1, "rmse_mm": 1}
DECIMALS |= {f"within_{limit:g}_mm": 2 for limit in WITHIN_MM} | {"flying": 4, "filled": 2}
DECIMALS |= {"rim_step_mm": 2, "rim_slope_mm": 2}
HEADS = ["MAE mm", "RMSE mm", *(f"<= {limit:g} mm" for limit in WITHIN_MM), "flying", "filled"]
HEADS += ["step", "slope"]
FOOTNOTE = """\
natural: the camera's own holes, against exact depth; punched: measured pixels that were hidden
interior: holes that the image's rim does not touch; beyond: nearer or farther than all measured
hole: the width of a square of its area; rim: distance from the nearest measured pixel; of an image
1944 wide
<= 5 mm ...: share of the filled pixels; flying: share without a neighbor near in depth; filled:
share of the holes' pixels; small holes alone: what a camera's own repair closes
step: mean difference in mm from a hole's first pixel to the measured one beside it, on one surface;
slope: the true one there"""


def ways_lines(by_way: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[list[str]]:
    """Return a line a way: its name, and its values in all holes."""
    return [
        [way, *(_number(of_part["all"][name], digits) for name, digits in DECIMALS.items())]
        for way, of_part in by_way.items()
    ]


def parts_table(
    by_way: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> tuple[list[str], list[list[str]]]:
    """Return header and lines of MAE by part of the holes, a column a way that fills all."""
    ways = [way for way in by_way if by_way[way]["all"]["filled"] > 0.999]
    parts = list(next(iter(by_way.values())))
    num_all = by_way[ways[0]]["all"]["pixels"]
    lines = [
        [
            part,
            f"{by_way[ways[0]][part]['pixels'] / num_all:.0%}",
            *(_number(by_way[way][part]["mae_mm"], 1) for way in ways),
        ]
        for part in parts
    ]
    return ["MAE mm", "pixels", *ways], lines


def sigma_lines(sigma: Mapping[str, Any]) -> list[str]:
    """Return what was found of sigma, in sentences."""
    shares = "; ".join(
        f"{one['from_mm']:.0f} .. {one['to_mm']:.0f} mm {one['inside_1_sigma']:.2f},"
        f" {one['inside_2_sigma']:.2f}"
        for one in sigma["by_depth"]
    )
    ause = sigma["ause"]
    return [
        f"within 1 sigma {sigma['inside_1_sigma']:.2f}, 2 sigma {sigma['inside_2_sigma']:.2f} of"
        f" {sigma['pixels']:,} filled pixels (a normal error: 0.68, 0.95); by depth: {shares}",
        f"without the least sure 20 %: MAE {sigma['mae_mm']:.1f} ->"
        f" {sigma['mae_after_refusing_mm']:.1f} mm; AUSE {ause['completion']:.3f}, by the"
        f" disagreement with the mirror image {ause['mirror']:.3f} (0: ordered as the errors are)",
    ]


def format_holes(content: Mapping[str, Any]) -> str:
    """Return all tables of holes.json for the terminal."""
    parts = []
    for kind, by_way in content["rows"].items():
        parts.append(format_table([f"{kind} holes", *HEADS], ways_lines(by_way)))
        parts.append(format_table(*parts_table(by_way)))
        if kind in content["sigma"]:
            lines = sigma_lines(content["sigma"][kind])
            parts.append("\n".join(f"{COMPLETION}: {line}" for line in lines))
    parts.append(FOOTNOTE)
    if content["goals"]:
        parts.append("\n".join(["goals", *goal_lines(content["goals"])]))
    time = content["seconds"]
    parts.append(
        f"{time['predict']:.2f} s to predict an image and {time['fill']:.2f} s to fill it,"
        f" {_number(content['memory_gib'], 1)} GiB of memory at most"
    )
    return "\n\n".join(parts)


def goal_lines(goals: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line a goal: whether it is passed, what was found, and what was asked for."""
    return [
        f"{'passed' if goal['passed'] else 'missed':<8}{goal['text']}: {goal['found']:.4g},"
        f" {goal['limit']}"
        for goal in goals
    ]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
