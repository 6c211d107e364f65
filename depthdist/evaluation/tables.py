"""An evaluation's details for the terminal: a line a metric, a column a row of the evaluation."""

from __future__ import annotations

import math

from depthdist.evaluation.metrics.pixels import HEADLINE, PIXEL_METRICS
from depthdist.evaluation.metrics.registry import Metric

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
            f"{format_value(name, values.get(name, math.nan)):>{max(12, len(head) + 2)}}"
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


def format_scores(scores: dict[str, float]) -> str:
    """The scores in one line."""
    return (
        f"eval loss {scores['loss']:.4f}, AbsRel {scores['abs_rel']:.4f}, delta1"
        f" {scores['delta1']:.3f}, RMSE {scores['rmse_mm']:.1f} mm, MAE {scores['mae_mm']:.1f} mm"
    )


UNTRAINED = "untrained"  # the model's row before training


FOOTNOTE = """means over images, in mm at the truth's own size (bicubic); * best of those that no truth helped
disparity-aligned: scale and shift of 1/depth fitted to each image's truth: what the model's shapes are worth, not its millimetres"""


def scores_table(
    rows: dict[str, dict[str, float]],
    intervals: dict[str, dict[str, tuple[float, float]]] | None = None,
) -> str:
    """The rows side by side.

    The best of each metric is marked with *, among those that were not aligned to the truth.

    intervals  of the means, by row and name: shown below each row
    """
    names = ["loss", *HEADLINE]
    fair = [values for row, values in rows.items() if not row.endswith("-aligned")]
    best = {
        n: (min if n == "loss" or PIXEL_METRICS[n].better == "lower" else max)(
            [r[n] for r in fair if not math.isnan(r[n])] or [math.nan]
        )
        for n in names
    }
    width, wide = max(len(name) for name in rows), 18 if intervals else 12
    lines = [f"{'':{width}}  images" + "".join(f"{n + ' ':>{wide}}" for n in names)]
    for row, values in rows.items():
        cells = "".join(
            f"{format_value(n, values.get(n, math.nan)) + ('*' if not row.endswith('-aligned') and values[n] == best[n] else ' '):>{wide}}"
            for n in names
        )
        lost = (
            f"  ({int(values['damaged'])} damaged samples left out)"
            if values.get("damaged")
            else ""
        )
        lines.append(f"{row:{width}}  {int(values['images']):>6}{cells}{lost}")
        if known := (intervals or {}).get(row):
            lines.append(
                f"{'':{width}}  {'':>6}"
                + "".join(f"{format_interval(n, known.get(n)) + ' ':>{wide}}" for n in names)
            )
    return "\n".join(lines)


def format_value(name: str, value: float) -> str:
    """A value as a table shows it, "-" where there is none."""
    if math.isnan(value):
        return "-"
    return (
        f"{value:.2f}"
        if "mm" in name.partition("@")[0] or name.endswith(("_deg", "_px"))
        else f"{value:.4f}"
    )


def format_interval(name: str, interval: tuple[float, float] | None) -> str:
    if not interval or math.isnan(interval[0]):
        return ""
    return f"{format_value(name, interval[0])}..{format_value(name, interval[1])}"
