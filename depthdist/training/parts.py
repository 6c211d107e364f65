"""The parts of one training run. Every rank has them; rank 0 writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from depthdist.data.dataset import Dataset
from depthdist.data.loader import Loader
from depthdist.data.sample_order import TrainPlan
from depthdist.distributed.process_group import World
from depthdist.distributed.shared_folder import SharedFolder
from depthdist.geometry.depth_range import DepthRange
from depthdist.models.depth_model import DepthModel
from depthdist.runs.tracker import Tracker
from depthdist.training.engine import Engine
from depthdist.training.precision_check import Float32Check
from depthdist.training.settings import Settings
from depthdist.training.train_state import TrainState
from depthdist.training.weight_average import Ema


@dataclass
class TrainingData:
    """What is learned from, and how it is cut into batches.

    depth_range  nearest and farthest valid Z of the training set, and how depth is normalized
    """

    dataset: Dataset
    loader: Loader
    plan: TrainPlan
    depth_range: DepthRange

    @property
    def has_validation(self) -> bool:
        """Whether there are validation images; without them the last weights are the best."""
        return self.dataset.has("val")

    @property
    def watched_split(self) -> str:
        """The split whose images are looked at while training."""
        return "val" if self.has_validation else "train"


@dataclass
class Learner:
    """The model and what trains it; `ema` and `check` where the settings ask for them."""

    model: DepthModel
    engine: Engine
    ema: Ema | None
    check: Float32Check | None

    def weights_to_keep(self) -> dict[str, Tensor]:
        """Return the fp32 weights that are evaluated and kept. Every rank must call it."""
        return self.ema.weights if self.ema else self.engine.masters()


@dataclass
class Output:
    """Where a run writes: its folder, which rank 0 has, and its log."""

    place: SharedFolder
    tracker: Tracker

    @property
    def folder(self) -> Path:
        """The run's folder, or this machine's copy of what it has of it."""
        return self.place.path

    def warn(self, line: str | None) -> None:
        """Print a warning, if there is one."""
        if line:
            self.tracker.say(f"WARNING      {line}")


@dataclass
class Run:
    """One training run at work."""

    settings: Settings
    world: World
    data: TrainingData
    learner: Learner
    state: TrainState
    output: Output

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.data.plan.steps_per_epoch * self.settings.train.epochs

    @property
    def is_over(self) -> bool:
        """Whether all epochs are done, or all that is asked for is learned, or nothing more is.

        The latter is when there was no new best for --patience epochs.
        """
        state, patience = self.state, self.settings.schedule.patience
        if state.is_learned or state.epoch >= self.settings.train.epochs:
            return True
        epochs_without_best = state.epoch - state.best_epoch
        return bool(state.best_epoch) and 0 < patience <= epochs_without_best
