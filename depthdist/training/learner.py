"""Build the model, and the engine that trains it."""

from __future__ import annotations

from typing import Any

from depthdist.distributed.process_group import World, broadcast_from_rank_0
from depthdist.geometry.patches import PATCH_SIZE
from depthdist.models.base_model import load_base
from depthdist.models.depth_model import DepthModel
from depthdist.models.lora import add_lora, trained_groups
from depthdist.training.calibration import fit_calibration
from depthdist.training.deepspeed_config import precision
from depthdist.training.engine import Engine
from depthdist.training.micro_batch import choose_micro_batch
from depthdist.training.parts import Learner, TrainingData
from depthdist.training.precision_check import Float32Check
from depthdist.training.settings import Settings
from depthdist.training.train_state import TrainState
from depthdist.training.weight_average import Ema

FEW_PATCHES = 1000  # up to so many tokens, plain attention is faster on a CPU in bf16


def build_model(
    settings: Settings, data: TrainingData, world: World, state: TrainState
) -> DepthModel:
    """Return the base model, calibrated unless left out, with what trains in it."""
    base = load_base(settings.model.model)
    base.upsampling = settings.model.upsampling
    if settings.train.calibrate and not settings.loss.relative:
        if not state.line:
            line = fit_calibration(base, data.loader, data.depth_range, world)
            state.line = list(broadcast_from_rank_0(line))
        scale, shift, _ = state.line
        base.cpu().rescale(scale, shift)
    model = add_lora(base, settings.lora, settings.train.seed)
    if settings.engine.checkpointing:
        model.checkpoint_activations()
    return model


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
        sample = data.loader.samples(data.watched_split, [0]).to(world.device)
        check = Float32Check(model, sample, data.depth_range)
    lr, factor = settings.train.lr, settings.engine.lr_factor
    rates = {"lora": factor * lr, "decoder": factor * (settings.train.decoder_lr or lr)}
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
