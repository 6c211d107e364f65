"""DeepSpeed as it is used here: the engine, its settings, fp32 master weights, saved state. (world.py is its ranks.)

    settings = EngineSettings(Path("ds_configs/fp16.json"))
    config, remarks = settings.resolved(world.device)          # the dict DeepSpeed gets, and what had to change
    engine = Engine(model, config, lr=5e-5, schedule=lambda step: 1.0, world=world)
    engine.backward(loss); engine.step()
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depthdist.world import World, one_line  # first: it tells DeepSpeed which device there is

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, nn

from depthdist.config import hidden

DEEPSPEED_VERSION = deepspeed.__version__
OURS = {"scheduler": "the schedule is linear decay over the run", "gradient_accumulation_steps": "it follows from train_batch_size, micro-batch and ranks"}


@dataclass(frozen=True)
class EngineSettings:
    """Hardware (precision, batch, optimizer and ZeRO stand in the DeepSpeed file)"""

    deepspeed: Path = Path("ds_configs/fp16.json")
    "DeepSpeed's own JSON; train_batch_size in it is the global batch, whatever the number of GPUs."
    local_rank: int = hidden(-1)
    "Set by the launcher."

    def problems(self) -> list[str]:
        try:
            config = self.read()
        except ValueError as err:
            return [str(err)]
        objects = ("optimizer", "fp16", "bf16", "zero_optimization")
        found = [f"{self.deepspeed}: {key} is {config[key]!r}; expected an object" for key in objects if not isinstance(config.get(key, {}), dict)]
        if found:
            return found
        found = [f"{self.deepspeed}: {key} is set; leave it out: {why}" for key, why in OURS.items() if key in config]
        for key in ("train_batch_size", "train_micro_batch_size_per_gpu"):
            if type(config.get(key, 1)) is not int or config.get(key, 1) < 1:
                found.append(f"{self.deepspeed}: {key} is {config[key]!r}; expected a whole number >= 1")
        clip, stage = config.get("gradient_clipping", 0.0), config.get("zero_optimization", {}).get("stage", 0)
        if type(clip) not in (int, float) or not clip >= 0:
            found.append(f"{self.deepspeed}: gradient_clipping is {clip!r}; expected a number >= 0")
        if type(stage) is not int or stage not in range(4):
            found.append(f"{self.deepspeed}: zero_optimization.stage is {stage!r}; expected 0, 1, 2 or 3")
        enabled = {name: config.get(name, {}).get("enabled", False) for name in ("fp16", "bf16")}
        found += [f"{self.deepspeed}: {name}.enabled is {value!r}; expected true or false" for name, value in enabled.items() if not isinstance(value, bool)]
        if all(value is True for value in enabled.values()):
            found.append(f"{self.deepspeed}: fp16 and bf16 are both enabled; expected one of them, or none")
        if "train_batch_size" not in config:
            found.append(f"{self.deepspeed}: train_batch_size is missing: the global batch, 8 in the recipe")
        if "lr" in (config.get("optimizer", {}).get("params") or {}):
            found.append(f"{self.deepspeed}: optimizer.params.lr is set; leave it out: the learning rate is --lr")
        if "type" not in config.get("optimizer", {}):
            found.append(f"{self.deepspeed}: optimizer.type is missing; see ds_configs/fp16.json")
        return found

    def read(self) -> dict[str, Any]:
        """The file's content. ValueError when it cannot be read as a JSON object."""
        try:
            config = json.loads(self.deepspeed.read_text())
        except OSError as err:
            raise ValueError(f"--deepspeed {self.deepspeed}: {err.strerror}") from None
        except ValueError as err:
            raise ValueError(f"--deepspeed {self.deepspeed}: not JSON ({err})") from None
        if not isinstance(config, dict):
            raise ValueError(f"--deepspeed {self.deepspeed}: expected a JSON object, found {type(config).__name__}")
        return config

    @property
    def global_batch(self) -> int:
        return self.read()["train_batch_size"]

    @property
    def micro_batch(self) -> int:
        return self.read().get("train_micro_batch_size_per_gpu", 1)

    def resolved(self) -> tuple[dict[str, Any], list[str]]:
        """The configuration that this device can run, and one remark for each thing that had to change."""
        config, remarks = self.read(), []
        if precision(config) == "fp16" and not get_accelerator().is_fp16_supported():
            config["fp16"] = {"enabled": False}
            remarks.append(f"FP16 IS NOT SUPPORTED BY THIS DEVICE ({get_accelerator().device_name()}): this run trains in FP32")
        if precision(config) == "bf16" and not get_accelerator().is_bf16_supported():
            raise ValueError(f"{self.deepspeed}: this device has no bf16; use ds_configs/fp16.json")
        return config, remarks


def precision(config: dict[str, Any]) -> str:
    """"fp16", "bf16" or "fp32", as a DeepSpeed configuration has it."""
    return next((name for name in ("fp16", "bf16") if config.get(name, {}).get("enabled")), "fp32")


class Engine:
    """A DeepSpeed engine around `model`: what trains is what requires a gradient.

    keep_float32  frozen parameters that must not be rounded to the engine's precision
    """

    def __init__(self, model: nn.Module, config: dict[str, Any], lr: float, schedule: Callable[[int], float], world: World, keep_float32: Iterable[nn.Parameter] = ()):
        config = copy.deepcopy(config)
        config["optimizer"]["params"] = {**(config["optimizer"].get("params") or {}), "lr": lr}
        config.setdefault("steps_per_print", 10**9)
        kept = [(p, p.data.clone()) for p in keep_float32]
        self.world, self.model = world, model
        self.precision, self.plain_norm = precision(config), 0.0
        try:
            self.deepspeed, self.optimizer, _, self.scheduler = deepspeed.initialize(
                model=model,
                model_parameters=[p for p in model.parameters() if p.requires_grad],
                config=config,
                lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, schedule),
            )
        except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as err:  # each of its checks has its own
            raise ValueError(f"--deepspeed: DeepSpeed refuses this configuration: {one_line(err)}") from err
        if config.get("zero_optimization", {}).get("stage", 0) < 3:  # stage 3 holds them in pieces, already rounded
            for parameter, data in kept:
                parameter.data = data.to(world.device)

    def forward(self, rgb: Tensor) -> Tensor:
        return self.deepspeed(rgb)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one micro-batch; DeepSpeed divides by the micro-batches of a step and averages over ranks."""
        self.deepspeed.backward(loss)

    def step(self) -> bool:
        """End a micro-batch. Whether an optimizer step was taken with it (not where the loss scale overflowed)."""
        before = self.deepspeed.skipped_steps
        boundary = self.deepspeed.is_gradient_accumulation_boundary()
        if boundary and not hasattr(self.optimizer, "_global_grad_norm"):  # a plain torch optimizer keeps no norm
            grads = [p.grad for p in self.model.parameters() if p.grad is not None]
            self.plain_norm = float(torch.nn.utils.get_total_norm(grads))
        self.deepspeed.step()
        return boundary and self.deepspeed.skipped_steps == before

    @property
    def lr(self) -> float:
        return self.scheduler.get_last_lr()[0]

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied by so that small gradients survive fp16; 1 in the other precisions."""
        if self.precision != "fp16":
            return 1.0
        return float(getattr(self.optimizer, "loss_scale_config", self.optimizer).cur_scale)

    @property
    def grad_norm(self) -> float:
        """Norm of the last step's gradient, before clipping."""
        norm = self.deepspeed.get_global_grad_norm()
        return self.plain_norm if norm is None else float(norm)

    @property
    def skipped_steps(self) -> int:
        return self.deepspeed.skipped_steps

    def masters(self) -> dict[str, Tensor]:
        """The trained weights in fp32, by `model.named_parameters()` name. Every rank must call it (ZeRO gathers)."""
        flat = _masters_by_id(self.optimizer)
        found = {}
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            master = flat.get(id(parameter))
            if master is None:
                master = safe_get_full_fp32_param(parameter) if hasattr(parameter, "_hp_mapping") or hasattr(parameter, "ds_id") else parameter
            assert master is not None and master.dtype == torch.float32, f"{name} has no fp32 master"
            found[name] = master.detach()
        return found

    def save(self, folder: Path, tag: str, state: dict[str, Any]) -> None:
        """Everything to go on from, without the frozen model, under folder/tag; every rank takes part.

        raises ValueError when it cannot be written, for example on a full disk: what `latest` names is whole still
        """
        try:
            self.deepspeed.save_checkpoint(str(folder), tag=tag, client_state={"depthdist": state}, exclude_frozen_parameters=True)
        except (RuntimeError, OSError) as err:  # torch's writer raises RuntimeError for a full disk
            raise ValueError(f"{folder}/{tag}: the training state cannot be written (is the disk full?): {one_line(err)}") from err

    def load(self, folder: Path, tag: str) -> dict[str, Any]:
        """Go on from `save`; returns its state. ValueError when the checkpoint does not fit this model."""
        frozen = {name for name, p in self.model.named_parameters() if not p.requires_grad}
        try:
            _, client = self.deepspeed.load_checkpoint(
                str(folder), tag=tag, load_module_strict=False, custom_load_fn=lambda src, dst: _load_trained(src, dst, frozen)
            )
            state = client["depthdist"]
        except Exception as err:  # a file missing, cut off, or of another model: torch, pickle and DeepSpeed each raise their own
            hint = f"remove {folder} and the run begins anew"
            raise ValueError(f"{folder}/{tag}: this state cannot be gone on from; {hint} ({one_line(err)})") from err
        schedule = self.scheduler  # the saved rate is of the saved run's length; this run may be longer
        schedule._last_lr = [base * rate(schedule.last_epoch) for base, rate in zip(schedule.base_lrs, schedule.lr_lambdas)]
        for group, lr in zip(schedule.optimizer.param_groups, schedule._last_lr):
            group["lr"] = lr
        return state


def _load_trained(src: dict[str, Tensor], dst: nn.Module, frozen: set[str]) -> None:
    missing, unexpected = dst.load_state_dict(src, strict=False)
    lost = set(missing) - frozen
    if lost or unexpected:
        raise RuntimeError(f"lacks {sorted(lost)[:2]}, has {sorted(unexpected)[:2]} that this model has not")


def _masters_by_id(optimizer: Any) -> dict[int, Tensor]:
    """fp32 masters of DeepSpeed's fp16 optimizers without ZeRO, by id of the half-precision parameter."""
    if hasattr(optimizer, "fp32_groups"):
        return {id(p): m for group, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups) for p, m in zip(group, masters)}
    if hasattr(optimizer, "fp32_groups_flat") and hasattr(optimizer, "fp16_groups"):
        found = {}
        for group, flat in zip(optimizer.fp16_groups, optimizer.fp32_groups_flat):
            for parameter, piece in zip(group, flat.split([p.numel() for p in group])):
                found[id(parameter)] = piece.view(parameter.shape)
        return found
    return {}
