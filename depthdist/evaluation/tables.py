"""An evaluation's details for the terminal: a line a metric, a column a row of the evaluation."""

from __future__ import annotations

import math

from depthdist.evaluation.metrics.pixels import Metric
from depthdist.evaluation.scoring import cell

PARTS = (
    "rmse_mm@",
    "abs_rel@",
    "edge_f1@",
    "depth_pro_f1",
    "moge_f1_r1",
    "dbe_",
    "normal_",
    "chamfer_mm",
    "f_score@",
    "groove_mae_mm",
    "groove_bias_mm",
    "groove_found",
)


def details_table(rows: dict[str, dict[str, float]], metrics: dict[str, Metric]) -> str:
    """Those that PARTS begin, in its order; all others are in evaluation.json."""
    names = [name for part in PARTS for name in metrics if name.startswith(part)]
    names = [
        name
        for name in names
        if any(name in values and not math.isnan(values[name]) for values in rows.values())
    ]
    width, heads = max(map(len, names), default=0), [_short(row) for row in rows]
    lines = [
        f"{'':{width}}"
        + "".join(f"{head:>{max(12, len(head) + 2)}}" for head in heads)
        + "  better"
    ]
    for name in names:
        cells = "".join(
            f"{cell(name, values.get(name, math.nan)):>{max(12, len(head) + 2)}}"
            for head, values in zip(heads, rows.values())
        )
        lines.append(f"{name:{width}}{cells}  {metrics[name].better}")
    return "\n".join(lines)


def groove_table(rows: dict[str, dict[str, float]], limit_mm: float) -> str:
    """All grooves of all images: how far off, how many found, and the decision at the tread limit.

    Nothing where there is none.
    """
    rows = {row: values for row, values in rows.items() if values["grooves"]}
    if not rows:
        return ""
    width = max(map(len, rows))
    lines = [
        f"\ngrooves, all images together; limit {limit_mm:g} mm",
        (
            f"{'':{width}}{'number':>8}{'bias mm':>10}{'MAE mm':>10}{'95 % <':>10}{'found':>9}  "
            " worn as worn, as good   good as good, as worn"
        ),
    ]
    for row, v in rows.items():
        numbers = f"{v['grooves']:>8}{v['bias_mm']:>10.2f}{v['mae_mm']:>10.2f}{v['limit95_mm']:>10.2f}{v['found']:>9.0%}"
        lines.append(
            f"{row:{width}}{numbers}   {v['worn_as_worn']:>12}{v['worn_as_good']:>9}  "
            f" {v['good_as_good']:>12}{v['good_as_worn']:>9}"
        )
    return "\n".join(lines)


def _short(row: str) -> str:
    return row.replace("untrained, disparity-aligned", "aligned").replace("adapter, epoch", "epoch")
