"""Tell where a run is no better than the same depth everywhere, and what to try.

    line = describe_no_better(rows["constant 1542 mm"], rows["adapter, epoch 3"], facts)
    # None, or "no better than a constant depth: ...; try ..."

Training, the evaluation and the report print the same sentence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from depthdist.evaluation.row_kinds import RowKind, row_kinds
from depthdist.runs.run_folder import Run, read_log

FELL = 0.02  # of the eval loss in the last fifth of a run: less is taken for convergence
FEW = 20  # training captures: fewer than these are the first thing to change


class RunFacts(NamedTuple):
    """What is known of a run when it is judged.

    settings   as run.json has them
    num_train  training samples
    losses     eval loss of every evaluation, oldest first
    """

    settings: Mapping[str, Any]
    num_train: int
    losses: Sequence[float]


def describe_no_better(
    constant: Mapping[str, float], adapter: Mapping[str, float], facts: RunFacts
) -> str | None:
    """Return a sentence where the adapter's RMSE is not below the constant depth's, else None.

    constant, adapter  mean scores of the two rows, of the same images
    """
    ours_mm, its_mm = adapter["rmse_mm"], constant["rmse_mm"]
    if ours_mm < its_mm or math.isnan(its_mm) or facts.settings.get("relative"):
        return None
    return (
        f"the adapter is no better than a constant depth: RMSE {ours_mm:.1f} mm, and {its_mm:.1f}"
        f" mm for the same depth everywhere; what to try: {'; '.join(advice(facts))}"
    )


def advice(facts: RunFacts) -> list[str]:
    """Return what to try for a run that learned too little, the most promising first."""
    settings = facts.settings
    lr = settings["lr"]
    lines = []
    if not settings.get("calibrate", True):
        lines.append("the default recipe, which begins with the output fitted to the depths")
    if still_falls(facts.losses):
        lines.append(f"more --epochs than {settings['epochs']}, for the eval loss still fell")
    if lr < 5e-4:
        lines.append(f"--recipe near, or a higher --lr than {lr:g}")
    if facts.num_train < FEW:
        lines.append(f"more captures than {facts.num_train}")
    place = settings["data"][0]
    lines.append(f"a look at the data (depthdist report data {place})")
    lines.append("--overfit 4, which tells wrong wiring from hard data")
    return lines


def still_falls(losses: Sequence[float]) -> bool:
    """Return whether the best loss of the last fifth is 2 % or more below the best before."""
    count = max(1, len(losses) // 5)
    before = losses[:-count]
    return bool(before) and min(losses[-count:]) < (1 - FELL) * min(before)


def verdict(run: Run, evaluation: Mapping[str, Any]) -> str | None:
    """Return `describe_no_better` of an evaluation.json, None where it lacks one of the rows."""
    by_kind = {kind: row for row, kind in row_kinds(dict(evaluation)).items()}
    if not {RowKind.CONSTANT, RowKind.ADAPTER} <= by_kind.keys():
        return None
    logged = [line.get("eval/loss") for line in read_log(run.folder)]
    facts = RunFacts(
        settings=run.settings,
        num_train=run.record["derived"]["train_samples"],
        losses=[loss for loss in logged if loss is not None],
    )
    rows = evaluation["rows"]
    return describe_no_better(
        rows[by_kind[RowKind.CONSTANT]], rows[by_kind[RowKind.ADAPTER]], facts
    )
