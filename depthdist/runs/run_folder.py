"""The folder of a run, as later commands find it.

# run.folder / "best" is the adapter, run.data the shards it was trained on
run = open_run(Path("runs/NAME"))
# ["monday/first", "tuesday/first", "other"]
label_runs([Path("monday/first"), Path("tuesday/first"), Path("runs/other")])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from depthdist.core.files import parse_json
from depthdist.core.settings import expand_user, field_names, from_dict

if TYPE_CHECKING:
    from depthdist.captures.read_options import ReadOptions
    from depthdist.data.capture_folders import FolderSettings
    from depthdist.data.dataset import DataSettings
    from depthdist.losses.settings import LossSettings

T = TypeVar("T")
RUN_FILE = "run.json"


@dataclass(frozen=True)
class Run:
    """A run: `record` is the content of its run.json."""

    folder: Path
    record: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings it was started with."""
        return dict(self.record["settings"])

    @property
    def data(self) -> DataSettings:
        """The data it was trained on, with absolute paths."""
        from depthdist.data.dataset import DataSettings

        return self._group(DataSettings, data=self.record["derived"]["data"])

    @property
    def folder_settings(self) -> FolderSettings:
        """How captures were sharded where it was trained on a folder of them; else the defaults."""
        from depthdist.data.capture_folders import FolderSettings

        return self._group(FolderSettings)

    @property
    def loss(self) -> LossSettings:
        """The loss it was trained with."""
        from depthdist.losses.settings import LossSettings

        return self._group(LossSettings)

    def _group(self, group: type[T], **others: Any) -> T:
        """Return one group of the settings, with some replaced."""
        names = field_names(group)
        given = {name: value for name, value in self.settings.items() if name in names}
        return from_dict(group, {**given, **others})

    @property
    def mean_mm(self) -> float | None:
        """Mean depth of the data it was trained on, mm.

        It is on record, or else computed from the data; None if they are missing or have changed.
        """
        from depthdist.data.dataset import open_dataset

        derived = self.record["derived"]
        if "mean_mm" in derived:
            mean_mm: float | None = derived["mean_mm"]
            return mean_mm
        try:
            dataset = open_dataset(replace(self.data, damaged="quarantine"))  # its index is enough
        except ValueError:
            return None
        if dataset.sha256 != derived.get("data_sha256"):
            return None
        return float(dataset.stats("train")["mean_mm"])


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl that have a step; [] if it is missing.

    A line that a crash cut off is left out.
    """
    path = folder / "metrics.jsonl"
    lines = []
    for text in path.read_bytes().splitlines() if path.exists() else []:
        try:
            line = dict(parse_json(text))
        except (TypeError, ValueError):
            continue
        if "step" in line:
            lines.append(line)
    return lines


def label_runs(folders: Sequence[Path]) -> list[str]:
    """Return a label for each run: its folder's name, after as many parents as tell them apart."""
    paths = [folder.resolve() for folder in folders]

    def label(path: Path) -> str:
        num = 1
        while num < len(path.parts) and any(
            other != path and other.parts[-num:] == path.parts[-num:] for other in paths
        ):
            num += 1
        return str(Path(*path.parts[-num:]))

    return [label(path) for path in paths]


def earlier_starts(folder: Path) -> list[dict[str, Any]]:
    """Return when and at which step the run was started so far; [] for a new run."""
    path = folder / RUN_FILE
    try:
        return list(parse_json(path.read_bytes()).get("starts", [])) if path.exists() else []
    except (AttributeError, TypeError, ValueError):
        return []  # a crash left half of it; it is about to be rewritten


def open_run(folder: Path) -> Run:
    """Return the run in `folder`, and raise ValueError if there is none."""
    path = folder / RUN_FILE
    if not path.is_file():
        raise ValueError(
            f"{folder}: no run here: expected a folder with {RUN_FILE}, as depthdist train"
            f" writes{_runs_beside(folder)}"
        )
    try:
        run = Run(folder, parse_json(path.read_bytes()))
        _check_record(run)
        return run
    except (AttributeError, LookupError, TypeError, ValueError) as err:
        raise ValueError(f"{path}: not a run's record ({type(err).__name__}: {err})") from None


def read_options(name: str) -> ReadOptions:
    """Return how captures were read for the run that `name`, or its best/, is; else defaults."""
    from depthdist.captures.read_options import NO_OPTIONS

    folder = expand_user(name)
    for place in (folder, folder.parent):
        if (place / RUN_FILE).is_file():
            return open_run(place).folder_settings.read_options
    return NO_OPTIONS


def _check_record(run: Run) -> None:
    """Raise an exception if run.json is not what depthdist train writes."""
    for part in ("settings", "derived", "deepspeed_config"):
        if not isinstance(run.record[part], dict):
            raise ValueError(f"{part} is not what depthdist train writes")
    _ = run.data  # raises ValueError or TypeError if it is not
    if run.loss.problems():
        raise ValueError("the settings of the loss are not what depthdist train writes")


def _runs_beside(folder: Path) -> str:
    """Return a hint at the last five runs in the same parent folder, "" if there is none."""
    if not folder.parent.is_dir():
        return ""
    runs = sorted(path.parent for path in folder.parent.glob(f"*/{RUN_FILE}"))
    return f"; runs there: {', '.join(map(str, runs[-5:]))}" if runs else ""
