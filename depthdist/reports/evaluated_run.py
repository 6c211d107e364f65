"""The files of a run that was evaluated: its record, logged metrics and evaluation.

run = read_evaluated_run(Path("runs/mine"), "mine")
run.logged                           # the lines of RUN/metrics.jsonl
run.evaluation["rows"][run.row]      # mean metrics of the adapter, from RUN/evaluation.json
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from depthdist.core.files import parse_json
from depthdist.evaluation.row_kinds import RowKind, adapter_row, row_kinds
from depthdist.models.adapter_record import read_record
from depthdist.models.detail import DETAIL_FILE, DETAIL_FOLDER
from depthdist.runs.run_folder import Run, open_run, read_log


@dataclass(frozen=True)
class EvaluatedRun:
    """What is recorded of an evaluated run.

    run         its folder and run.json
    name        its label on the page, unique there
    logged      the lines of metrics.jsonl that have a step
    evaluation  evaluation.json, null read as NaN
    """

    run: Run
    name: str
    logged: list[dict[str, Any]]
    evaluation: dict[str, Any]

    @property
    def row(self) -> str:
        """Return the label of the adapter's own row; raise KeyError if there is none."""
        return adapter_row(self.evaluation)

    def row_settings(self, row: str) -> str:
        """Return what a row without training depends on besides its label and the images, as JSON.

        Two runs share the row if these are equal: the base model, and how its output becomes
        millimeters; of a constant only the latter.
        """
        adapter = self.evaluation["adapter"]
        if row_kinds(self.evaluation)[row] is RowKind.CONSTANT:
            names = {"near_mm", "far_mm", "target"}
        else:
            names = adapter.keys() - {"step", "epoch", "eval_loss"}
        return json.dumps({name: adapter[name] for name in sorted(names)})


def read_evaluated_run(folder: Path, name: str) -> EvaluatedRun:
    """Read a run and its evaluation.

    raises ValueError: one of them is missing or damaged, or the evaluation is of another adapter
    than the one in best/ now
    """
    run = open_run(folder)
    path = folder / "evaluation.json"
    if not path.exists():
        raise ValueError(f"{folder}: not evaluated yet; first `depthdist evaluate --run {folder}`")
    try:
        evaluation = _read_evaluation(path)
        found = EvaluatedRun(run, name, read_log(folder), evaluation)
        _ = found.row
    except (AttributeError, LookupError, TypeError, ValueError) as err:
        raise ValueError(
            f"{path}: not what depthdist evaluate writes ({type(err).__name__}: {err}); run it"
            " again"
        ) from None
    adapter = evaluation["adapter"]
    if adapter != json.loads(json.dumps(asdict(read_record(folder / "best")))):
        raise ValueError(
            f"{path}: of another adapter than the best now (epoch {adapter.get('epoch')}, step"
            f" {adapter.get('step')}); `depthdist evaluate --run {folder}` again"
        )
    stage = folder / DETAIL_FOLDER / DETAIL_FILE
    scored = evaluation.get("detail")  # older files have none
    if scored and (not stage.exists() or scored != parse_json(stage.read_bytes())):
        raise ValueError(
            f"{path}: of another detail stage than {stage.parent} now; `depthdist evaluate --run"
            f" {folder}` again"
        )
    return found


def _read_evaluation(path: Path) -> dict[str, Any]:
    """Return evaluation.json with NaN for null, and raise KeyError if a needed part is missing."""
    evaluation: dict[str, Any] = parse_json(path.read_bytes())
    for name in ("rows", "intervals", "images", "grooves"):
        evaluation[name] = _null_to_nan(evaluation[name])
    for name in ("adapter", "settings", "data_sha256", "device"):
        if name not in evaluation:
            raise KeyError(name)
    if not isinstance(evaluation["adapter"], dict):
        raise TypeError("adapter is not an object")
    if "tread_limit" not in evaluation["settings"]:
        raise KeyError("tread_limit")
    return evaluation


def _null_to_nan(value: Any) -> Any:
    """Return parsed JSON with NaN for null, which stands for numbers that were not finite."""
    if isinstance(value, dict):
        return {name: _null_to_nan(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_null_to_nan(one) for one in value]
    return math.nan if value is None else value


def is_of_this_model(run: EvaluatedRun, hashes: dict[str, str]) -> bool:
    """Return whether the weights that were measured are those in the run's folder now."""
    paths = {run.run.folder / name: sha256 for name, sha256 in hashes.items()}
    return all(
        path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256
        for path, sha256 in paths.items()
    )
