"""The figures of a study of holes: every way of filling, how right sigma is, and the goals.

    rows = summarize(sums)                    # {"natural": {"harmonic": {"all": {...}}}, ...}
    sigma = judge_sigma(samples)              # shares inside, sparsification, AUSE
    goals = judge_goals(rows, sigma)

Natural holes are the camera's own, where exact depth is known (built-in captures); punched ones are
measured pixels that were hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from depthdist.core.files import parse_json
from depthdist.evaluation.holes.measures import Sums
from depthdist.evaluation.metrics.sigma import REFUSED, ause, shares_inside, sparsification

HOLES_FILE = "holes.json"
FORMAT = 1  # of HOLES_FILE; a change of its meaning counts it up
COMPLETION = "completion stage"
KINDS = ("natural", "punched")
REFUSED_SHARE = 0.2
NUM_RANGES = 4  # of depth, with as many pixels each
Rows = dict[str, dict[str, dict[str, dict[str, float]]]]  # kind, way, part, value


class SigmaSample(NamedTuple):
    """Filled pixels of one capture, (N,) each, mm.

    error  |filled - truth|;  sigma  of the completion stage;  depth  filled
    mirror  disagreement of the predictions of the image and of its mirror image
    """

    error: np.ndarray
    sigma: np.ndarray
    mirror: np.ndarray
    depth: np.ndarray


def summarize(sums: Mapping[str, Sequence[Mapping[str, Mapping[str, Sums]]]]) -> Rows:
    """Return the means over all pixels by kind of hole, way and part.

    sums  by kind of hole, for each capture, by way, by part
    """
    rows: Rows = {}
    for kind, captures in sums.items():
        total: dict[str, dict[str, Sums]] = {}
        for by_way in captures:
            for way, by_part in by_way.items():
                known = total.setdefault(way, {})
                for part, value in by_part.items():
                    known[part] = known[part].plus(value) if part in known else value
        if total:
            rows[kind] = {
                way: {part: value.means() for part, value in by_part.items() if value.pixels}
                for way, by_part in total.items()
            }
    return rows


def judge_sigma(samples: Sequence[SigmaSample]) -> dict[str, Any]:
    """Return how right sigma is over the pixels of all captures."""
    error, sigma, mirror, depth = (np.concatenate(values) for values in zip(*samples))
    one, two = shares_inside(error, sigma)
    edges = np.quantile(depth, np.linspace(0, 1, NUM_RANGES + 1))
    place = np.clip(np.searchsorted(edges, depth, side="right") - 1, 0, NUM_RANGES - 1)
    ranges = []
    for number in range(NUM_RANGES):
        here = place == number
        first, second = shares_inside(error[here], sigma[here])
        ranges.append(
            {
                "from_mm": float(edges[number]),
                "to_mm": float(edges[number + 1]),
                "inside_1_sigma": first,
                "inside_2_sigma": second,
            }
        )
    curves = {
        "completion": sparsification(error, sigma),
        "mirror": sparsification(error, mirror),
        "best": sparsification(error, error),
    }
    after = float(np.interp(REFUSED_SHARE, REFUSED, curves["completion"]))
    return {
        "pixels": len(error),
        "inside_1_sigma": one,
        "inside_2_sigma": two,
        "by_depth": ranges,
        "mae_mm": float(error.mean()),
        "mae_after_refusing_mm": after,
        "ause": {"completion": ause(error, sigma), "mirror": ause(error, mirror)},
        "refused": REFUSED.tolist(),
        "curves_mm": {name: curve.tolist() for name, curve in curves.items()},
        "reliability": reliability(error, sigma),
    }


def reliability(error: np.ndarray, sigma: np.ndarray, num: int = 10) -> list[dict[str, float]]:
    """Return sigma and the error that 68.3 % stay below, of groups of alike sigma, mm."""
    groups = np.array_split(np.argsort(sigma, kind="stable"), num)
    return [
        {
            "sigma_mm": float(np.median(sigma[group])),
            "error_mm": float(np.quantile(error[group], 0.6827)),
        }
        for group in groups
        if len(group)
    ]


class Goal(NamedTuple):
    """A goal of the completion stage, with what was found."""

    text: str
    found: float
    limit: str
    passed: bool


def judge_goals(rows: Rows, sigma: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each goal and whether it is passed, of natural holes where they can be measured."""
    kind = KINDS[0] if KINDS[0] in rows else KINDS[1]
    of_kind = rows[kind]
    goals = []
    shares = {"interior": 0.6, "all": 0.7} if kind == "natural" else {"all": 0.8}
    for part, share in shares.items():
        if part in of_kind[COMPLETION]:
            mae, harmonic = (of_kind[way][part]["mae_mm"] for way in (COMPLETION, "harmonic"))
            limit = share * harmonic
            goals.append(
                Goal(
                    f"MAE in {part} {kind} holes, mm",
                    mae,
                    f"at most {limit:.1f} ({share:g} x harmonic's {harmonic:.1f})",
                    mae <= limit,
                )
            )
    judged = sigma[kind]
    for name, low, high in (("inside_1_sigma", 0.63, 0.73), ("inside_2_sigma", 0.93, 0.97)):
        value = judged[name]
        text = f"share of filled pixels {name.replace('_', ' ')}"
        goals.append(Goal(text, value, f"{low:g} .. {high:g}", low <= value <= high))
    half = judged["mae_mm"] / 2
    after = judged["mae_after_refusing_mm"]
    goals.append(
        Goal(
            "MAE when the least sure 20 % are refused, mm",
            after,
            f"at most {half:.1f} (half of {judged['mae_mm']:.1f})",
            after <= half,
        )
    )
    return [goal._asdict() for goal in goals]


def read_holes(run: Path) -> dict[str, Any] | None:
    """Return what `depthdist holes` found of a run, None where it was not measured."""
    path = run / HOLES_FILE
    if not path.exists():
        return None
    content: dict[str, Any] = parse_json(path.read_bytes())
    return content if content.get("format") == FORMAT else None
