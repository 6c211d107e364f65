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
    """Bytes that training needs, by what needs them: counted on a copy without storage, nothing is
    computed.

    activations  what one micro-batch keeps for the way back (a fused attention kernel keeps no
                 attention matrix)
    """
    ghost = copy.deepcopy(model).to("meta").train()
    weights = {t.untyped_storage()._cdata for t in [*ghost.parameters(), *ghost.buffers()]}
    kept: dict[
        int, Tensor
    ] = {}  # by storage, as views share one; held, so that no id is used twice

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ghost(
            torch.empty(micro_batch, *size, 3, dtype=torch.uint8, device="meta"),
            torch.empty(micro_batch, dtype=torch.int64, device="meta"),
        )
    half = precision in ("fp16", "bf16")
    trained, total = model.parameter_counts()
    tokens = (size[0] // PATCH_SIZE) * (size[1] // PATCH_SIZE) + 1
    activations = sum(
        t.untyped_storage().nbytes()
        for t in kept.values()
        if not (t.dim() >= 3 and t.shape[-1] == t.shape[-2] == tokens)
    )
    return {
        "weights": total * (2 if half else 4),
        "gradients, masters and optimizer": trained * (2 + 12 if half else 12),
        "activations": activations // (2 if half else 1),
    }
