"""A DeepSpeed engine: one optimizer step, sums of gradients that do not depend on the ranks.

config, remarks = EngineSettings(Path("ds_configs/fp16.json")).resolved()
engine = Engine(model, config, [(parameters, 5e-5)], world)
engine.backward(loss)
engine.step()
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from depthdist.core.errors import one_line
from depthdist.distributed.accelerator import load_deepspeed
from depthdist.distributed.process_group import World, exchanging
from depthdist.training.deepspeed_config import precision
from depthdist.training.loss_scale import LossScale
from depthdist.training.master_weights import MasterWeights

CLIP_MARGIN = 1e-6  # added to a gradient's norm, as torch and DeepSpeed do
NEVER = 10**9  # steps from one of DeepSpeed's own progress lines to the next


class Engine:
    """A DeepSpeed engine around `model`; a parameter is trained if it requires a gradient.

    groups  the trained parameters and their learning rates: [(parameters, lr), ...]
    micro_batch  samples that a rank puts through the network at a time

    Without ZeRO the gradients of all micro-batches and ranks are added up in float64: the sum does
    not depend on how the global batch was cut (numbers of 24 bits that are of like size add without
    rounding in 53). Nor does clipping in fp32: DeepSpeed 0.19 averages the norm over the ranks
    there, which rounds it where their number is no power of two.

    raises ValueError where DeepSpeed refuses the configuration
    """

    def __init__(
        self,
        model: nn.Module,
        config: dict[str, Any],
        groups: list[tuple[list[nn.Parameter], float]],
        world: World,
        micro_batch: int = 1,
    ):
        self.world = world
        self.model = model
        self.precision = precision(config)
        self.stage = config.get("zero_optimization", {}).get("stage", 0)
        self.lrs = [lr for _, lr in groups]
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.clip = 0.0  # norm that a gradient is clipped to here, not by DeepSpeed; 0: it is not
        if self.precision == "fp32" and self.stage == 0:
            self.clip = config.get("gradient_clipping", 0.0)
            config = {**config, "gradient_clipping": 0.0}
        self.deepspeed, self.optimizer = _initialize(model, config, groups, micro_batch)
        self.deepspeed.enable_backward_allreduce = self.stage > 0
        self.weights = MasterWeights(self.optimizer, self.trained, self.stage, world)
        self.weights.forget_first_step()
        self.scale: LossScale | None = None
        if self.precision == "fp16":
            self.scale = LossScale(self.optimizer, self.weights.scaler)
        self.scales_itself = self._scales_itself()
        self.sums_gradients_itself = self.stage == 0
        self.totals: list[Tensor] = []
        if self.sums_gradients_itself:
            self.totals = [torch.zeros_like(p, dtype=torch.float64) for p in self.trained.values()]
        self.summed_norm = 0.0
        self.is_reduced = False  # whether the parameters hold the gradient of the whole batch
        self.watching = False
        self.num_zeros: list[Tensor] = []  # of each watched gradient
        self.num_watched = 0  # elements of those gradients
        for parameter in self.trained.values():
            parameter.register_hook(self._count_zeros)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the model's output."""
        return self.deepspeed(*inputs)

    def backward(self, loss: Tensor, watch: bool = False) -> None:
        """Add a micro-batch's gradient to that of the step.

        watch  also count the gradient's zeros, for `underflow_share`
        """
        self.watching = watch
        if watch:
            self.num_zeros = []
            self.num_watched = 0
        if self.stage:  # DeepSpeed divides by micro-batches and ranks
            parts = self.deepspeed.gradient_accumulation_steps() * self.world.size
            with exchanging():
                self.deepspeed.backward(loss * parts)
            return
        scaled = loss if self.scales_itself else loss.float() * self.loss_scale
        self.deepspeed.backward(scaled, scale_wrt_gas=False)
        for total, parameter in zip(self.totals, self.trained.values()):
            if parameter.grad is not None:
                total += parameter.grad
                parameter.grad = None

    def reduce_gradients(self) -> None:
        """Give the parameters the gradient of the whole batch; without ZeRO only.

        `grad_norm` is known after it, and no weight has changed yet.
        """
        flat = torch.cat([total.flatten() for total in self.totals])
        with exchanging():
            if self.world.size > 1:
                dist.all_reduce(flat)
            self.summed_norm = float(flat.norm()) / self.loss_scale  # NCCL's exchange ends here
        if 0 < self.clip < self.summed_norm + CLIP_MARGIN:
            flat *= self.clip / (self.summed_norm + CLIP_MARGIN)
        pieces = flat.split([total.numel() for total in self.totals])
        for total, parameter, piece in zip(self.totals, self.trained.values(), pieces):
            parameter.grad = piece.view_as(parameter).to(parameter.dtype)
            total.zero_()
        self.is_reduced = True

    def step(self, factor: float = 1.0) -> bool:
        """End a micro-batch and return whether an optimizer step was taken with it.

        None is taken before the last micro-batch, and where the loss scale overflowed.

        factor  of the learning rates
        """
        skipped_before = self.deepspeed.skipped_steps
        boundary = self.deepspeed.is_gradient_accumulation_boundary()
        if boundary:
            for group, lr in zip(self.optimizer.param_groups, self.lrs):
                group["lr"] = lr * factor
            if self.sums_gradients_itself and not self.is_reduced:
                self.reduce_gradients()
            self.is_reduced = False
        with exchanging() if self.stage else nullcontext():
            self.deepspeed.step()
        skipped = self.deepspeed.skipped_steps > skipped_before
        if boundary and self.scale:
            self.scale.end_step(skipped)
        return boundary and not skipped

    def _scales_itself(self) -> bool:
        """Return whether DeepSpeed's backward multiplies by the loss scale.

        0.19 does not in fp16 without ZeRO, though its step divides (its pull request 8393).
        """
        if self.stage or self.loss_scale == 1:
            return True
        probe = torch.ones((), device=self.world.device, requires_grad=True)
        self.deepspeed.backward(probe * 1.0, scale_wrt_gas=False)
        assert probe.grad is not None
        return float(probe.grad) == self.loss_scale

    def _count_zeros(self, grad: Tensor) -> None:
        if self.watching:
            self.num_zeros.append((grad == 0).sum())
            self.num_watched += grad.numel()

    @property
    def underflow_share(self) -> float:
        """Share of the watched gradient's elements that are 0 in this precision.

        Half of them are 0 by right before LoRA's first step.
        """
        if not self.num_watched:
            return 0.0
        return int(torch.stack(self.num_zeros).sum()) / self.num_watched

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied by: 1 except in fp16."""
        return self.scale.value if self.scale else 1.0

    @property
    def grad_norm(self) -> float:
        """Norm of the last step's gradient, before clipping."""
        norm = self.deepspeed.get_global_grad_norm() if self.stage else self.summed_norm
        return float(norm) if norm is not None else 0.0

    @property
    def gradient_problem(self) -> str:
        """How the last step's gradient is broken for good, or nothing.

        In fp16 it is known after the step, which was skipped. One that a smaller loss scale may
        mend is no problem.
        """
        if self.scale:
            return self.scale.problem
        return "" if math.isfinite(self.grad_norm) else f"{self.grad_norm}"

    @property
    def skipped_steps(self) -> int:
        """How many steps were skipped as the loss scale overflowed."""
        return self.deepspeed.skipped_steps

    def masters(self) -> dict[str, Tensor]:
        """Return the trained weights in fp32, by `model.named_parameters()` name.

        Every rank must call it (ZeRO gathers).
        """
        with exchanging() if self.stage else nullcontext():
            found = {name: self.weights.get(name).detach() for name in self.trained}
        assert all(tensor.dtype == torch.float32 for tensor in found.values())
        return found

    @contextmanager
    def holding(self, weights: Mapping[str, Tensor] | None) -> Iterator[None]:
        """Let the model compute with these fp32 weights while entered; None leaves it alone.

        Not under ZeRO 3.
        """
        weights = weights or {}
        assert not weights or self.stage < 3
        own = {name: self.trained[name].detach().clone() for name in weights}
        try:
            for name, tensor in weights.items():
                self.trained[name].data.copy_(tensor)
            yield
        finally:
            for name, tensor in own.items():
                self.trained[name].data.copy_(tensor)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return masters and moments, whole, whatever the ranks, and the numbers beside them.

        Every rank must call it.
        """
        tensors, values = self.weights.state(self.masters())
        return tensors, {**values, "skipped_steps": self.skipped_steps}

    def example_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return a state as `state` gives it after a step, with moments, also before the first one.

        Every rank must call it. The engine stays as it is.
        """
        begun = self.weights.has_moments
        self.weights.make_moments()
        try:
            return self.state()
        finally:
            if not begun:
                self.weights.forget_first_step()

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Resume from `state`, of any number of ranks and any ZeRO stage.

        raises ValueError when it is the state of another model
        """
        self.weights.restore(tensors, values)
        self.deepspeed.skipped_steps = values["skipped_steps"]


def _initialize(
    model: nn.Module,
    config: dict[str, Any],
    groups: list[tuple[list[nn.Parameter], float]],
    micro_batch: int,
) -> tuple[Any, Any]:
    """Return DeepSpeed's engine and optimizer."""
    config = copy.deepcopy(config)
    config["train_micro_batch_size_per_gpu"] = micro_batch
    optimizer = config["optimizer"]
    optimizer["params"] = {**(optimizer.get("params") or {}), "lr": groups[0][1]}
    config.setdefault("steps_per_print", NEVER)
    parameters = [{"params": parameters, "lr": lr} for parameters, lr in groups]
    try:
        made = load_deepspeed().initialize(model=model, model_parameters=parameters, config=config)
    except Exception as err:
        if not _is_refusal(err):
            raise
        raise ValueError(
            f"--deepspeed: DeepSpeed refuses this configuration: {one_line(err)}"
        ) from err
    return made[0], made[1]


def _is_refusal(err: Exception) -> bool:
    """Return whether DeepSpeed raised this for the configuration: each of its checks has its own.

    Its own classes derive from Exception alone. ImportError: what it compiles for an optimizer
    lacks a compiler.
    """
    refusals = (AssertionError, AttributeError, ImportError, KeyError, TypeError, ValueError)
    return isinstance(err, refusals) or type(err).__module__.startswith("deepspeed.")
