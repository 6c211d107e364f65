"""The processes that make one dataset together, on CPUs.

`deepspeed`, `torchrun` or `srun` start the same command many times:

    group = CpuGroup()                    # one process where no launcher is used
    mine = jobs[group.rank :: group.size]
    values = group.gather(value)          # each rank's value, on every rank; all wait for all
    share = group.scatter(values)         # one of those that rank 0 has
    group.leave()                         # all leave together

Ranks wait as long as the slowest one works, for days if need be. failure_watch.py ends all of them
when one fails, is gone, or is asked to stop.

torch is only imported where there is more than one process.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from depthdist.core.command import register_ranks
from depthdist.core.environment import local_world_size, rank, world_size
from depthdist.core.errors import SettingsError
from depthdist.core.stop_signals import leave_if_stopped
from depthdist.distributed.early_failure import expect_ranks

EXCHANGE_TIMEOUT = timedelta(days=7)  # for the slowest rank; one that is gone is noticed otherwise
POLL_S = 0.02
MEANWHILE = "while shards were made; the same command goes on"
KEPT = "finished shards are kept; the same command goes on"


class CpuGroup:
    """This process's `rank` of `size`, and `local_size`, how many of them this machine runs.

    alone  whether this process works by itself, also where a launcher started several

    raises ValueError where the ranks do not meet
    """

    def __init__(self, alone: bool = False) -> None:
        if alone:
            self.rank = 0
            self.size = self.local_size = 1
            return
        expect_ranks()
        self.rank = rank()
        self.size = world_size()
        self.local_size = local_world_size()
        if self.size > 1:
            self._meet()

    def _meet(self) -> None:
        import torch.distributed as dist

        from depthdist.distributed.watched_group import connect, meet, start_watch

        met = meet()
        self.watch = start_watch(met, KEPT)
        register_ranks(self.watch.end_stopped, self.watch)
        connect(met, "gloo", self.watch, screen=sys.stderr)
        self.group = dist.new_group(timeout=EXCHANGE_TIMEOUT)

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, by rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found = [None] * self.size
        with self.exchanging():
            dist.all_gather_object(found, value, self.group)
        return found

    def gather_on_first(self, value: Any) -> list[Any]:
        """Return every rank's value, by rank, on rank 0; [] on the others."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found = None if self.rank else [None] * self.size
        with self.exchanging():
            dist.gather_object(value, found, 0, self.group)
        return found or []

    def scatter(self, values: Sequence[Any] | None) -> Any:
        """Return this rank's of the values that rank 0 gives, one for each rank."""
        if self.size == 1:
            assert values
            return values[0]
        import torch.distributed as dist

        box = [None]
        with self.exchanging():
            if self.rank:
                dist.recv_object_list(box, 0, self.group)
                return box[0]
            assert values
            for other in range(1, self.size):  # one by one: together they may be large
                dist.send_object_list([values[other]], other, self.group)
        return values[0]

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """Wait until all ranks have come, then let them exchange something.

        Meanwhile this process serves signals, which it cannot within gloo. raises Stopped on
        request
        """
        import torch.distributed as dist

        with self.watch.exchanging():
            all_have_come = dist.barrier(self.group, async_op=True)
            while not all_have_come.is_completed():
                leave_if_stopped(MEANWHILE)
                time.sleep(POLL_S)
            all_have_come.wait()  # raises what went wrong
            yield

    def agree(self, problem: str | None) -> None:
        """Raise SettingsError on every rank with what any of them found wrong; else go on."""
        found = []
        for number, text in enumerate(self.gather(problem)):
            if text:
                found.append(f"rank {number}: {text}" if self.size > 1 else text)
        if found:
            raise SettingsError(found[:3])

    def leave(self) -> None:
        """Leave the other ranks when all are done."""
        if self.size > 1:
            from depthdist.distributed.watched_group import part

            part(self.watch)
