"""What is on record of a run that was evaluated, for its report.

# run.lines is RUN/metrics.jsonl, run.evaluation RUN/evaluation.json
run = told(Path("runs/mine"), "mine")
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from depthdist.models.adapter_record import read_record
from depthdist.runs.run_folder import Run, open_run


@dataclass(frozen=True)
class EvaluatedRun:
    """What is on record of a run: its folder, run.json, what to call it, logged lines, and
    evaluation.json with null as NaN.
    """

    run: Run
    name: str
    lines: list[dict[str, Any]]
    evaluation: dict[str, Any]

    @property
    def row(self) -> str:
        """The adapter's own row."""
        return next(
            row
            for row in self.evaluation["rows"]
            if row.startswith("adapter") and not row.endswith("-aligned")
        )

    def basis(self, row: str) -> str:
        """What a fixed row follows from besides its name and the images: the base model, and how
        its output becomes millimetres.
        """
        names = (
            ("near_mm", "far_mm", "target")
            if row.startswith("constant")
            else self.evaluation["adapter"].keys() - {"step", "epoch", "eval_loss"}
        )
        return json.dumps({name: self.evaluation["adapter"][name] for name in sorted(names)})


def read_evaluated_run(folder: Path, name: str) -> EvaluatedRun:
    """ValueError where the run or its evaluation is missing, or the evaluation is of another
    adapter than best/ now.
    """
    run, path = open_run(folder), folder / "evaluation.json"
    if not path.exists():
        raise ValueError(
            f"{folder}: not evaluated yet; first `python launch/evaluate.py --run {folder}`"
        )
    try:
        evaluation = json.loads(path.read_text())
        evaluation |= {
            name: _numbers(evaluation[name]) for name in ("rows", "intervals", "images", "grooves")
        }
        adapter, _, _, _ = (
            evaluation["adapter"],
            evaluation["settings"]["tread_limit"],
            evaluation["data_sha256"],
            evaluation["device"],
        )
        found = EvaluatedRun(run, name, _logged(folder / "metrics.jsonl"), evaluation)
        found.row
    except (AttributeError, KeyError, StopIteration, TypeError, json.JSONDecodeError) as err:
        raise ValueError(
            f"{path}: not what launch/evaluate.py writes ({type(err).__name__}: {err}); run it"
            " again"
        ) from None
    if adapter != json.loads(json.dumps(asdict(read_record(folder / "best")))):
        raise ValueError(
            f"{path}: of another adapter than the best now (epoch {adapter.get('epoch')}, step"
            f" {adapter.get('step')}); `python launch/evaluate.py --run {folder}` again"
        )
    return found


def _logged(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl.

    One that a crash cut off is left out, none where the file is missing.
    """
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(dict(json.loads(line)))
        except (TypeError, ValueError):
            continue
    return [line for line in lines if "step" in line]


def _numbers(value: Any) -> Any:
    """Where JSON has null for a number that was not finite, NaN."""
    if isinstance(value, dict):
        return {name: _numbers(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_numbers(one) for one in value]
    return math.nan if value is None else value
