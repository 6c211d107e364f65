"""The settings of depthdist train: what is learned and kept, the recipes, what must fit together.

    settings = Settings(*parse(HELP, *GROUPS, together=check, presets=("recipe", RECIPES)))

Nothing here imports torch, so that `--help` and wrong settings are answered at once.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from depthdist.core.environment import is_beside_rank_0, world_size
from depthdist.core.settings import as_dict, field_names, flag_name, range_problems, typed_flag
from depthdist.data.augmentation import AugmentSettings
from depthdist.data.capture_folders import FolderSettings
from depthdist.data.dataset import Dataset, DataSettings, ReadSettings
from depthdist.data.few_samples import FewSamples
from depthdist.data.sample_order import TrainPlan
from depthdist.losses.settings import LossSettings
from depthdist.models.settings import LoraSettings, ModelSettings
from depthdist.runs.log_services import log_to_problems
from depthdist.runs.run_folder import RUN_FILE, open_run
from depthdist.runs.state_files import states
from depthdist.shards.remote_cache import CacheSettings
from depthdist.training.completion.settings import CompletionSettings
from depthdist.training.deepspeed_config import EngineSettings
from depthdist.training.deepspeed_sections import settle_sections
from depthdist.training.detail.settings import DetailSettings
from depthdist.training.schedule import ScheduleSettings
from depthdist.training.stage_settings import StageSettings

MAX_COUNT = 2**63

RECIPES: dict[str, dict[str, Any]] = {
    "standard": {},
    "document": {"calibrate": False},
    "near": {"lr": 5e-4},
}
"""What each --recipe sets; other flags win over it."""
OVERFIT = {"lr": 1e-3, "epochs": 20, "lora_dropout": 0.0}
"""What --overfit sets; --config and other flags win over it."""
OVERFIT_STEPS = 25  # optimizer steps of an epoch


@dataclass(frozen=True)
class TrainSettings:
    """Training."""

    run: Path | None = None
    "Folder of the run, made where it is missing. Default: runs/<time>."
    recipe: Literal["standard", "document", "near"] = "standard"
    """Defaults of the other settings. standard: the published recipe's numbers, begun with
    --calibrate. document: the published recipe to the letter, without it. near: standard at ten
    times the learning rate. A run that goes on keeps the recipe that it began with."""
    epochs: int = 15
    "Times that every training sample is seen."
    lr: float = 5e-5
    "Highest learning rate of LoRA."
    decoder_lr: float | None = None
    "Highest learning rate of what trains beside LoRA. Default: --lr."
    calibrate: bool = True
    """Begin with the scale and shift that fit the untrained model to at most 256 training samples;
    they go into the adapter. Not with --relative."""
    overfit: int = 0
    """Learn so many training captures by heart, without augmentation, and score those: ends as soon
    as half of their pixels are within 5 mm, or says which part does not learn. 0: off."""
    seed: int = 0
    "Of the adapter's start, the order of the samples, augmentation and dropout."

    def problems(self) -> list[str]:
        """Return what is wrong with the values, a line each."""
        decoder_lr = self.decoder_lr
        found = range_problems(
            self,
            ("epochs", self.epochs >= 1, ">= 1"),
            ("overfit", self.overfit >= 0, ">= 0"),
            ("seed", 0 <= self.seed < MAX_COUNT, "0 .. 2**63 - 1"),
            ("lr", 0 < self.lr < math.inf, "> 0"),
            ("decoder_lr", decoder_lr is None or 0 < decoder_lr < math.inf, "> 0"),
        )
        if self.run is not None and is_beside_rank_0():
            found += unwritable_run(self.run)
        return found


@dataclass(frozen=True)
class KeepSettings:
    """Keeping, going on, and looking."""

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
    """Validation samples (without any, training samples) drawn at each evaluation, the same ones
    every time."""
    log_to: tuple[str, ...] = ()
    """Other trackers that get the log too, beside TensorBoard: wandb, mlflow, trackio. Each is a
    package of its own."""
    verify_first: bool = False
    """Read every byte of the local shards before training, with all cores, and stop at once where
    one is damaged, not in a later epoch."""
    dry_run: bool = False
    "Print everything that follows from the settings, and stop."

    def problems(self) -> list[str]:
        """Return what is wrong with the values, a line each."""
        found = range_problems(
            self,
            ("keep", 1 <= self.keep < MAX_COUNT, ">= 1"),
            ("log_every", 1 <= self.log_every < MAX_COUNT, ">= 1"),
            ("watch_every", 0 <= self.watch_every < MAX_COUNT, ">= 0"),
            ("pictures", 0 <= self.pictures < MAX_COUNT, ">= 0"),
        )
        found += log_to_problems(self.log_to)
        try:
            _ = self.interval
        except ValueError as err:
            found.append(str(err))
        named = self.resume in ("auto", "never")
        if not named and is_beside_rank_0() and not states(Path(self.resume) / "last"):
            found.append(
                f"--resume {self.resume}: expected auto, never, or the folder of a run that has a"
                " last/ state"
            )
        return found

    @property
    def interval(self) -> tuple[int, float]:
        """Return --save-every as (steps, seconds), of which one is 0."""
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
    FolderSettings,
    DetailSettings,
    CompletionSettings,
    StageSettings,
)
FREE_TO_CHANGE = {
    *("run", "recipe", "epochs", "patience", "data"),
    *field_names(KeepSettings, EngineSettings, ReadSettings, CacheSettings),
    *field_names(DetailSettings, CompletionSettings, StageSettings),
}
"""What a resumed run may change.

That the data and DeepSpeed's file hold the same as before is compared by content.
"""


@dataclass(frozen=True)
class Settings:
    """All settings of a run, a group a field."""

    data: DataSettings
    augment: AugmentSettings
    model: ModelSettings
    lora: LoraSettings
    loss: LossSettings
    train: TrainSettings
    schedule: ScheduleSettings
    keep: KeepSettings
    engine: EngineSettings
    folder: FolderSettings = field(default_factory=FolderSettings)
    detail: DetailSettings = field(default_factory=DetailSettings)
    completion: CompletionSettings = field(default_factory=CompletionSettings)
    stages: StageSettings = field(default_factory=StageSettings)
    captures: tuple[str, ...] = ()
    "What --data named, where it was a folder of captures: `data` has its shards then."

    def __post_init__(self) -> None:
        """Settle what follows from learning captures by heart: no augmentation, its own goal."""
        if self.train.overfit:
            object.__setattr__(self, "augment", AugmentSettings())
            object.__setattr__(self, "schedule", replace(self.schedule, best_by="median_mm"))

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as one flat dict that `--config` reads back."""
        values = as_dict(*filter(is_dataclass, vars(self).values()))
        return {**values, "data": list(self.captures)} if self.captures else values

    def open_data(self) -> Dataset:
        """Open the dataset, or those few samples of it that are learned by heart.

        raises ValueError where it cannot be opened or has fewer
        """
        dataset = self.data.opened
        if not self.train.overfit:
            return dataset
        num_shown = OVERFIT_STEPS * self.engine.batch
        return FewSamples.of(dataset, self.train.overfit, num_shown)

    @property
    def raw_folder(self) -> Path | None:
        """Where full-size images are, if not in the shards: --raw, or the captures."""
        if self.stages.raw is not None or len(self.captures) != 1:
            return self.stages.raw
        return Path(self.captures[0])

    @property
    def resumed_run(self) -> Path | None:
        """The run that would be resumed, if it is there."""
        named = self.keep.resume in ("auto", "never")
        return self.train.run if named else Path(self.keep.resume)


def defaults_of_run(given: dict[str, Any]) -> dict[str, Any]:
    """Return what other settings than a recipe bring: --overfit, and a run that goes on.

    given  settings by name, of `--config` and the flags, as they were typed
    """
    few = OVERFIT if str(given.get("overfit", 0)) != "0" else {}
    return {**few, **recipe_of_resumed_run(given)}


def recipe_of_resumed_run(given: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe of the run that goes on, {} where none does or a recipe is given.

    given  settings by name, of `--config` and the flags, as they were typed
    """
    run, resume = given.get("run"), given.get("resume", "auto")
    source = run if resume in ("auto", "never") else resume
    if not source or given.keys() & {"recipe", "calibrate"}:
        return {}
    try:
        settings = open_run(Path(source)).settings
    except (OSError, ValueError):  # check_together says what is wrong with it
        return {}
    return {name: settings[name] for name in ("recipe", "calibrate") if name in settings}


def check_together(settings: Settings, on_device: bool = True) -> list[str]:
    """Return what is wrong with settings that are valid one by one.

    on_device  also check what this machine's accelerator can run, which imports torch
    """
    found = _problems_of_choices(settings)
    if settings.data.captures:
        return found + _problems_of_batch(settings.engine)  # called again with their shards
    if not settings.captures:
        found += settings.folder.problems_with_shards(",".join(settings.data.data))
    try:
        dataset = settings.open_data()
        found += _problems_without_validation(settings, dataset)
        found += _problems_of_length(settings, dataset)
        found += _problems_of_stages(settings, dataset)
        ds_config = settings.engine.resolved()[0] if on_device else None
    except ValueError as err:
        return [*found, str(err)]
    stage = (ds_config or settings.engine.read()).get("zero_optimization", {}).get("stage", 0)
    if settings.schedule.ema and stage == 3:
        found.append("--ema with ZeRO 3: the weights lie in pieces; use stage 0, 1 or 2")
    source = settings.resumed_run
    if found or source is None or not is_beside_rank_0() or not (source / RUN_FILE).exists():
        return found
    return _changes_since(source, settings, ds_config, dataset)


def _problems_of_choices(settings: Settings) -> list[str]:
    found = []
    if settings.model.target == "linear" and "silog" in settings.loss.weights():
        found.append(
            "--loss has silog, --target is linear: silog is defined on inverse depth here; expected"
            " --target inverse, or other losses"
        )
    run, resume = settings.train.run, settings.keep.resume
    is_here = is_beside_rank_0() and run is not None and (run / RUN_FILE).exists()
    if resume != "auto" and is_here:
        way_out = "--resume PATH starts a new one"
        if resume == "never":
            way_out = "take another name, or --resume auto to go on"
        found.append(f"--run {run}: a run is there already; {way_out}")
    return found


def _problems_without_validation(settings: Settings, dataset: Dataset) -> list[str]:
    """Return which settings need validation images, where the dataset has none."""
    if dataset.has("val"):
        return []
    schedule = settings.schedule
    none = f"{dataset.place} has no validation images (split val)"
    found = []
    if schedule.patience:
        found.append(
            f"--patience is {schedule.patience}, and {none} that would say when to stop: leave it"
            " out"
        )
    if schedule.best_by != "loss":
        found.append(
            f"--best-by is {schedule.best_by}, and {none} to measure it on: leave it out; the last"
            " weights are kept"
        )
    return found


def _problems_of_batch(engine: EngineSettings) -> list[str]:
    """Return why the ranks cannot share a batch, before it is known how many samples there are."""
    try:
        TrainPlan(1, engine.batch, engine.micro_batches(world_size())[-1], world_size())
    except ValueError as err:
        return [str(err)]
    return []


def _problems_of_length(settings: Settings, dataset: Dataset) -> list[str]:
    """Return what is wrong with the number of steps.

    raises ValueError where the batch does not fit the ranks
    """
    num_samples, ranks = dataset.order(settings.train.seed).num_samples, world_size()
    batch, micro_batches = settings.engine.batch, settings.engine.micro_batches(ranks)
    plan = TrainPlan(num_samples, batch, micro_batches[-1], ranks)
    if ranks > num_samples:
        each = micro_batches[-1]
        fitting = [n for n in range(1, num_samples + 1) if batch % (n * each) == 0]
        return [
            f"{ranks} ranks, and an epoch has {num_samples} training samples:"
            f" {ranks - num_samples} ranks would have nothing to learn from; expected at most"
            f" {num_samples} ranks, of which {', '.join(map(str, fitting[-4:])) or 'none'} would do"
            f" with a batch of {batch}"
        ]
    total = plan.steps_per_epoch * settings.train.epochs
    warmup = settings.schedule.warmup
    if warmup < total:
        return []
    return [f"--warmup is {warmup}: expected fewer than the run's {total} optimizer steps"]


def _problems_of_stages(settings: Settings, dataset: Dataset) -> list[str]:
    """Return what is wrong with --detail and --completion.

    raises ValueError where the data has no images at the camera's size
    """
    detail, completion = settings.detail, settings.completion
    samples = {}
    if detail.detail:
        samples["detail_crops"] = detail.detail_crops
    if completion.completion:
        samples["completion_images"] = completion.completion_images
    if not samples:
        return []
    from depthdist.data.full_size import FullSizeReader  # imports torch

    found = []
    if settings.train.overfit:
        stage = "--detail" if detail.detail else "--completion"
        found.append(f"{stage} with --overfit: leave one of them out")
    FullSizeReader(dataset, settings.raw_folder, settings.stages.detail_memory)
    found += [
        f"{flag_name(name)} is {number}: expected a multiple of the {world_size()} ranks"
        for name, number in samples.items()
        if number % world_size()
    ]
    if detail.detail and detail.detail_crop > min(dataset.depth_size):
        found.append(
            f"--detail-crop is {detail.detail_crop}: expected at most {min(dataset.depth_size)},"
            f" the images of {dataset.place} are {dataset.depth_size}"
        )
    num_train = dataset.count("train")
    if settings.stages.detail_folds > num_train:
        found.append(
            f"--detail-folds is {settings.stages.detail_folds}: expected at most the {num_train}"
            " training images"
        )
    return found


def _changes_since(
    source: Path, settings: Settings, ds_config: dict[str, Any] | None, dataset: Dataset
) -> list[str]:
    """Return what differs from the run in `source` and may not.

    ds_config  DeepSpeed's, as this device runs it; None: it is not compared
    """
    record = open_run(source).record
    # not in the record of a run of an older version
    most = settings.schedule.val_images
    all_are_scored = not (dataset.has("val") and 0 < most < dataset.count("val"))
    scored = most if all_are_scored else 0  # as before there was a limit
    older = {**as_dict(FolderSettings()), "overfit": 0, "val_images": scored}
    found = []
    for name, new in settings.as_dict().items():
        old = record["settings"].get(name, older.get(name))
        if name not in FREE_TO_CHANGE and old != new:
            found.append(
                f"{flag_name(name)} is {new}, but the run in {source} began with {old}: give"
                f" {typed_flag(name, old)}, or begin anew in another --run"
            )
    if ds_config is not None:
        before, _ = settle_sections(record["deepspeed_config"])  # as the new one is
        for key in sorted(before.keys() | ds_config.keys()):
            old, new = before.get(key), ds_config.get(key)
            if key == "zero_optimization" or new == old:  # a state fits every stage
                continue
            if key == "train_batch_size":
                found.append(
                    f"the global batch (train_batch_size) is {new}, but the run in {source} began"
                    f" with {old}: give --global-batch {old}, or begin anew in another --run"
                )
            else:
                found.append(
                    f"{settings.engine.deepspeed}: {key} is {new}, but the run in {source} began"
                    f" with {old}"
                )
    factor, before_factor = settings.engine.lr_factor, record["derived"].get("lr_factor", 1)
    if factor != before_factor:
        found.append(
            f"the learning rates are multiplied by {factor:.4g} (--lr-scaling"
            f" {settings.engine.lr_scaling}), but the run in {source} began with"
            f" {before_factor:.4g}: give its --global-batch and --lr-scaling, or begin anew in"
            " another --run"
        )
    if record["derived"]["data_sha256"] != dataset.sha256:
        found.append(
            f"--data {dataset.place}: the data changed since the run in {source} began; begin anew"
            " in another --run"
        )
    return found


def unwritable_run(run: Path) -> list[str]:
    """Return why a run cannot be written there, if so."""
    if run.exists() and not run.is_dir():
        return [f"--run {run}: is a file; expected a folder or a new name"]
    parent = next(p for p in (run, *run.absolute().parents) if p.exists())
    virtual = str(parent.resolve()).startswith(("/proc", "/sys"))
    if not parent.is_dir() or not os.access(parent, os.W_OK) or virtual:
        return [f"--run {run}: {parent} cannot be written"]
    return []
