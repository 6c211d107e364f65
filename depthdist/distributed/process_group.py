"""The ranks of a run: how they meet, what they tell each other, and how they part.

    world = start()  # World(rank, size, device); without a launcher a world of one
    totals = sum_over_ranks([loss, count])
    stop()                                # all leave together

failure_watch.py ends all of them when one fails.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

if not torch.cuda.is_available():
    os.environ.setdefault(
        "DS_ACCELERATOR", "cpu"
    )  # else DeepSpeed warns that it found nothing better

import deepspeed
from deepspeed.accelerator import get_accelerator

from depthdist.core.errors import (
    Stopped as Stopped,  # what a run raises that was asked to stop and has saved
)
from depthdist.core.errors import one_line
from depthdist.distributed import launchers as slurm
from depthdist.distributed.failure_watch import FailureWatch

slurm.adopt_slurm_variables()
# seconds from a SIGTERM until another one is another wish: when a process group gets it, its
# launcher sends it once more
AGAIN = 5.0


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`, and the device it computes on."""

    rank: int
    size: int
    device: torch.device


watch: FailureWatch | None = None  # from start to stop, of several ranks


def world_size() -> int:
    """How many ranks the launcher started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def timeout_seconds() -> float:
    """Seconds that a rank waits for the others, to meet and in each exchange.

    DEPTHDIST_TIMEOUT in the environment sets it.
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
    """Join the other ranks. Without a launcher this process is a world of one."""
    global watch
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    for name, value in (
        ("RANK", "0"),
        ("LOCAL_RANK", "0"),
        ("WORLD_SIZE", "1"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", "0"),
    ):
        os.environ.setdefault(name, value)
    accelerator, local = get_accelerator(), int(os.environ["LOCAL_RANK"])
    if accelerator.device_name() == "cpu":
        local_world = int(
            os.environ.get("LOCAL_WORLD_SIZE")
            or os.environ.get("LOCAL_SIZE")
            or os.environ["WORLD_SIZE"]
        )
        if "OMP_NUM_THREADS" not in os.environ or local_world > 1:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world))
        device = torch.device("cpu")
    else:
        if local >= accelerator.device_count():
            raise ValueError(
                f"process {local} of this machine sees {accelerator.device_count()} devices;"
                " expected all of the machine in every process, one for each"
            )
        accelerator.set_device(local)
        device = torch.device(accelerator.device_name(local))
    # DeepSpeed would compile a shared-memory all-reduce for the CPU: half a minute and a compiler,
    # for 2 MB of gradients
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend, limit = accelerator.communication_backend_name(), timedelta(seconds=timeout_seconds())
    try:
        if (
            world_size() > 1
            # DeepSpeed would meet here too, but a second time under torchrun it would find the
            # addresses of the first
        ):
            store, rank, size = next(rendezvous("env://", timeout=limit))
            store = dist.PrefixStore(_meeting(store, rank, size), store)
            dist.init_process_group(
                backend,
                store=store,
                rank=rank,
                world_size=size,
                timeout=limit,
                device_id=device if device.type == "cuda" else None,
            )
            watch = FailureWatch(rank, size, store.clone(), timeout_seconds())
        deepspeed.init_distributed(
            dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=limit
        )
    except RuntimeError as err:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        hint = (
            "did every node start, and is another run using the port? Give the launcher another"
            " --master_port"
        )
        raise ValueError(f"the ranks cannot meet at {address}; {hint} ({one_line(err)})") from err
    return World(dist.get_rank(), dist.get_world_size(), device)


def _meeting(store: dist.Store, rank: int, size: int) -> str:
    """A name for this meeting that all ranks agree on, and that none of an earlier meeting in the
    same store can have meant.

    When torchrun starts its ranks again, the store holds what the former ones wrote, and every node
    counts restarts by itself.
    """
    me = uuid.uuid4().hex
    if rank == 0:
        store.set("meeting", me)
        store.set(
            f"{me}/all",
            json.dumps([store.get(f"{me}/{other}").decode() for other in range(1, size)]),
        )
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
    """Leave the other ranks when all are done, so that neither they nor a library have to complain."""
    global watch
    if watch:
        watch.part()
        watch = None
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


def gather_from_all_ranks(value: Any) -> list[Any]:
    """Every rank's value (anything small), by rank."""
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def broadcast_from_rank_0(value: Any) -> Any:
    """Rank 0's value (anything small), on every rank."""
    box = [value]
    dist.broadcast_object_list(
        box, src=0, device=torch.device(get_accelerator().current_device_name())
    )
    return box[0]


class StopRequest:
    """A wish from outside that the run should save and end: `signal` is "SIGTERM" or "SIGUSR1" from
    then on, and "" before.

        with StopRequest() as request:
            ...  # now and then: if any rank has request.signal, save, then raise Stopped(...)

    Who asks with SIGTERM again gets what the first would have done without this. Only for the main
    thread.
    """

    signal, since = "", math.inf

    def __enter__(self) -> StopRequest:
        self.before = {
            number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGUSR1)
        }
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        self.signal = self.signal or signal.Signals(number).name
        if number == signal.SIGTERM and time.monotonic() > self.since + AGAIN:
            signal.signal(number, self.before[number])
            signal.raise_signal(number)
        elif number == signal.SIGTERM:
            self.since = min(self.since, time.monotonic())
