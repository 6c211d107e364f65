"""Two runs on the same images: which is better, by how much, and how sure that is.

# the contents of two evaluation.json; names of the runs
print(compare_runs(evaluation_a, evaluation_b, ["first", "other"]))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from depthdist.evaluation.image_details import all_metrics
from depthdist.evaluation.metrics.confidence import Difference, compare
from depthdist.evaluation.row_kinds import adapter_row
from depthdist.evaluation.tables import format_line, format_value

COMPARED_METRICS = (
    "abs_rel",
    "delta1",
    "rmse_mm",
    "mae_mm",
    "silog_kitti",
    "edge_f1@4mm",
    "edge_f1@16mm",
    "normal_mean_deg",
    "chamfer_mm",
    "groove_mae_mm",
    "groove_found",
)
SIGNIFICANCE = 0.05
WIDTHS = (max(map(len, COMPARED_METRICS)), 12, 12, 12, 24, 9)


def compare_runs(a: dict[str, Any], b: dict[str, Any], names: Sequence[str]) -> str:
    """Return the table, and raise ValueError if the two were not measured on the same images."""
    _check_same_data(a, b, names)
    row_a = adapter_row(a)
    row_b = adapter_row(b)
    images_a = a["images"][row_a]
    images_b = b["images"][row_b]
    pairs = _match_images(images_a, images_b)
    if not pairs:
        raise ValueError(
            f"{' and '.join(names)}: no image was measured for both; one of them learned from each"
            " image: take --data that is new to both"
        )
    lines = [
        f"A {names[0]}: {row_a}",
        f"B {names[1]}: {row_b}",
        f"{len(pairs)} images that both were measured on{_left_out(a, b)}",
        "",
        format_line(WIDTHS, "", ["A", "B", "A - B", "95 % interval", "p"]),
    ]
    for name in COMPARED_METRICS:
        if name in images_a["values"] and name in images_b["values"]:
            values_a = [images_a["values"][name][i] for i, _ in pairs]
            values_b = [images_b["values"][name][j] for _, j in pairs]
            found = compare(values_a, values_b)
            if found.images:
                lines.append(_metric_line(name, values_a, values_b, found))
    lines += [
        "\np: share of all swaps of A and B within images that differ as much (permutation test);"
        f" below {SIGNIFICANCE:g} is called a difference.",
        "One run each: the variation between seeds is not included. Images of one scene are not"
        " independent.",
    ]
    return "\n".join(lines)


def _check_same_data(a: dict[str, Any], b: dict[str, Any], names: Sequence[str]) -> None:
    if all(a[name] == b[name] for name in ("data_sha256", "split")):
        return
    measured = ", ".join(
        f"{name} was measured on {evaluation['split']} of {evaluation['data']}"
        for name, evaluation in zip(names, (a, b))
    )
    raise ValueError(f"{measured}: give both the same with --data and --split")


def _left_out(a: dict[str, Any], b: dict[str, Any]) -> str:
    """Return how many images each run learned from, which are not compared; "" if none."""
    counts = [evaluation.get("seen", {}).get("left_out", 0) for evaluation in (a, b)]
    if not any(counts):
        return ""
    return f"; left out are {counts[0]} that A learned from, and {counts[1]} that B learned from"


def _match_images(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[int, int]]:
    """Return the positions of the same image in both, by its number in the split.

    Older evaluations have names alone, and one may occur more than once, as in mixed datasets: then
    they are paired in their order.
    """
    by = "samples" if "samples" in a and "samples" in b else "keys"
    positions: dict[Any, list[int]] = {}
    for i, key in enumerate(b[by]):
        positions.setdefault(key, []).append(i)
    return [(i, positions[key].pop(0)) for i, key in enumerate(a[by]) if positions.get(key)]


def _metric_line(name: str, values_a: list[float], values_b: list[float], found: Difference) -> str:
    """Return the table's line of one metric, with the verdict at its end."""
    is_known = not math.isnan(found.p)
    interval = f"{format_value(name, found.low)} .. {format_value(name, found.high)}"
    cells = [
        format_value(name, _mean(values_a)),
        format_value(name, _mean(values_b)),
        format_value(name, found.difference),
        interval if is_known else "-",
        f"{found.p:.4f}" if is_known else "-",
    ]
    return f"{format_line(WIDTHS, name, cells)}  {_verdict(name, found)}"


def _verdict(name: str, found: Difference) -> str:
    if math.isnan(found.p):
        return "too few images"
    if found.p >= SIGNIFICANCE:
        return "no difference shown"
    a_is_better = (found.difference < 0) == (all_metrics()[name].better == "lower")
    return f"{'A' if a_is_better else 'B'} is better"


def _mean(values: list[float]) -> float:
    """Return the mean of those that are not NaN, 0 if there is none."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / max(len(known), 1)
