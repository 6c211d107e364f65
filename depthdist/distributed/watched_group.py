"""The process group of ranks that have met, and the watch that ends all when one fails.

met = meet()
watch = start_watch(met)
register_ranks(leave, watch)
connect(met, "gloo", watch)
part(watch)                           # all leave together
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import TextIO

import torch
import torch.distributed as dist

from depthdist.core.command import unregister_ranks
from depthdist.core.environment import rank, timeout_seconds, world_size
from depthdist.core.errors import one_line
from depthdist.distributed.failure_watch import FailureWatch
from depthdist.distributed.meeting import Meeting, Met, describe_failed_meeting

NCCL_HINT = {"NCCL": ", NCCL_DEBUG=INFO says more"}


def meet() -> Met:
    """Return when all ranks have come; raise ValueError where they do not meet."""
    try:
        return Meeting(timeout_seconds()).wait()
    except RuntimeError as err:  # torch's errors of the meeting are all of this kind
        raise ValueError(describe_failed_meeting(err)) from err


def start_watch(met: Met, kept: str = "") -> FailureWatch:
    """Watch all ranks from now on.

    kept  see FailureWatch
    """
    return FailureWatch(rank(), met.places, met.store.clone(), timeout_seconds(), kept)


def connect(
    met: Met,
    backend: str,
    watch: FailureWatch,
    device: torch.device | None = None,
    screen: TextIO | None = None,
) -> None:
    """Make the process group of all ranks.

    DeepSpeed would make it too, but a second time under torchrun it would find the addresses of the
    first. NCCL connects in here, and waits for a rank without any limit of its own.

    screen  where rank 0 says which network it takes, by default standard output

    raises ValueError where they cannot reach one another
    """
    # else NCCL's own watchdog kills every rank that waits, and nobody says for which
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    line = met.choose_interface(rank())
    if line and rank() == 0:
        print(line, file=screen or sys.stdout, flush=True)
    try:
        with watch.exchanging():
            dist.init_process_group(
                backend,
                store=met.store,
                rank=rank(),
                world_size=world_size(),
                timeout=timedelta(seconds=timeout_seconds()),
                device_id=device if device and device.type == "cuda" else None,
            )
    except RuntimeError as err:
        name = backend.upper()
        raise ValueError(
            f"the ranks have met, but cannot reach one another ({one_line(err)}): a firewall, or"
            f" another network? {name}_SOCKET_IFNAME names the interface{NCCL_HINT.get(name, '')}"
        ) from err


def part(watch: FailureWatch | None) -> None:
    """Leave the other ranks when all are done, so that none of them reports a lost connection.

    watch  None of a rank that is the only one
    """
    if watch:
        watch.part()
    unregister_ranks()
    if dist.is_initialized():
        dist.destroy_process_group()
