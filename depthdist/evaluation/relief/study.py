"""The figures of a study of relief: by row over all captures, half the depth, and the goals.

    rows = summarize_rows(measured, limit_mm=1.6)         # {"plain": {"mae_mm": 5.5, ...}, ...}
    half = compare_half(grooves, grooves_of_half)         # the same scene, grooves half as deep
    goals = judge_goals(rows, "detail")

Rows are refinements of the run (`plain`, `detail` ...), CAMERA, and MEAN, who knows where grooves
are and always says the mean depth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from depthdist.core.files import parse_json
from depthdist.evaluation.metrics.grooves import Groove, summarize_grooves, summarize_mean_depth
from depthdist.evaluation.relief.measures import EDGES, GroovesByRow, MeasuredCapture
from depthdist.evaluation.scoring import mean

PLAIN = "plain"
MEAN = "says_mean"
RELIEF_FILE = "relief.json"
FORMAT = 1  # of RELIEF_FILE; a change of its meaning counts it up
# share of the true depth below which a mean predicted depth is no relief, so that nothing can be
# said of what it follows
LEAST_RELIEF = 0.1
LEAST_SHARE = 0.005  # of plain: a multiple of less would pass by chance
GROOVE_VALUES = (
    "grooves",
    "mae_mm",
    "bias_mm",
    "found",
    "balanced_decision",
    "slope",
    "correlation",
)
PIXEL_VALUES = (*EDGES, "rmse_mm", "rmse_near_mm")


class Goal(NamedTuple):
    """What a refinement should reach: a value of its row on one side of a limit.

    factor   the limit, or with of_plain how many times plain's value the limit is
    highest  the value is to be at most the limit; otherwise at least
    """

    name: str
    text: str
    factor: float
    highest: bool
    of_plain: bool


GOALS = (
    Goal("mae_mm", "groove MAE, mm", 0.5, highest=True, of_plain=True),
    Goal("found", "grooves found", 0.6, highest=False, of_plain=False),
    Goal("slope", "slope of predicted on true depth", 0.5, highest=False, of_plain=False),
    Goal("painted_mm", "relief of painted treads, mm", 1.0, highest=True, of_plain=False),
    Goal("edge_f1@2mm", "edge F1, 2 mm", 1.5, highest=False, of_plain=True),
    Goal("edge_f1@4mm", "edge F1, 4 mm", 1.5, highest=False, of_plain=True),
    Goal("edge_f1@8mm", "edge F1, 8 mm", 1.5, highest=False, of_plain=True),
    Goal("edge_f1@16mm", "edge F1, 16 mm", 1.0, highest=False, of_plain=True),
    Goal("rmse_mm", "RMSE, mm", 0.88, highest=True, of_plain=True),
)


def summarize_rows(
    measured: Mapping[str, MeasuredCapture], limit_mm: float
) -> dict[str, dict[str, float]]:
    """Return the values of each row over captures, given by stem.

    GROOVE_VALUES    over all grooves, as in metrics.grooves.summarize_grooves
    follows          share of the mean predicted relief that follows true depth: slope x mean true
                     depth / mean predicted depth; NaN where hardly any relief is drawn
    painted          how many painted grooves; painted_mm, painted_bias_mm: mean of |depth| and of
                     depth that is drawn there
    PIXEL_VALUES     means over captures
    """
    rows = {}
    for row in next(iter(measured.values())).values:
        grooves = [groove for one in measured.values() for groove in one.grooves[row]]
        painted = [groove.depths[1] for one in measured.values() for groove in one.painted[row]]
        rows[row] = {
            **_groove_values(grooves, limit_mm),
            "painted": len(painted),
            "painted_mm": mean([abs(depth_mm) for depth_mm in painted]),
            "painted_bias_mm": mean(painted),
            **{
                name: mean([one.values[row][name] for one in measured.values()])
                for name in PIXEL_VALUES
            },
        }
    by_image = {stem: one.grooves[PLAIN] for stem, one in measured.items()}
    knows_where = summarize_mean_depth(by_image, limit_mm)
    rows[MEAN] = {name: knows_where[name] for name in GROOVE_VALUES}
    return rows


def _groove_values(grooves: list[Groove], limit_mm: float) -> dict[str, float]:
    summary = summarize_grooves(grooves, limit_mm)
    true_mm = mean([groove.depths[0] for groove in grooves])
    pred_mm = mean([groove.depths[1] for groove in grooves])
    has_relief = pred_mm > LEAST_RELIEF * true_mm
    return {
        **{name: summary[name] for name in GROOVE_VALUES},
        "follows": summary["slope"] * true_mm / pred_mm if has_relief else math.nan,
    }


def compare_half(
    whole: Mapping[str, GroovesByRow], half: Mapping[str, GroovesByRow]
) -> dict[str, dict[str, float]]:
    """Return how each row's depths change where the same grooves are less deep.

    whole, half  grooves by row of both renderings of a capture, by its stem

    grooves      how many were measured in both
    true_mm, true_half_mm, pred_mm, pred_half_mm  mean depths
    true_ratio, pred_ratio  half / whole of them
    follows      share of the predicted relief that follows true depth: (1 - pred_ratio) /
                 (1 - true_ratio); 1: it shrinks as the grooves do, 0: not at all. pred_ratio and
                 this are NaN where hardly any relief is drawn
    """
    rows: dict[str, dict[str, float]] = {}
    for row in next(iter(whole.values())):
        pairs = []
        for stem, by_row in whole.items():
            others = {groove.id: groove for groove in half[stem][row]}
            pairs += [
                (*groove.depths, *others[groove.id].depths)
                for groove in by_row[row]
                if groove.id in others
            ]
        depths = np.array(pairs).reshape(-1, 4)
        true, pred, true_half, pred_half = (mean(column.tolist()) for column in depths.T)
        true_ratio = true_half / true
        pred_ratio = pred_half / pred if pred > LEAST_RELIEF * true else math.nan
        rows[row] = {
            "grooves": len(pairs),
            "true_mm": true,
            "true_half_mm": true_half,
            "pred_mm": pred,
            "pred_half_mm": pred_half,
            "true_ratio": true_ratio,
            "pred_ratio": pred_ratio,
            "follows": (1 - pred_ratio) / (1 - true_ratio) if true_ratio < 1 else math.nan,
        }
    return rows


def judge_goals(rows: Mapping[str, Mapping[str, float]], judged: str) -> list[dict[str, Any]]:
    """Return each of GOALS with its figures, and whether the row `judged` reaches it.

    passed  None where there was nothing to measure, or plain has next to nothing to compare with
    """
    found = []
    for goal in GOALS:
        value = rows[judged][goal.name]
        plain = rows[PLAIN][goal.name]
        limit = goal.factor * plain if goal.of_plain else goal.factor
        is_known = not math.isnan(value) and not math.isnan(limit)
        if goal.of_plain and not goal.highest:
            is_known = is_known and plain >= LEAST_SHARE
        is_reached = value <= limit if goal.highest else value >= limit
        found.append(
            {**goal._asdict(), "value": value, "plain": plain, "limit": limit}
            | {"passed": is_reached if is_known else None}
        )
    return found


def read_relief(run: Path) -> dict[str, Any] | None:
    """Return RUN/relief.json with NaN for null in its figures; None where there is none.

    raises ValueError where it is something else, or of another format
    """
    path = run / RELIEF_FILE
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = dict(parse_json(path.read_bytes()))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, expected {FORMAT}")
        parts = [content["rows"], *([content["half"]["rows"]] if content["half"] else [])]
        for values in (*(row for part in parts for row in part.values()), *content["goals"]):
            numbers = {n: math.nan for n, v in values.items() if v is None and n != "passed"}
            values.update(numbers)
        return content
    except (AttributeError, LookupError, TypeError, ValueError) as err:
        raise ValueError(
            f"{path}: not what depthdist relief writes ({type(err).__name__}: {err}); run it again,"
            " or remove the file"
        ) from None
