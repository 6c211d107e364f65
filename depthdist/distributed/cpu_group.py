"""The processes that make one dataset together, on CPUs.

`deepspeed`, `torchrun` or `srun` start the same command many times:

    group = CpuGroup()                    # one process where no launcher is used
    mine = jobs[group.rank :: group.size]
    values = group.gather(value)          # each rank's value, on every rank; all wait for all

torch is only imported where there is more than one process.
"""

from __future__ import annotations

import sys
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
        try:
            dist.all_gather_object(found, value, self.group)
        except RuntimeError as err:
            raise ValueError(
                f"rank {self.rank} of {self.size}: another rank is gone; finished shards are kept,"
                f" run again ({_first_line(err)})"
            ) from err
        return found

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
