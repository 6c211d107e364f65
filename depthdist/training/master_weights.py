"""The fp32 weights and optimizer moments inside DeepSpeed's optimizers, whole, by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from depthdist.distributed.process_group import World

SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What a dynamic loss scale consists of, as DeepSpeed names it."""
STEP = "step"  # how the optimizer calls the number of steps it has taken
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
        """Undo a step without a gradient: DeepSpeed's own at an optimizer's start, or ours.

        Adam would count it. What an optimizer has before any step (Adagrad) stays.
        """
        if any(values.get("step", 1) for values in self.inner.state.values()):
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
    def _groups(self) -> list[list[Tensor]]:
        """The fp32 tensors that the wrapped optimizer works on, by its parameter groups.

        Each is one parameter, or many in a row.
        """
        if self.stage < 3:
            return [list(group["params"]) for group in self.inner.param_groups]
        groups: list[list[Tensor]] = [[] for _ in self.inner.param_groups]
        for i, flat in enumerate(self.optimizer.fp32_partitioned_groups_flat):
            groups[self.optimizer.sub_group_to_group_id[i]].append(flat)
        return groups

    @property
    def _flats(self) -> list[Tensor]:
        return [flat for group in self._groups for flat in group]

    @property
    def has_moments(self) -> bool:
        """Whether the optimizer has taken a step, or needs none to have its moments."""
        return all(self.inner.state.get(flat) for flat in self._flats)

    @property
    def _moments(self) -> list[str]:
        """What the optimizer keeps for each weight: exp_avg and exp_avg_sq of Adam."""
        kinds: dict[str, None] = {}  # in order
        for flat in self._flats:
            for kind, value in self.inner.state.get(flat, {}).items():
                if kind != STEP and isinstance(value, Tensor) and value.shape == flat.shape:
                    kinds[kind] = None
        return list(kinds)

    @property
    def _numbers(self) -> dict[str, float]:
        """What the optimizer keeps beside the moments: the steps taken, NAdam's mu_product."""
        moments = self._moments
        for flat in self._flats:
            if values := self.inner.state.get(flat):
                return {
                    name: float(value)
                    for name, value in values.items()
                    if name not in moments and value is not None
                }
        return {}

    def state(self, masters: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return masters and moments by name, and the numbers beside them.

        Every rank must call it. Before the first step there are no moments.
        """
        tensors = {f"{WEIGHTS}/{name}": tensor for name, tensor in masters.items()}
        self._link_moments()
        for kind in self._moments:
            for name in self.trained:
                tensors[f"{kind}/{name}"] = self.get(name, kind).detach()
        numbers = self._numbers
        step = numbers.pop(STEP, self.optimizer.param_groups[0].get(STEP, 0))
        scaler = {n: getattr(self.scaler, n) for n in SCALER_FIELDS if hasattr(self.scaler, n)}
        values = {"optimizer_step": float(step), "loss_scaler": scaler}
        return tensors, {**values, "optimizer_numbers": numbers} if numbers else values

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Put back what `state` gave; raise ValueError when it is of another model."""
        kinds = list(dict.fromkeys(name.partition("/")[0] for name in tensors))
        self._check_same_model(tensors, kinds)
        self._restore_steps(kinds, values)
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

    def _restore_steps(self, kinds: list[str], values: dict[str, Any]) -> None:
        """Let the optimizer have the moments of these kinds, and the numbers of that many steps."""
        step = values["optimizer_step"]
        numbers = {STEP: step, **values.get("optimizer_numbers", {})}
        if step or kinds != [WEIGHTS]:
            self.make_moments()
        else:
            self.forget_first_step()
        if set(kinds) != {WEIGHTS, *self._moments}:
            raise ValueError(
                f"the saved state is of another optimizer: it has {', '.join(kinds)}; this one"
                f" keeps {', '.join([WEIGHTS, *self._moments])}"
            )
        for state in self.inner.state.values():
            for name in numbers.keys() & state.keys():
                kind = type(state[name])
                state[name] = (
                    torch.full_like(state[name], numbers[name])
                    if kind is Tensor
                    else kind(numbers[name])
                )
        for group in self.optimizer.param_groups:
            if STEP in group:
                group[STEP] = int(step)

    @torch.no_grad()
    def make_moments(self) -> None:
        """Let the optimizer make its moments where it has none yet; no weight moves.

        Only the optimizer knows of which kinds they are, so it takes a step without a gradient.
        """
        groups = self._groups
        if self.has_moments:
            return
        before = [(flat, flat.detach().clone(), flat.grad) for group in groups for flat in group]
        params = [group["params"] for group in self.inner.param_groups]
        try:
            for group, flats in zip(self.inner.param_groups, groups):
                group["params"] = flats  # empty between the steps under ZeRO 3
            for flat, _, _ in before:
                flat.grad = torch.zeros_like(flat)
            self.inner.step()
        finally:
            for group, own in zip(self.inner.param_groups, params):
                group["params"] = own
            for flat, weights, grad in before:
                flat.copy_(weights)
                flat.grad = grad
        self._link_moments()

    def _link_moments(self) -> None:
        """Let DeepSpeed find the moments of each parameter under ZeRO 1 and 2.

        0.19 does that once, after its first parameter group's first step, and finds none of the
        other groups.
        """
        if hasattr(self.optimizer, "_lazy_init_hp_params_optimizer_state"):
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
