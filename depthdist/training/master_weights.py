"""The fp32 weights and optimizer moments inside DeepSpeed's optimizers, whole, by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from depthdist.distributed.process_group import World

SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What a dynamic loss scale consists of, as DeepSpeed names it."""
WEIGHTS = "weights"  # the kind of tensor beside the moments, whose kinds the optimizer names


class MasterWeights:
    """Access to what a DeepSpeed optimizer keeps of each trained parameter, at any ZeRO stage.

    trained  parameters by `model.named_parameters()` name
    A tensor's name in a state is KIND/NAME: "weights/..." or a moment such as "exp_avg/...".
    """

    def __init__(self, optimizer: Any, trained: dict[str, nn.Parameter], stage: int, world: World):
        self.optimizer = optimizer
        self.trained = trained
        self.stage = stage
        self.world = world

    def forget_first_step(self) -> None:
        """Undo the step without a gradient that some of DeepSpeed's optimizers take at their start.

        Adam would count it.
        """
        self.inner.state.clear()
        for group in self.optimizer.param_groups:
            if "step" in group:
                group["step"] = 0

    @property
    def inner(self) -> torch.optim.Optimizer:
        """The optimizer that DeepSpeed has wrapped."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    @property
    def scaler(self) -> Any:
        """The loss scaler, or None."""
        config = getattr(self.optimizer, "loss_scale_config", None)
        return config or getattr(self.optimizer, "loss_scaler", None)

    @property
    def _flats(self) -> list[Tensor]:
        """The fp32 tensors that the wrapped optimizer works on: one parameter each, or many."""
        if self.stage == 3:
            return self.optimizer.fp32_partitioned_groups_flat
        return [p for group in self.inner.param_groups for p in group["params"]]

    @property
    def _moments(self) -> list[str]:
        """What the optimizer keeps for each weight: exp_avg and exp_avg_sq of Adam."""
        if not self.inner.state:
            return []
        flat, values = next(iter(self.inner.state.items()))
        return [
            kind
            for kind, value in values.items()
            if isinstance(value, Tensor) and value.shape == flat.shape
        ]

    def state(self, masters: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return masters and moments by name, and the numbers beside them.

        Every rank must call it.
        """
        tensors = {f"{WEIGHTS}/{name}": tensor for name, tensor in masters.items()}
        for kind in self._moments:
            for name in self.trained:
                tensors[f"{kind}/{name}"] = self.get(name, kind).detach()
        first: dict[str, Any] = next(iter(self.inner.state.values()), {})
        step = first.get("step", self.optimizer.param_groups[0].get("step", 0))
        scaler = {n: getattr(self.scaler, n) for n in SCALER_FIELDS if hasattr(self.scaler, n)}
        return tensors, {"optimizer_step": float(step), "loss_scaler": scaler}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Put back what `state` gave; raise ValueError when it is of another model."""
        kinds = list(dict.fromkeys(name.partition("/")[0] for name in tensors))
        self._check_same_model(tensors, kinds)
        self._make_moments(kinds, values["optimizer_step"])
        for name, parameter in self.trained.items():
            for kind in kinds:
                self.put(name, kind, tensors[f"{kind}/{name}"].to(self.world.device))
            if self.stage < 3:
                parameter.data.copy_(tensors[f"{WEIGHTS}/{name}"])
        if self.stage == 3:
            for i in range(len(self._flats)):
                self.optimizer._reassign_or_swap_out_partitioned_parameters(i)
        for name, value in values["loss_scaler"].items():
            if hasattr(self.scaler, name):
                setattr(self.scaler, name, value)

    def _check_same_model(self, tensors: dict[str, Tensor], kinds: list[str]) -> None:
        wanted = {}
        for kind in kinds:
            for name, parameter in self.trained.items():
                wanted[f"{kind}/{name}"] = getattr(parameter, "ds_numel", parameter.numel())
        if {name: tensor.numel() for name, tensor in tensors.items()} != wanted:
            raise ValueError(
                f"the saved state is of another model: {len(tensors.keys() - wanted.keys())}"
                f" tensors too many, {len(wanted.keys() - tensors.keys())} missing, or other sizes"
            )

    def _make_moments(self, kinds: list[str], step: float) -> None:
        """Let the optimizer have moments to put values into, after `step` steps."""
        if step:
            for flat in self._flats:
                self.inner.state[flat] = {"step": torch.tensor(step)}
                for kind in kinds:
                    if kind != WEIGHTS:
                        self.inner.state[flat][kind] = torch.zeros_like(flat)
        for group in self.optimizer.param_groups:
            if "step" in group:
                group["step"] = int(step)
        if step and hasattr(self.optimizer, "_lazy_init_hp_params_optimizer_state"):
            self.optimizer._hp_optimizer_states_linked = False
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def get(self, name: str, kind: str = WEIGHTS) -> Tensor:
        """Return a parameter's fp32 master, or its moment, whole. Every rank must call it."""
        parameter = self.trained[name]
        key = None if kind == WEIGHTS else kind
        if self.stage == 3:
            return self.optimizer.get_full_hp_param(parameter, key)
        if self.stage:
            return parameter.get_full_hp_param(key)  # type: ignore[attr-defined]  # DeepSpeed adds it
        return self._get_without_zero(parameter, key)

    def put(self, name: str, kind: str, value: Tensor) -> None:
        """Set a parameter's fp32 master, or its moment, from the whole tensor."""
        parameter = self.trained[name]
        key = None if kind == WEIGHTS else kind
        if self.stage == 3:  # its own setter fails on a parameter that the ranks do not divide
            mine, _ = self.optimizer._get_fp32_opt_state_partition(
                parameter, release_swap_buffers=True, optim_state_key=key
            )
            piece = value.flatten()[mine.numel() * self.world.rank :][: mine.numel()]
            mine[: piece.numel()].data.copy_(piece)
        elif self.stage:
            parameter.set_full_hp_param(value, key)  # type: ignore[attr-defined]  # DeepSpeed adds it
        else:
            self._get_without_zero(parameter, key).data.copy_(value.view_as(parameter))

    def _get_without_zero(self, parameter: nn.Parameter, key: str | None) -> Tensor:
        """Return the master or moment as the optimizer holds it."""
        optimizer = self.optimizer
        if hasattr(optimizer, "fp32_groups_flat"):  # all of a group in one row
            for row, parameters in zip(optimizer.fp32_groups_flat, optimizer.fp16_groups):
                whole = self.inner.state[row][key] if key else row
                pieces = whole.split([p.numel() for p in parameters])
                for other, piece in zip(parameters, pieces):
                    if other is parameter:
                        return piece.view_as(parameter)
        master: Tensor = parameter
        if hasattr(optimizer, "fp32_groups"):
            for lows, highs in zip(optimizer.fp16_groups, optimizer.fp32_groups):
                for low, high in zip(lows, highs):
                    if low is parameter:
                        master = high
        return self.inner.state[master][key] if key else master
