"""Build the parts of a run: what is learned from, the model, and the engine that trains it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from depthdist.data.dataset import Dataset, open_dataset
from depthdist.data.loader import Loader
from depthdist.data.sample_order import TrainPlan
from depthdist.distributed.process_group import World, broadcast_from_rank_0
from depthdist.geometry.patches import PATCH_SIZE
from depthdist.models.adapter_record import ADAPTER_FILE
from depthdist.models.base_model import load_base
from depthdist.models.depth_model import DepthModel
from depthdist.models.lora import add_lora, trained_groups
from depthdist.runs.tracker import record_damage
from depthdist.runs.training_state import load_state
from depthdist.training.calibration import fit_calibration
from depthdist.training.deepspeed_config import precision
from depthdist.training.engine import Engine
from depthdist.training.micro_batch import find_micro_batch, fits_in_memory
from depthdist.training.parts import Learner, TrainingData
from depthdist.training.precision_check import Float32Check
from depthdist.training.run_facts import training_bounds
from depthdist.training.settings import Settings
from depthdist.training.train_state import TrainState
from depthdist.training.weight_average import Ema

FEW_PATCHES = 1000  # up to so many tokens, plain attention is faster on a CPU in bf16


@dataclass
class Saved:
    """What a run resumes from; empty where it begins.

    tensors  weights, optimizer moments and averages, by name
    engine   the engine's numbers beside them
    """

    state: TrainState = field(default_factory=TrainState)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)


def read_saved(run: Path, resume: str, world: World) -> Saved:
    """Return what to resume from: `run`, another run, or nothing. Rank 0's disk decides."""
    source = run if resume in ("auto", "never") else Path(resume)
    found = None
    if world.rank == 0 and resume != "never":
        found = load_state(source / "last", _print_warning)
    tensors, values = broadcast_from_rank_0(found[:2] if found else ({}, {}))
    if not values:
        return Saved()
    if found:
        train = values["train"]
        print(
            f"going on     from {found[2]}: step {train['step']}, {train['epoch']} epochs finished,"
            f" {len(tensors)} tensors",
            flush=True,
        )
        if source != run and (source / "best").exists():
            shutil.copytree(source / "best", run / "best", dirs_exist_ok=True)
    return Saved(TrainState(**values["train"]), tensors, values["engine"])


def _print_warning(line: str) -> None:
    print(f"WARNING      {line}", flush=True)


def open_training_data(settings: Settings, world: World) -> Dataset:
    """Open the dataset; raise ValueError where this rank sees other data than rank 0."""
    dataset = open_dataset(settings.data)
    if broadcast_from_rank_0(dataset.sha256) != dataset.sha256:
        raise ValueError(
            f"--data {dataset.place}: rank {world.rank} sees other data than rank 0; every node"
            " needs the same shards"
        )
    return dataset


def build_data(dataset: Dataset, settings: Settings, world: World, run: Path) -> TrainingData:
    """Return the training data with a loader, and a plan for the first micro-batch to try."""
    depth_range = training_bounds(dataset)._replace(scale=settings.model.target)
    loader = Loader(
        dataset,
        settings.data,
        settings.augment,
        world.device,
        lambda damage: record_damage(damage, run),
    )
    micro_batch = settings.engine.micro_batches(world.size)[0]
    return TrainingData(
        dataset, loader, make_plan(dataset, settings, micro_batch, world.size), depth_range
    )


def make_plan(dataset: Dataset, settings: Settings, micro_batch: int, num_ranks: int) -> TrainPlan:
    """Return how the training samples are cut into global batches, ranks and micro-batches."""
    num_samples = dataset.order(settings.train.seed).num_samples
    return TrainPlan(num_samples, settings.engine.global_batch, micro_batch, num_ranks)


def build_model(
    settings: Settings, data: TrainingData, world: World, state: TrainState
) -> DepthModel:
    """Return the base model, calibrated if asked for, with what trains in it."""
    base = load_base(settings.model.model)
    base.upsampling = settings.model.upsampling
    if settings.train.calibrate:
        if not state.line:
            line = fit_calibration(base, data.loader, data.depth_range, world)
            state.line = list(broadcast_from_rank_0(line))
        scale, shift, _ = state.line
        base.cpu().rescale(scale, shift)
    model = add_lora(base, settings.lora, settings.train.seed)
    if settings.engine.checkpointing:
        model.checkpoint_activations()
    return model


def choose_micro_batch(
    settings: Settings, data: TrainingData, model: DepthModel, world: World, precision_name: str
) -> None:
    """With --micro-batch auto, put the largest one that fits on every rank into the plan."""
    if settings.engine.micro_batch != "auto":
        return
    dataset = data.dataset

    def fits(micro_batch: int) -> bool:
        return fits_in_memory(
            model,
            micro_batch,
            dataset.size,
            dataset.depth_size,
            settings.loss,
            data.depth_range,
            world.device,
            precision_name,
        )

    micro_batch = find_micro_batch(settings.engine.micro_batches(world.size), fits)
    data.plan = make_plan(dataset, settings, micro_batch, world.size)


def build_learner(
    settings: Settings,
    data: TrainingData,
    model: DepthModel,
    world: World,
    ds_config: dict[str, Any],
) -> Learner:
    """Return the model in a DeepSpeed engine, with what watches and averages it."""
    choose_micro_batch(settings, data, model, world, precision(ds_config))
    check = None
    if settings.keep.watch_every and precision(ds_config) != "fp32":
        sample = data.loader.samples("val", [0]).to(world.device)
        check = Float32Check(model, sample, data.depth_range)
    lr = settings.train.lr
    rates = {"lora": lr, "decoder": settings.train.decoder_lr or lr}
    groups = [(parameters, rates[name]) for name, parameters in trained_groups(model).items()]
    engine = Engine(model, ds_config, groups, world, data.plan.micro_batch)
    height, width = data.dataset.size
    few_patches = height * width <= FEW_PATCHES * PATCH_SIZE**2
    if world.device.type == "cpu" and engine.precision == "bf16" and few_patches:
        model.use_eager_attention()
    if settings.engine.compile:
        model.compile()
    ema = Ema(settings.schedule.ema) if settings.schedule.ema else None
    return Learner(model, engine, ema, check)


def restore(learner: Learner, saved: Saved, world: World, run: Path) -> None:
    """Put saved weights, moments and averages back.

    raises ValueError if the best adapter so far is gone
    """
    if saved.engine:
        weights = {n: t for n, t in saved.tensors.items() if not n.startswith("ema/")}
        learner.engine.restore(weights, saved.engine)
        if learner.ema:
            averages = {
                name.removeprefix("ema/"): tensor.to(world.device)
                for name, tensor in saved.tensors.items()
                if name.startswith("ema/")
            }
            learner.ema.load(averages)
    if saved.state.best_epoch and not broadcast_from_rank_0((run / "best" / ADAPTER_FILE).exists()):
        raise ValueError(
            f"{run}/best: the best adapter so far is gone; remove {run} to begin anew, or put it"
            " back"
        )
