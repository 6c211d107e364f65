"""The ranks of a run: how they meet, exchange values, and part.

    world = start()                       # World(rank, size, device); one rank without a launcher
    totals = sum_over_ranks([loss, count])
    stop()                                # all leave together

failure_watch.py ends all of them when one fails.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from depthdist.core.command import register_ranks, unregister_ranks
from depthdist.core.environment import local_rank, local_world_size, rank, usable_cores, world_size
from depthdist.core.errors import Stopped, one_line
from depthdist.core.stop_signals import stop_signal
from depthdist.distributed.accelerator import accelerator, load_deepspeed
from depthdist.distributed.failure_watch import FailureWatch
from depthdist.distributed.launchers import adopt_slurm_variables
from depthdist.distributed.missing_ranks import tell_missing_ranks

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


def timeout_seconds() -> float:
    """Return the seconds that a rank waits for the others, to meet and in each exchange.

    DEPTHDIST_TIMEOUT in the environment sets it. raises ValueError where that is no number > 0
    """
    text = os.environ.get("DEPTHDIST_TIMEOUT", "600")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < math.inf:
        raise ValueError(f"DEPTHDIST_TIMEOUT is {text!r}: expected seconds > 0, such as 600")
    return seconds


def start() -> World:
    """Join the other ranks and return this one's place; without a launcher it is the only one.

    raises ValueError where the ranks cannot meet, or this machine has too few devices
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    adopt_slurm_variables()
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    device = _own_device()
    backend = accelerator().communication_backend_name()
    limit = timedelta(seconds=timeout_seconds())
    try:
        if world_size() > 1:
            with tell_missing_ranks(rank(), world_size()):
                _meet(backend, limit, device)
        register_ranks(lambda: stop(), _watch)
        _start_deepspeed(backend, limit)
    except RuntimeError as err:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ValueError(
            f"the ranks cannot meet at {address}; did every node start, and is another run using"
            f" the port? Give the launcher another --master_port ({one_line(err)})"
        ) from err
    return World(dist.get_rank(), dist.get_world_size(), device)


def _own_device() -> torch.device:
    """Return the device of this rank; on a CPU also set its share of the cores."""
    if accelerator().device_name() == "cpu":
        if "OMP_NUM_THREADS" not in os.environ or local_world_size() > 1:
            torch.set_num_threads(max(1, usable_cores() // local_world_size()))
        return torch.device("cpu")
    local = local_rank()
    if local >= accelerator().device_count():
        raise ValueError(
            f"process {local} of this machine sees {accelerator().device_count()} devices; expected"
            " all of the machine in every process, one for each"
        )
    accelerator().set_device(local)
    return torch.device(accelerator().device_name(local))


def _meet(backend: str, limit: timedelta, device: torch.device) -> None:
    """Join the process group of all ranks and start to watch for failures.

    DeepSpeed would meet here too, but a second time under torchrun it would find the addresses of
    the first.
    """
    global _watch
    store: Any
    store, rank, size = next(rendezvous("env://", timeout=limit))
    name = _meeting_name(store, rank, size)
    store = dist.PrefixStore(name, store)
    dist.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=size,
        timeout=limit,
        device_id=device if device.type == "cuda" else None,
    )
    _watch = FailureWatch(rank, size, store.clone(), timeout_seconds())


def _start_deepspeed(backend: str, limit: timedelta) -> None:
    deepspeed = load_deepspeed()
    # DeepSpeed would compile a shared-memory all-reduce for the CPU: half a minute and a compiler,
    # for 2 MB of gradients
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=limit
    )


def _meeting_name(store: Any, rank: int, size: int) -> str:
    """Return a name that all ranks agree on and that no earlier meeting in this store can have.

    When torchrun starts its ranks again, the store holds what the former ones wrote, and every node
    counts restarts by itself.
    """
    me = uuid.uuid4().hex
    if rank == 0:
        store.set("meeting", me)
        others = [store.get(f"{me}/{other}").decode() for other in range(1, size)]
        store.set(f"{me}/all", json.dumps(others))
        return me
    deadline = time.monotonic() + timeout_seconds()
    while time.monotonic() < deadline:
        name = store.get("meeting").decode()
        store.set(f"{name}/{rank}", me)
        if store.check([f"{name}/all"]) and me in json.loads(store.get(f"{name}/all")):
            return name
        time.sleep(0.02)
    raise RuntimeError(f"rank {rank} has waited {timeout_seconds():g} s for rank 0")


def stop() -> None:
    """Leave the other ranks when all are done, so that none of them reports a lost connection."""
    global _watch
    if _watch:
        _watch.part()
        _watch = None
    unregister_ranks()
    if dist.is_initialized():
        dist.destroy_process_group()


def sum_over_ranks(values: Iterable[float]) -> list[float]:
    """Return each number added up over all ranks, in float64, the same on every rank."""
    total = torch.tensor(list(values), dtype=torch.float64)
    if dist.get_world_size() > 1:
        total = total.to(accelerator().current_device_name())
        dist.all_reduce(total)
    return total.tolist()


def gather_from_all_ranks(value: Any) -> list[Any]:
    """Return every rank's value (anything small), by rank."""
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def broadcast_from_rank_0(value: Any) -> Any:
    """Return rank 0's value (anything small), on every rank."""
    box = [value]
    device = torch.device(accelerator().current_device_name())
    dist.broadcast_object_list(box, src=0, device=device)
    return box[0]


def stop_together(what: str) -> None:
    """Raise Stopped on every rank if any was asked to stop. Every rank must call it.

    what  was going on: it follows "stopped by SIGTERM"
    """
    for by in filter(None, gather_from_all_ranks(stop_signal())):
        raise Stopped(by, what)
