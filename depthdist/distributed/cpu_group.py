"""The processes that make one dataset together, on CPUs.

`deepspeed`, `torchrun` or `srun` start the same command many times:

    group = CpuGroup()                    # one process where no launcher is used
    mine = jobs[group.rank :: group.size]
    values = group.gather(value)          # each rank's value, on every rank; all wait for all
    share = group.scatter(values)         # one of those that rank 0 has

torch is only imported where there is more than one process.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from depthdist.core.command import unregister_ranks
from depthdist.core.environment import local_world_size, rank, world_size
from depthdist.core.errors import SettingsError
from depthdist.distributed.early_failure import expect_ranks
from depthdist.distributed.meeting import Meeting, describe_failed_meeting

MEETING_TIMEOUT = timedelta(minutes=10)  # until all have started
EXCHANGE_TIMEOUT = timedelta(days=7)  # for the slowest rank; a dead one is noticed at once


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

        try:
            met = Meeting(MEETING_TIMEOUT.total_seconds()).wait()
            line = met.choose_interface(self.rank)
            if line and self.rank == 0:
                print(line, file=sys.stderr, flush=True)
            dist.init_process_group(
                "gloo",
                store=met.store,
                rank=self.rank,
                world_size=self.size,
                timeout=MEETING_TIMEOUT,
            )
        except RuntimeError as err:  # torch's errors of the meeting are all of this kind
            raise ValueError(describe_failed_meeting(err)) from err
        unregister_ranks()  # from now on they notice one another's ends in `gather`
        self.group = dist.new_group(timeout=EXCHANGE_TIMEOUT)

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, by rank; raise ValueError when a rank is gone."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found = [None] * self.size
        with self._naming_lost_ranks():
            dist.all_gather_object(found, value, self.group)
        return found

    def gather_on_first(self, value: Any) -> list[Any]:
        """Return every rank's value, by rank, on rank 0; [] on the others."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found = None if self.rank else [None] * self.size
        with self._naming_lost_ranks():
            dist.gather_object(value, found, 0, self.group)
        return found or []

    def scatter(self, values: Sequence[Any] | None) -> Any:
        """Return this rank's of the values that rank 0 gives, one for each rank."""
        if self.size == 1:
            assert values
            return values[0]
        import torch.distributed as dist

        box = [None]
        with self._naming_lost_ranks():
            if self.rank:
                dist.recv_object_list(box, 0, self.group)
                return box[0]
            assert values
            for other in range(1, self.size):  # one by one: together they may be large
                dist.send_object_list([values[other]], other, self.group)
        return values[0]

    @contextmanager
    def _naming_lost_ranks(self) -> Iterator[None]:
        """Give an exchange that fails the line that says why."""
        try:
            yield
        except RuntimeError as err:
            raise ValueError(
                f"rank {self.rank} of {self.size}: another rank is gone; finished shards are kept,"
                f" run again ({_first_line(err)})"
            ) from err

    def agree(self, problem: str | None) -> None:
        """Raise SettingsError on every rank with what any of them found wrong; else go on."""
        found = []
        for number, text in enumerate(self.gather(problem)):
            if text:
                found.append(f"rank {number}: {text}" if self.size > 1 else text)
        if found:
            raise SettingsError(found[:3])

    def leave(self) -> None:
        """Leave the other ranks."""
        if self.size > 1:
            import torch.distributed as dist

            dist.destroy_process_group()


def _first_line(err: RuntimeError) -> str:
    return str(err).splitlines()[0][:120]
