"""The settings of launch/train.py: what is learned and kept, the recipes, and what must fit
together.

settings = Settings(*config.parse(HELP, *GROUPS, together=check, presets=("recipe", RECIPES)))
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from depthdist.core.settings import as_dict, field_names
from depthdist.data.augmentation import AugmentSettings
from depthdist.data.dataset import DataSettings, ReadSettings, open_dataset
from depthdist.data.sample_order import TrainPlan
from depthdist.distributed.process_group import world_size
from depthdist.losses import LossSettings
from depthdist.models.base_model import ModelSettings
from depthdist.models.lora import LoraSettings
from depthdist.runs.run_folder import RUN_FILE, open_run
from depthdist.runs.state_files import states
from depthdist.shards.remote_cache import CacheSettings
from depthdist.training.deepspeed_config import EngineSettings
from depthdist.training.schedule import ScheduleSettings

RECIPES: dict[str, dict[str, Any]] = {"document": {}, "near": {"calibrate": True, "lr": 5e-4}}
"""What each --recipe sets; other flags win over it."""


@dataclass(frozen=True)
class TrainSettings:
    """Training"""

    run: Path | None = None
    "Folder of the run, made where it is missing. Default: runs/<time>."
    recipe: Literal["document", "near"] = "document"
    """Defaults of the other settings. document: the published recipe's. near: those, begun with
    --calibrate and at ten times the learning rate."""
    epochs: int = 15
    "Times that every training sample is seen."
    lr: float = 5e-5
    "Highest learning rate of LoRA."
    decoder_lr: float | None = None
    "Highest learning rate of what trains beside LoRA. Default: --lr."
    calibrate: bool = False
    """Begin with the scale and shift that fit the untrained model to the training set; they go
    into the adapter."""
    seed: int = 0
    "Of the adapter's start, the order of the samples, augmentation and dropout."

    def problems(self) -> list[str]:
        found = [f"--epochs is {self.epochs}: expected >= 1"] if self.epochs < 1 else []
        found += (
            [f"--seed is {self.seed}: expected 0 .. 2**63 - 1"]
            if not 0 <= self.seed < 2**63
            else []
        )
        for name, value in (("lr", self.lr), ("decoder-lr", self.decoder_lr)):
            if value is not None and not 0 < value < math.inf:
                found.append(f"--{name} is {value}: expected > 0")
        return found + ([] if self.run is None else unwritable_run(self.run))


@dataclass(frozen=True)
class KeepSettings:
    """Keeping, going on, and looking"""

    resume: str = "auto"
    """auto: go on where RUN stopped. never: refuse a RUN that is begun. A run's folder: go on
    from its last state, in RUN."""
    save_every: str = "10min"
    """Keep all that a restart needs after so many optimizer steps (50) or so much time (10min),
    and after every epoch."""
    keep: int = 2
    "How many of the last states are kept."
    log_every: int = 1
    "Optimizer steps from one logged step to the next."
    watch_every: int = 50
    """Optimizer steps from one look at what the precision costs to the next: a validation sample
    in float32 beside it; 0: never."""
    pictures: int = 4
    "Validation samples drawn at each evaluation, the same ones every time."
    dry_run: bool = False
    "Print everything that follows from the settings, and stop."

    def problems(self) -> list[str]:
        limits = (
            ("keep", self.keep, 1),
            ("log-every", self.log_every, 1),
            ("watch-every", self.watch_every, 0),
            ("pictures", self.pictures, 0),
        )
        found = [
            f"--{name} is {value}: expected >= {least}"
            for name, value, least in limits
            if not least <= value < 2**63
        ]
        try:
            self.interval
        except ValueError as err:
            found.append(str(err))
        if self.resume not in ("auto", "never") and not states(Path(self.resume) / "last"):
            found.append(
                f"--resume {self.resume}: expected auto, never, or the folder of a run that has a"
                " last/ state"
            )
        return found

    @property
    def interval(self) -> tuple[int, float]:
        """(steps, seconds) of --save-every, of which one is 0."""
        text = self.save_every.strip()
        number = text.removesuffix("min")
        try:
            value = float(number) if number != text else int(number)
        except ValueError:
            value = 0
        if not 0 < value < 2**63:
            raise ValueError(
                f"--save-every is {self.save_every}: expected optimizer steps, such as 50, or"
                " minutes, such as 10min"
            )
        return (0, 60.0 * value) if number != text else (int(value), 0.0)


GROUPS = (
    DataSettings,
    AugmentSettings,
    ModelSettings,
    LoraSettings,
    LossSettings,
    TrainSettings,
    ScheduleSettings,
    KeepSettings,
    EngineSettings,
)
# what a resumed run may change; that data and DeepSpeed's file hold the same as before is compared
# by content
FREE_TO_CHANGE = {
    "run",
    "recipe",
    "epochs",
    "patience",
    "data",
    *field_names(KeepSettings, EngineSettings, ReadSettings, CacheSettings),
}


@dataclass(frozen=True)
class Settings:
    """All of them, a group a field."""

    data: DataSettings
    augment: AugmentSettings
    model: ModelSettings
    lora: LoraSettings
    loss: LossSettings
    train: TrainSettings
    schedule: ScheduleSettings
    keep: KeepSettings
    engine: EngineSettings

    def as_dict(self) -> dict[str, Any]:
        return as_dict(*vars(self).values())


def check_together(settings: Settings) -> list[str]:
    """What is wrong with settings that are right one by one."""
    run, resume, found = settings.train.run, settings.keep.resume, []
    if settings.model.target == "linear" and "silog" in settings.loss.weights():
        found.append(
            "--loss has silog, --target is linear: silog is defined on inverse depth here; expected"
            " --target inverse, or other losses"
        )
    if resume != "auto" and run is not None and (run / RUN_FILE).exists():
        found.append(
            f"--run {run}: a run is there already;"
            f" {'take another name, or --resume auto to go on' if resume == 'never' else '--resume PATH starts a new one'}"
        )
    try:
        dataset = open_dataset(settings.data)
        dataset.count("val")
        for micro_batch in settings.engine.micro_batches(world_size()):
            plan = TrainPlan(
                dataset.order(settings.train.seed).num_samples,
                settings.engine.global_batch,
                micro_batch,
                world_size(),
            )
        if settings.schedule.warmup >= (total := plan.steps_per_epoch * settings.train.epochs):
            found.append(
                f"--warmup is {settings.schedule.warmup}: expected fewer than the run's {total}"
                " optimizer steps"
            )
        ds_config, _ = settings.engine.resolved()
        if settings.schedule.ema and ds_config.get("zero_optimization", {}).get("stage", 0) == 3:
            found.append("--ema with ZeRO 3: the weights lie in pieces; use stage 0, 1 or 2")
    except ValueError as err:
        return [*found, str(err)]
    source = run if resume in ("auto", "never") else Path(resume)
    if found or source is None or not (source / RUN_FILE).exists():
        return found
    begun, now = open_run(source).record, settings.as_dict()
    changed = {
        n: (begun["settings"].get(n), v)
        for n, v in now.items()
        if n not in FREE_TO_CHANGE and begun["settings"].get(n) != v
    }
    found = [
        f"--{n.replace('_', '-')} is {new}, but the run in {source} began with {old}: give that, or"
        " begin anew in another --run"
        for n, (old, new) in changed.items()
    ]
    differing = sorted(
        key
        for key in begun["deepspeed_config"].keys() | ds_config.keys()
        if begun["deepspeed_config"].get(key) != ds_config.get(key)
    )
    differing = [key for key in differing if key != "zero_optimization"]  # a state fits every stage
    found += [
        f"{settings.engine.deepspeed}: {key} is {ds_config.get(key)}, but the run in {source} began"
        f" with {begun['deepspeed_config'].get(key)}"
        for key in differing
    ]
    if begun["derived"]["data_sha256"] != dataset.sha256:
        found.append(
            f"--data {dataset.place}: the data changed since the run in {source} began; begin anew"
            " in another --run"
        )
    return found


def unwritable_run(run: Path) -> list[str]:
    """Why a run cannot be written there."""
    if run.exists() and not run.is_dir():
        return [f"--run {run}: is a file; expected a folder or a new name"]
    parent = next(p for p in (run, *run.absolute().parents) if p.exists())
    if (
        not parent.is_dir()
        or not os.access(parent, os.W_OK)
        or str(parent.resolve()).startswith(("/proc", "/sys"))
    ):
        return [f"--run {run}: {parent} cannot be written"]
    return []
