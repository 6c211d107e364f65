"""DeepSpeed as it is used here: its settings, one optimizer step, fp32 master weights, all that a
restart needs.

settings = EngineSettings(Path("ds_configs/fp16.json"))
config, remarks = settings.resolved(world.device)  # the dict DeepSpeed gets, and what had to change
engine = Engine(model, config, [(parameters, 5e-5)], world)
engine.backward(loss); engine.step()
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from depthdist.distributed.process_group import (  # first: it tells DeepSpeed which device there is
    World,
    one_line,
)
from depthdist.training.deepspeed_config import precision

SCALER = (
    "cur_scale",
    "cur_iter",
    "last_overflow_iter",
    "cur_hysteresis",
)  # of a dynamic loss scale, as DeepSpeed names it


class Engine:
    """A DeepSpeed engine around `model`: what trains is what requires a gradient.

    groups  the trained parameters and their learning rates: [(parameters, lr), ...]
    micro_batch  samples that a rank puts through the network at a time

    Without ZeRO the gradients of all micro-batches and ranks are added up in float64: the sum does
    not depend on how the global batch was cut (numbers of 24 bits that are of like size add without
    rounding in 53).
    """

    def __init__(
        self,
        model: nn.Module,
        config: dict[str, Any],
        groups: list[tuple[list[nn.Parameter], float]],
        world: World,
        micro_batch: int = 1,
    ):
        self.world, self.model, self.precision = world, model, precision(config)
        config = copy.deepcopy(config)
        config["train_micro_batch_size_per_gpu"] = micro_batch
        config["optimizer"]["params"] = {
            **(config["optimizer"].get("params") or {}),
            "lr": groups[0][1],
        }
        config.setdefault("steps_per_print", 10**9)
        self.stage = config.get("zero_optimization", {}).get("stage", 0)
        self.lrs = [lr for _, lr in groups]
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        try:
            self.deepspeed, self.optimizer, _, _ = deepspeed.initialize(
                model=model,
                model_parameters=[{"params": parameters, "lr": lr} for parameters, lr in groups],
                config=config,
            )
        except (
            AssertionError,
            AttributeError,
            KeyError,
            TypeError,
            ValueError,
        ) as err:  # each of its checks has its own
            raise ValueError(
                f"--deepspeed: DeepSpeed refuses this configuration: {one_line(err)}"
            ) from err
        self.deepspeed.enable_backward_allreduce = self.stage > 0
        # some of its optimizers take a step with no gradient at their start, which Adam would count
        self._inner.state.clear()
        for group in self.optimizer.param_groups:
            group.update({"step": 0} if "step" in group else {})
        self.scales_itself = self._scales_itself()
        self.totals = (
            [torch.zeros_like(p, dtype=torch.float64) for p in self.trained.values()]
            if self.stage == 0
            else []
        )
        self.plain_norm = 0.0
        self.watching, self.zeros = (
            False,
            [],
        )  # of the gradient's elements: how many are 0, how many there are
        for parameter in self.trained.values():
            parameter.register_hook(self._count_zeros)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.deepspeed(*inputs)

    def backward(self, loss: Tensor, watch: bool = False) -> None:
        """Add a micro-batch's gradient.

        Those of all micro-batches of all ranks add up to that of the step.

        watch  also count the gradient's zeros, for `underflow_share`
        """
        self.watching, self.zeros = watch, [] if watch else self.zeros
        if self.stage:  # DeepSpeed divides by micro-batches and ranks
            return self.deepspeed.backward(
                loss * (self.deepspeed.gradient_accumulation_steps() * self.world.size)
            )
        self.deepspeed.backward(
            loss if self.scales_itself else loss.float() * self.loss_scale, scale_wrt_gas=False
        )
        for total, parameter in zip(self.totals, self.trained.values()):
            if parameter.grad is not None:
                total += parameter.grad
                parameter.grad = None

    def step(self, factor: float = 1.0) -> bool:
        """End a micro-batch.

        Whether an optimizer step was taken with it (not where the loss scale overflowed).

        factor  of the learning rates
        """
        before, boundary = (
            self.deepspeed.skipped_steps,
            self.deepspeed.is_gradient_accumulation_boundary(),
        )
        if boundary:
            for group, lr in zip(self.optimizer.param_groups, self.lrs):
                group["lr"] = lr * factor
            self._add_up()
        self.deepspeed.step()
        return boundary and self.deepspeed.skipped_steps == before

    def _scales_itself(self) -> bool:
        """Whether DeepSpeed's backward multiplies by the loss scale: 0.19 does not in fp16 without
        ZeRO, though its step divides (its pull request 8393).
        """
        if self.stage or self.loss_scale == 1:
            return True
        probe = torch.ones((), device=self.world.device, requires_grad=True)
        self.deepspeed.backward(probe * 1.0, scale_wrt_gas=False)
        return float(probe.grad) == self.loss_scale

    def _add_up(self) -> None:
        if self.stage:
            return
        flat = torch.cat([total.flatten() for total in self.totals])
        if self.world.size > 1:
            dist.all_reduce(flat)
        for total, parameter, piece in zip(
            self.totals, self.trained.values(), flat.split([t.numel() for t in self.totals])
        ):
            parameter.grad = piece.view_as(parameter).to(parameter.dtype)
            total.zero_()
        self.plain_norm = float(flat.norm()) / self.loss_scale

    def _count_zeros(self, grad: Tensor) -> None:
        if self.watching:
            self.zeros.append(
                torch.stack([(grad == 0).sum(), torch.tensor(grad.numel(), device=grad.device)])
            )

    @property
    def underflow_share(self) -> float:
        """Share of the watched gradient's elements that are 0 in this precision.

        Half of them are by right before LoRA's first step.
        """
        zero, all_of_them = torch.stack(self.zeros).sum(0).tolist() if self.zeros else (0, 1)
        return zero / all_of_them

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied by so that small gradients survive fp16.

        1 in the other precisions.
        """
        return float(self._scaler.cur_scale) if self.precision == "fp16" else 1.0

    @property
    def grad_norm(self) -> float:
        """Norm of the last step's gradient, before clipping."""
        norm = self.deepspeed.get_global_grad_norm() if self.stage else self.plain_norm
        return float(norm) if norm is not None else 0.0

    @property
    def skipped_steps(self) -> int:
        return self.deepspeed.skipped_steps

    # ---- all that changes

    def masters(self) -> dict[str, Tensor]:
        """The trained weights in fp32, by `model.named_parameters()` name.

        Every rank must call it (ZeRO gathers).
        """
        found = {name: self._whole(name, None).detach() for name in self.trained}
        assert all(tensor.dtype == torch.float32 for tensor in found.values())
        return found

    @contextmanager
    def holding(self, weights: Mapping[str, Tensor] | None) -> Iterator[None]:
        """While entered, the model computes with these fp32 weights instead of its own.

        None leaves it alone. Not under ZeRO 3.
        """
        assert weights is None or self.stage < 3
        own = {name: self.trained[name].detach().clone() for name in weights or ()}
        try:
            for name in own:
                self.trained[name].data.copy_(weights[name])
            yield
        finally:
            for name, tensor in own.items():
                self.trained[name].data.copy_(tensor)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Masters and optimizer moments, whole, whatever the number of ranks.

        And the numbers beside them. Every rank must call it.
        """
        tensors = {f"weights/{name}": tensor for name, tensor in self.masters().items()}
        for key in self._moments:
            tensors.update(
                {f"{key}/{name}": self._whole(name, key).detach() for name in self.trained}
            )
        first = next(iter(self._inner.state.values()), {})
        values = {
            "optimizer_step": float(
                first.get("step", self.optimizer.param_groups[0].get("step", 0))
            ),
            "loss_scaler": {
                name: getattr(self._scaler, name) for name in SCALER if hasattr(self._scaler, name)
            },
            "skipped_steps": self.skipped_steps,
        }
        return tensors, values

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on from `state`, of any number of ranks and any ZeRO stage.

        ValueError when it is of another model.
        """
        kinds = list(dict.fromkeys(name.partition("/")[0] for name in tensors))
        wanted = {f"{kind}/{name}" for kind in kinds for name in self.trained}
        if wanted != tensors.keys() or any(
            tensors[f"{k}/{n}"].numel() != getattr(p, "ds_numel", p.numel())
            for k in kinds
            for n, p in self.trained.items()
        ):
            raise ValueError(
                f"the saved state is of another model: {len(tensors.keys() - wanted)} tensors too"
                f" many, {len(wanted - tensors.keys())} missing, or other sizes"
            )
        step = values["optimizer_step"]
        for flat in self._flats if step else ():
            self._inner.state[flat] = {
                "step": torch.tensor(step),
                **{kind: torch.zeros_like(flat) for kind in kinds if kind != "weights"},
            }
        for group in self.optimizer.param_groups:
            if "step" in group:
                group["step"] = int(step)
        if step and hasattr(self.optimizer, "_lazy_init_hp_params_optimizer_state"):
            self.optimizer._hp_optimizer_states_linked = False
            self.optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in self.trained.items():
            for kind in kinds:
                self._put(
                    name,
                    None if kind == "weights" else kind,
                    tensors[f"{kind}/{name}"].to(self.world.device),
                )
            if self.stage < 3:
                parameter.data.copy_(tensors[f"weights/{name}"])
        for i in range(len(self._flats) if self.stage == 3 else 0):
            self.optimizer._reassign_or_swap_out_partitioned_parameters(i)
        for name, value in values["loss_scaler"].items():
            if hasattr(self._scaler, name):
                setattr(self._scaler, name, value)
        self.deepspeed.skipped_steps = values["skipped_steps"]

    @property
    def _inner(self) -> torch.optim.Optimizer:
        """The optimizer that DeepSpeed has wrapped."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    @property
    def _scaler(self) -> Any:
        return getattr(self.optimizer, "loss_scale_config", None) or getattr(
            self.optimizer, "loss_scaler", None
        )

    @property
    def _flats(self) -> list[Tensor]:
        """The fp32 tensors that the wrapped optimizer works on: a parameter each, or many in one
        row.
        """
        if self.stage == 3:
            return self.optimizer.fp32_partitioned_groups_flat
        return [p for group in self._inner.param_groups for p in group["params"]]

    @property
    def _moments(self) -> list[str]:
        """What the optimizer keeps for each weight: exp_avg and exp_avg_sq of Adam."""
        flat = next(iter(self._inner.state), None)
        return [
            key
            for key, value in self._inner.state.get(flat, {}).items()
            if isinstance(value, Tensor) and value.shape == flat.shape
        ]

    def _whole(self, name: str, key: str | None) -> Tensor:
        """A parameter's fp32 master, or its moment of that name, whole. Every rank must call it."""
        parameter = self.trained[name]
        if self.stage == 3:
            return self.optimizer.get_full_hp_param(parameter, key)
        if self.stage:
            return parameter.get_full_hp_param(key)
        return self._plain(name, key)

    def _put(self, name: str, key: str | None, value: Tensor) -> None:
        parameter = self.trained[name]
        if self.stage == 3:  # its own setter fails on a parameter that the ranks do not divide
            mine, _ = self.optimizer._get_fp32_opt_state_partition(
                parameter, release_swap_buffers=True, optim_state_key=key
            )
            piece = value.flatten()[mine.numel() * self.world.rank :][: mine.numel()]
            mine[: piece.numel()].data.copy_(piece)
        elif self.stage:
            parameter.set_full_hp_param(value, key)
        else:
            self._plain(name, key).data.copy_(value.view_as(parameter))

    def _plain(self, name: str, key: str | None) -> Tensor:
        """Without ZeRO: the master or moment, as the optimizer holds it."""
        parameter, optimizer = self.trained[name], self.optimizer
        if hasattr(optimizer, "fp32_groups_flat"):  # all of a group in one row
            for row, parameters in zip(optimizer.fp32_groups_flat, optimizer.fp16_groups):
                for other, piece in zip(
                    parameters,
                    (self._inner.state[row][key] if key else row).split(
                        [p.numel() for p in parameters]
                    ),
                ):
                    if other is parameter:
                        return piece.view_as(parameter)
        masters = (
            {
                id(p): m
                for lows, highs in zip(optimizer.fp16_groups, optimizer.fp32_groups)
                for p, m in zip(lows, highs)
            }
            if hasattr(optimizer, "fp32_groups")
            else {}
        )
        master = masters.get(id(parameter), parameter)
        return self._inner.state[master][key] if key else master
