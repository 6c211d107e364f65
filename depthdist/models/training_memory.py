"""The memory that training needs, counted without computing anything."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from depthdist.geometry.patches import PATCH_SIZE
from depthdist.models.depth_model import DepthModel


def training_memory(
    model: DepthModel, size: tuple[int, int], micro_batch: int, precision: str
) -> dict[str, int]:
    """Return the bytes that training needs, by what needs them.

    activations  what one micro-batch keeps for backward (a fused attention kernel keeps no
                 attention matrix)
    """
    is_half = precision in ("fp16", "bf16")
    trained, total = model.parameter_counts()
    return {
        "weights": total * (2 if is_half else 4),
        "gradients, masters and optimizer": trained * (2 + 12 if is_half else 12),
        "activations": _float32_activations(model, size, micro_batch) // (2 if is_half else 1),
    }


def _float32_activations(model: DepthModel, size: tuple[int, int], micro_batch: int) -> int:
    """Return the bytes that autograd keeps in a forward pass in float32, on the meta device."""
    ghost = copy.deepcopy(model).to("meta").train()
    weights = {t.untyped_storage()._cdata for t in [*ghost.parameters(), *ghost.buffers()]}
    # by storage, as views share one; the tensors are kept so that no id is used twice
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ghost(
            torch.empty(micro_batch, *size, 3, dtype=torch.uint8, device="meta"),
            torch.empty(micro_batch, dtype=torch.int64, device="meta"),
        )
    tokens = (size[0] // PATCH_SIZE) * (size[1] // PATCH_SIZE) + 1
    return sum(
        tensor.untyped_storage().nbytes()
        for tensor in kept.values()
        if not (tensor.dim() >= 3 and tensor.shape[-1] == tensor.shape[-2] == tokens)
    )
