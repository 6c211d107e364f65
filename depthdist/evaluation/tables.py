"""Tables of scores as plain text for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from depthdist.evaluation.metrics.pixels import HEADLINE, PIXEL_METRICS
from depthdist.evaluation.metrics.registry import Metric
from depthdist.evaluation.row_kinds import RowKind, infer_row_kind

UNTRAINED = "untrained"  # label of the model's row before training
FOOTNOTE = """\
means over images, in mm at the ground truth's size (bicubic); * best of those not aligned to it
disparity-aligned: scale and shift of 1/depth fitted to each image's ground truth: it scores \
shapes, not millimetres"""
SAYS_MEAN = "knows where, says the mean"  # label of the row of metrics.grooves.say_mean_depth
GROOVE_FOOTNOTE = f"""\
slope, r: of predicted on true depth; balanced: right side of the limit, mean of the shares among \
worn and among good, 0.5 is chance
{SAYS_MEAN}: every groove gets the mean true depth of the other images' grooves"""
DECISIONS = ("worn_as_worn", "worn_as_good", "good_as_good", "good_as_worn")
FIT = "scores of images that were learned from say how well they fit, not how good new images get"
# metrics that the details' table shows, by the beginning of their names
DETAILS_SHOWN = (
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

Intervals = Mapping[str, Mapping[str, tuple[float, float]]]  # of the means, by row and name


def scores_table(
    rows: Mapping[str, Mapping[str, float]],
    intervals: Intervals | None = None,
    kinds: Mapping[str, RowKind] | None = None,
) -> str:
    """Return a table of the losses and headline metrics, a line a row.

    The best of each metric is marked with *, among the rows that are not aligned to ground truth.

    intervals  shown below each row
    kinds      of the rows; inferred from their labels by default
    """
    kinds = kinds or {row: infer_row_kind(row) for row in rows}
    fair = [row for row in rows if not kinds[row].is_aligned]
    names = ["loss", *HEADLINE]
    best = {name: _best_value(name, (rows[row][name] for row in fair)) for name in names}
    widths = [max(map(len, rows)), 8, *[18 if intervals else 12] * len(names)]
    lines = [format_line(widths, "", ["images", *(f"{name} " for name in names)])]
    for row, values in rows.items():
        cells = [str(int(values["images"]))]
        for name in names:
            is_best = row in fair and values[name] == best[name]
            value = format_value(name, values.get(name, math.nan))
            cells.append(f"{value}{'*' if is_best else ' '}")
        damaged = int(values.get("damaged", 0))
        remark = f"  ({damaged} damaged samples left out)" if damaged else ""
        lines.append(format_line(widths, row, cells) + remark)
        if intervals and row in intervals:
            spans = [f"{format_interval(name, intervals[row].get(name))} " for name in names]
            lines.append(format_line(widths, "", ["", *spans]))
    return "\n".join(lines)


def _best_value(name: str, values: Iterable[float]) -> float:
    """Return the best of the values that are not NaN; NaN if there is none."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return math.nan
    is_lower_better = name == "loss" or PIXEL_METRICS[name].better == "lower"
    return min(known) if is_lower_better else max(known)


def details_table(rows: Mapping[str, Mapping[str, float]], metrics: Mapping[str, Metric]) -> str:
    """Return a table of the metrics in DETAILS_SHOWN, a line a metric, a column a row.

    All other metrics are only in evaluation.json.
    """
    names = [
        name
        for start in DETAILS_SHOWN
        for name in metrics
        if name.startswith(start)
        and any(not math.isnan(values.get(name, math.nan)) for values in rows.values())
    ]
    heads = [_short_label(row) for row in rows]
    widths = [max(map(len, names), default=0), *(max(12, len(head) + 2) for head in heads)]
    lines = [format_line(widths, "", heads) + "  better"]
    for name in names:
        cells = [format_value(name, values.get(name, math.nan)) for values in rows.values()]
        lines.append(f"{format_line(widths, name, cells)}  {metrics[name].better}")
    return "\n".join(lines)


def groove_table(summaries: Mapping[str, Mapping[str, float]], limit_mm: float) -> str:
    """Return a table of `summarize_grooves`, a line a row; "" where no row has grooves.

    It shows errors, how many grooves were found, how far their depth follows the truth, and the
    decision at the tread limit.
    """
    summaries = {row: summary for row, summary in summaries.items() if summary["grooves"]}
    if not summaries:
        return ""
    widths = [max(map(len, summaries)), 8, 10, 10, 10, 9, 9, 9, 15, 9, 15, 9, 11]
    header = ["number", "bias mm", "MAE mm", "95 % <", "found", "slope", "r"]
    header += ["worn as worn", ", as good", "good as good", ", as worn", "balanced"]
    lines = [
        f"\ngrooves, all images together; limit {limit_mm:g} mm",
        format_line(widths, "", header),
    ]
    lines += [format_line(widths, row, groove_cells(summary)) for row, summary in summaries.items()]
    return "\n".join([*lines, GROOVE_FOOTNOTE])


def groove_cells(summary: Mapping[str, float]) -> list[str]:
    """Return what a table of grooves shows of one row's `summarize_grooves`."""
    cells = [f"{summary['grooves']}"]
    cells += [f"{summary[name]:.2f}" for name in ("bias_mm", "mae_mm", "limit95_mm")]
    cells.append(f"{summary['found']:.0%}")
    cells += [format_ratio(summary[name]) for name in ("slope", "correlation")]
    cells += [f"{summary[name]}" for name in DECISIONS]
    return [*cells, format_ratio(summary["balanced_decision"])]


def _short_label(row: str) -> str:
    return row.replace("untrained, disparity-aligned", "aligned").replace("adapter, epoch", "epoch")


def format_line(widths: Sequence[int], label: str, cells: Iterable[str]) -> str:
    """Return one line of a table: the label flush left, then each cell flush right."""
    padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:]))
    return "".join(chain([f"{label:{widths[0]}}"], padded))


def format_scores(scores: Mapping[str, float]) -> str:
    """Return the loss and the headline metrics in one line."""
    return (
        f"eval loss {scores['loss']:.4f}, AbsRel {scores['abs_rel']:.4f}, delta1"
        f" {scores['delta1']:.3f}, RMSE {scores['rmse_mm']:.1f} mm, MAE {scores['mae_mm']:.1f} mm"
    )


def format_value(name: str, value: float) -> str:
    """Return the value of a metric as a table shows it, "-" if it is NaN."""
    if math.isnan(value):
        return "-"
    has_unit = "mm" in name.partition("@")[0] or name.endswith(("_deg", "_px"))
    return f"{value:.2f}" if has_unit else f"{value:.4f}"


def format_ratio(value: float) -> str:
    """Return a number without unit with two decimals, "-" if it is NaN."""
    return "-" if math.isnan(value) else f"{value:.2f}"


def format_interval(name: str, interval: tuple[float, float] | None) -> str:
    """Return the interval of a metric as a table shows it, "" if there is none."""
    if not interval or math.isnan(interval[0]):
        return ""
    return f"{format_value(name, interval[0])}..{format_value(name, interval[1])}"
