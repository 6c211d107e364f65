"""How many images a rank puts through the network at a time: as many as fit, for speed alone.

micro_batch = find_micro_batch([8, 4, 2, 1], lambda n: fits_in_memory(model, n, ...))
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import psutil
import torch

from depthdist.core.environment import local_world_size
from depthdist.distributed.process_group import World, gather_from_all_ranks
from depthdist.geometry.depth_range import DepthRange, normalize_depth
from depthdist.losses.settings import LossSettings
from depthdist.losses.terms import compute_losses
from depthdist.models.depth_model import DepthModel
from depthdist.models.training_memory import training_memory
from depthdist.training.parts import TrainingData
from depthdist.training.settings import Settings
from depthdist.training.training_data import make_plan

CPU_SHARE = 0.8  # of the memory that is free: other processes come and go
GPU_SHARE = 0.85  # of the free memory: NCCL and fragments come on top of what is counted
MASTER_BYTES = 20  # for each trained weight: its master, two moments, a float64 sum of gradients
MAPS = 12  # float32 maps at the ground truth's size that the loss keeps for the backward pass
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def find_micro_batch(candidates: list[int], fits: Callable[[int], bool]) -> int:
    """Return the first of `candidates`, largest first, that fits on every rank.

    Every rank must call it. raises ValueError where none fits
    """
    mine = next((n for n in candidates if fits(n)), 0)
    found = min(gather_from_all_ranks(mine))
    if not found:
        raise ValueError(
            f"--micro-batch auto: not even {candidates[-1]} image at a time fits into this device's"
            " memory; try --checkpointing, or smaller images"
        )
    return found


def fits_in_memory(
    model: DepthModel,
    micro_batch: int,
    size: tuple[int, int],
    truth: tuple[int, int],
    loss: LossSettings,
    depth_range: DepthRange,
    device: torch.device,
    precision: str,
) -> bool:
    """Return whether a training step of so many images fits into the device's memory.

    Against the free memory a step is tried on a GPU, and counted on a CPU.

    size, truth  (height, width) of the images and of the ground truth
    """
    if device.type == "cpu":
        needed = sum(step_memory(model, micro_batch, size, truth, precision).values())
        return needed < CPU_SHARE * psutil.virtual_memory().available / local_world_size()

    def trial() -> None:
        network = copy.deepcopy(model).to(device, DTYPES[precision]).train()
        _try_step(network, micro_batch, size, truth, loss, depth_range)

    trained, total = model.parameter_counts()
    beside = trained * MASTER_BYTES + (0 if precision == "fp32" else total * 4)
    return fits_on_gpu(trial, beside, device)


def fits_on_gpu(trial: Callable[[], None], beside: int, device: torch.device) -> bool:
    """Return whether `trial` and `beside` bytes more fit into what is free on that GPU.

    What other processes have of it, and this one's own context, is not free.
    """
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    own = torch.cuda.memory_allocated(device)
    budget = GPU_SHARE * (torch.cuda.mem_get_info(device)[0] + own)
    try:
        trial()
        return torch.cuda.max_memory_allocated(device) + beside < budget
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
    """Return the bytes that a training step needs, by what needs them; nothing is computed."""
    return {
        **training_memory(model, size, micro_batch, precision),
        "loss at the truth's size": MAPS * 4 * micro_batch * truth[0] * truth[1],
    }


def _try_step(
    model: DepthModel,
    micro_batch: int,
    size: tuple[int, int],
    truth: tuple[int, int],
    loss: LossSettings,
    depth_range: DepthRange,
) -> None:
    """Run forward and backward once, as a training step does it."""
    device = next(model.parameters()).device
    rgb = torch.zeros(micro_batch, *size, 3, dtype=torch.uint8, device=device)
    draws = torch.zeros(micro_batch, dtype=torch.int64, device=device)
    depth_mm = torch.full((micro_batch, *truth), depth_range.near_mm, device=device)
    target, mask = normalize_depth(depth_mm, depth_range)
    pred = model.upsampled(model(rgb, draws), truth)
    compute_losses(loss, pred, target, mask, depth_range)["loss"].sum().backward()


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
