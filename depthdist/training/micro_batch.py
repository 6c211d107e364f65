"""How many images a rank puts through the network at a time: as many as fit, which changes nothing
but speed.

micro_batch = largest([8, 4, 2, 1], lambda n: fits(model, n, ...))
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable

import psutil
import torch

from depthdist.distributed.process_group import gather_from_all_ranks
from depthdist.geometry.depth_range import DepthRange, normalize_depth
from depthdist.losses.settings import LossSettings
from depthdist.losses.terms import compute_losses
from depthdist.models.depth_model import DepthModel
from depthdist.models.training_memory import training_memory

SHARE = 0.8  # of the memory that is free: other things come and go
MAPS = 12  # float32 maps at the truth's size that the loss keeps for the way back


def find_micro_batch(candidates: list[int], fits: Callable[[int], bool]) -> int:
    """The first of `candidates`, largest first, that fits on every rank.

    ValueError where none does. Every rank must call it.
    """
    mine = next((n for n in candidates if fits(n)), 0)
    found = min(gather_from_all_ranks(mine))
    if not found:
        raise ValueError(
            f"--micro-batch auto: not even {candidates[-1]} image at a time fits into this device's"
            " memory; try --checkpointing, or smaller pictures"
        )
    return found


def fits_in_memory(
    model: DepthModel,
    micro_batch: int,
    size: tuple[int, int],
    truth: tuple[int, int],
    loss: LossSettings,
    bounds: DepthRange,
    device: torch.device,
    precision: str,
) -> bool:
    """Whether a training step of so many images fits: tried where there is a GPU, counted against
    the free memory elsewhere.

    size, truth  (height, width) of the pictures and of the truth
    """
    if device.type == "cpu":
        ranks_here = int(
            os.environ.get("LOCAL_WORLD_SIZE")
            or os.environ.get("LOCAL_SIZE")
            or os.environ["WORLD_SIZE"]
        )
        needed = sum(step_memory(model, micro_batch, size, truth, precision).values())
        return needed < SHARE * psutil.virtual_memory().available / ranks_here
    try:
        _try(
            model,
            micro_batch,
            size,
            truth,
            loss,
            bounds,
            device,
            {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32),
        )
        return torch.cuda.max_memory_allocated(device) < 0.95 * torch.cuda.mem_get_info(device)[1]
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def step_memory(
    model: DepthModel,
    micro_batch: int,
    size: tuple[int, int],
    truth: tuple[int, int],
    precision: str,
) -> dict[str, int]:
    """Bytes that a training step needs, by what needs them: counted, nothing is computed."""
    return {
        **training_memory(model, size, micro_batch, precision),
        "loss at the truth's size": MAPS * 4 * micro_batch * truth[0] * truth[1],
    }


def _try(
    model: DepthModel,
    micro_batch: int,
    size: tuple[int, int],
    truth: tuple[int, int],
    loss: LossSettings,
    bounds: DepthRange,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Forward and backward once on a copy, as a training step does it."""
    ghost = copy.deepcopy(model).to(device, dtype).train()
    rgb = torch.zeros(micro_batch, *size, 3, dtype=torch.uint8, device=device)
    depth_mm = torch.full((micro_batch, *truth), bounds.near_mm, device=device)
    target, mask = normalize_depth(depth_mm, bounds)
    pred = ghost.upsampled(
        ghost(rgb, torch.zeros(micro_batch, dtype=torch.int64, device=device)), truth
    )
    compute_losses(loss, pred, target, mask, bounds)["loss"].sum().backward()
