"""Tables and sentences of a study of relief, for the terminal and for reports."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from depthdist.core.text_table import format_table
from depthdist.evaluation.relief.measures import CAMERA, EDGES
from depthdist.evaluation.relief.study import MEAN, PLAIN
from depthdist.evaluation.tables import SAYS_MEAN, format_ratio

LABELS = {CAMERA: "the camera's own depth", MEAN: SAYS_MEAN}
EDGE_HEADS = [name.removeprefix("edge_f1@").replace("mm", " mm") for name in EDGES]
HEADER = ["", "grooves", "MAE mm", "bias mm", "found", "balanced", "slope", "r", "painted mm"]
HEADER += [f"F1 {EDGE_HEADS[0]}", *EDGE_HEADS[1:], "RMSE mm", "< 1500", "s an image"]
HALF_HEADER = ["", "grooves", "true mm", "shallower", "ratio", "predicted mm", "shallower", "ratio"]
HALF_HEADER += ["follows depth"]
FOOTNOTE = """\
grooves, RMSE: against exact depth where the camera measured; edge F1: against the camera's depth
balanced: right side of the tread limit, mean of the shares among worn and among good, 0.5 is chance
slope, r: of predicted on true depth over all grooves
painted: mean |relief| that is drawn on treads that are painted on without any"""
PAINTED_WARNING = "A tread that is painted on without relief may be drawn, too"


def relief_lines(rows: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Return the lines of the table below HEADER, a line a row."""
    decimals = {"mae_mm": 2, "bias_mm": 2, "found": 2, "balanced_decision": 2, "slope": 2}
    decimals |= {"correlation": 2, "painted_mm": 2, **dict.fromkeys(EDGES, 3)}
    decimals |= {"rmse_mm": 1, "rmse_near_mm": 1, "seconds": 2}
    return [
        [
            LABELS.get(row, row),
            f"{values['grooves']}",
            *(_number(values.get(name, math.nan), digits) for name, digits in decimals.items()),
        ]
        for row, values in rows.items()
    ]


def half_lines(rows: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Return the lines of the table below HALF_HEADER, a line a row."""
    names = ("true_mm", "true_half_mm", "true_ratio", "pred_mm", "pred_half_mm", "pred_ratio")
    return [
        [
            LABELS.get(row, row),
            f"{values['grooves']}",
            *(format_ratio(values[name]) for name in names),
            _percent(values["follows"]),
        ]
        for row, values in rows.items()
    ]


def describe_relief(content: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know of the relief that the judged row draws, in sentences.

    content  of relief.json
    """
    row = content["judged"]
    values = content["rows"][row]
    found = []
    if math.isnan(values["follows"]):
        found.append(f"{row} draws hardly any relief in the grooves.")
    else:
        share = _percent(min(values["follows"], 1.0))  # above 1 differences are exaggerated
        text = (
            f"{share} of the relief that {row} draws follows the grooves' true depth (slope"
            f" {format_ratio(values['slope'])}, correlation"
            f" {format_ratio(values['correlation'])}, {values['grooves']} grooves)"
        )
        half = content["half"]
        if half and not math.isnan(half["rows"][row]["follows"]):
            of_half = half["rows"][row]
            text += (
                f"; in the same scenes with grooves {of_half['true_ratio']:.2f} times as deep, it"
                f" is {_percent(of_half['follows'])}"
            )
        rest = " The rest is what grooves of that look have on average."
        found.append(f"{text}.{rest if values['follows'] < 1 else ''}")
    if values["painted"]:
        found.append(
            f"{PAINTED_WARNING}: here {values['painted_mm']:.2f} mm on average, over"
            f" {values['painted']} painted grooves."
        )
    else:
        found.append(f"{PAINTED_WARNING}; these captures have none to measure it.")
    return found


def goal_lines(goals: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each goal: passed, missed or not judged, with both figures."""
    verdicts = {True: "passed", False: "missed", None: "not judged"}
    lines = []
    for goal in goals:
        bound = "at most" if goal["highest"] else "at least"
        digits = 3 if goal["name"] in EDGES else 2
        limit = _number(goal["limit"], digits)
        if goal["of_plain"]:
            limit += f" ({goal['factor']:g} x {PLAIN}'s {_number(goal['plain'], digits)})"
        value = _number(goal["value"], digits)
        lines.append(f"{verdicts[goal['passed']]:<12}  {goal['text']}: {value}, {bound} {limit}")
    return lines


def format_relief(content: Mapping[str, Any]) -> str:
    """Return all tables and sentences for the terminal; content of relief.json."""
    parts = [format_table(HEADER, relief_lines(content["rows"])), FOOTNOTE]
    if content["half"]:
        table = format_table(HALF_HEADER, half_lines(content["half"]["rows"]))
        parts.append(f"\nthe same scenes with shallower grooves, those measured in both\n{table}")
    parts.append("\n" + "\n".join(describe_relief(content)))
    if content["goals"]:
        lines = "\n".join(goal_lines(content["goals"]))
        parts.append(f"\ngoals of {content['judged']}\n{lines}")
    return "\n".join(parts)


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0%}"
