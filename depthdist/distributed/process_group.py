"""The ranks of a run: how they meet, exchange values, and part.

    world = start()                       # World(rank, size, device); one rank without a launcher
    totals = sum_over_ranks([loss, count])
    stop()                                # all leave together

failure_watch.py ends all of them when one fails.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from depthdist.core.command import register_ranks
from depthdist.core.environment import (
    local_rank,
    local_world_size,
    timeout_seconds,
    usable_cores,
    world_size,
)
from depthdist.core.errors import Stopped
from depthdist.core.stop_signals import stop_signal
from depthdist.distributed.accelerator import accelerator, load_deepspeed
from depthdist.distributed.failure_watch import FailureWatch
from depthdist.distributed.launchers import adopt_slurm_variables
from depthdist.distributed.watched_group import connect, meet, part, start_watch

ALONE = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}
"""What a launcher would set for a single process."""


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`, and the device it computes on."""

    rank: int
    size: int
    device: torch.device


_watch: FailureWatch | None = None  # from start to stop, of several ranks


def start() -> World:
    """Join the other ranks and return this one's place; without a launcher it is the only one.

    raises ValueError where the ranks cannot meet, or this machine has too few devices
    """
    global _watch
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    adopt_slurm_variables()
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    device = _own_device()
    backend = accelerator().communication_backend_name()
    limit = timedelta(seconds=timeout_seconds())
    if world_size() > 1:
        met = meet()
        _watch = start_watch(met)
        register_ranks(lambda: stop(), _watch)
        connect(met, backend, _watch, device)
    else:
        register_ranks(lambda: stop(), None)
    _start_deepspeed(backend, limit)
    return World(dist.get_rank(), dist.get_world_size(), device)


def _own_device() -> torch.device:
    """Return the device of this rank; on a CPU also set its share of the cores."""
    if accelerator().device_name() == "cpu":
        torch.set_num_threads(_own_threads())
        return torch.device("cpu")
    local = local_rank()
    if local >= accelerator().device_count():
        raise ValueError(
            f"process {local} of this machine sees {accelerator().device_count()} devices; expected"
            " all of the machine in every process, one for each (SLURM binds one to a task: srun"
            " --gpu-bind=none, and --gpus-per-node instead of --gpus-per-task)"
        )
    accelerator().set_device(local)
    return torch.device(accelerator().device_name(local))


def _own_threads() -> int:
    """Return OMP_NUM_THREADS, or this rank's share of the machine's cores."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if first.isascii() and first.isdigit() and int(first):
        return int(first)
    return max(1, usable_cores() // local_world_size())


@contextmanager
def exchanging() -> Iterator[None]:
    """Take this rank for one that waits for the others while entered.

    What only ends when all ranks come is done in it: so a rank that hangs is told from those that
    wait for it, whatever carries the exchange.
    """
    if _watch is None:
        yield
        return
    with _watch.exchanging():
        yield


def _start_deepspeed(backend: str, limit: timedelta) -> None:
    deepspeed = load_deepspeed()
    # DeepSpeed would compile a shared-memory all-reduce for the CPU: half a minute and a compiler,
    # for 2 MB of gradients
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=limit
    )


def stop() -> None:
    """Leave the other ranks when all are done, so that none of them reports a lost connection."""
    global _watch
    part(_watch)
    _watch = None


def sum_over_ranks(values: Iterable[float]) -> list[float]:
    """Return each number added up over all ranks, in float64, the same on every rank."""
    total = torch.tensor(list(values), dtype=torch.float64)
    if dist.get_world_size() == 1:
        return total.tolist()
    with exchanging():  # NCCL's ends when the values are read
        total = total.to(accelerator().current_device_name())
        dist.all_reduce(total)
        return total.tolist()


def gather_from_all_ranks(value: Any) -> list[Any]:
    """Return every rank's value (anything small), by rank."""
    found = [None] * dist.get_world_size()
    with exchanging():
        dist.all_gather_object(found, value)
    return found


def broadcast_from_rank_0(value: Any) -> Any:
    """Return rank 0's value (anything small), on every rank."""
    box = [value]
    device = torch.device(accelerator().current_device_name())
    with exchanging():
        dist.broadcast_object_list(box, src=0, device=device)
    return box[0]


def stop_together(what: str) -> None:
    """Raise Stopped on every rank if any was asked to stop. Every rank must call it.

    what  was going on: it follows "stopped by SIGTERM"
    """
    for by in filter(None, gather_from_all_ranks(stop_signal())):
        raise Stopped(by, what)
