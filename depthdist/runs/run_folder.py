"""A run's folder as a later command finds it.

# run.folder / "best" is the adapter, run.data the shards it learned from
run = open_run(Path("runs/NAME"))
# ["monday/first", "tuesday/first", "other"]
labels([Path("monday/first"), Path("tuesday/first"), Path("runs/other")])
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from depthdist.core.settings import field_names, from_dict
from depthdist.data.dataset import DataSettings, open_dataset
from depthdist.losses.settings import LossSettings

RUN_FILE = "run.json"


@dataclass(frozen=True)
class Run:
    """`record` is run.json: settings, and what followed from them."""

    folder: Path
    record: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        return self.record["settings"]

    @property
    def data(self) -> DataSettings:
        """The data it learned from, wherever the command is given."""
        names = field_names(DataSettings) - {"data"}
        given = {n: v for n, v in self.settings.items() if n in names}
        return from_dict(DataSettings, {**given, "data": self.record["derived"]["data"]})

    @property
    def mean_mm(self) -> float | None:
        """Mean depth of what it learned from, mm: on record, else from the data while they are the
        same; None where they are gone or others now.
        """
        facts = self.record["derived"]
        if "mean_mm" in facts:
            return facts["mean_mm"]
        try:
            dataset = open_dataset(replace(self.data, damaged="quarantine"))  # its index is enough
        except ValueError:
            return None
        return (
            dataset.stats("train")["mean_mm"]
            if dataset.sha256 == facts.get("data_sha256")
            else None
        )

    @property
    def loss(self) -> LossSettings:
        return from_dict(
            LossSettings, {n: v for n, v in self.settings.items() if n in field_names(LossSettings)}
        )


def label_runs(folders: Sequence[Path]) -> list[str]:
    """What to call each: its name, after as many of the folders it is in as tell it from the
    others.
    """
    paths = [folder.resolve() for folder in folders]

    def name(path: Path) -> str:
        num = 1
        while num < len(path.parts) and any(
            other != path and other.parts[-num:] == path.parts[-num:] for other in paths
        ):
            num += 1
        return str(Path(*path.parts[-num:]))

    return [name(path) for path in paths]


def earlier_starts(folder: Path) -> list[dict[str, Any]]:
    """When and at which step the run was started so far; none where it begins."""
    path = folder / RUN_FILE
    try:
        return list(json.loads(path.read_text()).get("starts", [])) if path.exists() else []
    except (AttributeError, TypeError, ValueError):
        return []  # a crash left half of it: it is about to be written anew


def open_run(folder: Path) -> Run:
    """The run in `folder`. ValueError where there is none."""
    path = folder / RUN_FILE
    if not path.is_file():
        near = (
            sorted(p.parent for p in folder.parent.glob(f"*/{RUN_FILE}"))
            if folder.parent.is_dir()
            else []
        )
        hint = f"; runs there: {', '.join(map(str, near[-5:]))}" if near else ""
        raise ValueError(
            f"{folder}: no run here: expected a folder with {RUN_FILE}, as launch/train.py"
            f" writes{hint}"
        )
    try:
        record = json.loads(path.read_text())
        run = Run(folder, record)
        if (
            not all(
                isinstance(record[part], dict)
                for part in ("settings", "derived", "deepspeed_config")
            )
            or run.data is None
            or run.loss.problems()
        ):
            raise ValueError("a part of it is not what launch/train.py writes")
        return run
    except (AttributeError, KeyError, TypeError, ValueError) as err:
        raise ValueError(f"{path}: not a run's record ({type(err).__name__}: {err})") from None
