"""The ranks of a run: how they meet, what they tell each other, and how they part.

    world = start()                       # World(rank, size, device); without a launcher a world of one
    totals = sum_over_ranks([loss, count])
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it found nothing better

import deepspeed
from deepspeed.accelerator import get_accelerator


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`, and the device it computes on."""

    rank: int
    size: int
    device: torch.device


def world_size() -> int:
    """How many ranks the launcher started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def start() -> World:
    """Join the other ranks. Without a launcher this process is a world of one."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "0")):
        os.environ.setdefault(name, value)
    accelerator, local = get_accelerator(), int(os.environ["LOCAL_RANK"])
    if accelerator.device_name() == "cpu":
        local_world = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or os.environ["WORLD_SIZE"])
        if "OMP_NUM_THREADS" not in os.environ or local_world > 1:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world))
        device = torch.device("cpu")
    else:
        accelerator.set_device(local)
        device = torch.device(accelerator.device_name(local))
    # DeepSpeed would compile a shared-memory all-reduce for the CPU: half a minute and a compiler, for 2 MB of gradients
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    try:
        deepspeed.init_distributed(dist_backend=accelerator.communication_backend_name(), auto_mpi_discovery=False, verbose=False)
    except RuntimeError as err:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ValueError(f"the ranks cannot meet at {address}; is another run using the port? Give deepspeed another --master_port ({one_line(err)})") from err
    return World(dist.get_rank(), dist.get_world_size(), device)


def stop() -> None:
    """Leave the other ranks, so that no library has to complain at exit."""
    if dist.is_initialized():
        dist.destroy_process_group()


def sum_over_ranks(values: Iterable[float]) -> list[float]:
    """Each number added up over all ranks, in float64, the same on every rank."""
    total = torch.tensor(list(values), dtype=torch.float64)
    if dist.get_world_size() > 1:
        device = get_accelerator().current_device_name()
        total = total.to(device)
        dist.all_reduce(total)
    return total.tolist()


def from_all_ranks(value: Any) -> list[Any]:
    """Every rank's value (anything small), by rank."""
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def from_rank_0(value: Any) -> Any:
    """Rank 0's value (anything small), on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device(get_accelerator().current_device_name()))
    return box[0]


def one_line(err: Exception) -> str:
    """What the error says, short enough for one line."""
    return " ".join(str(err).split())[:300] or type(err).__name__
