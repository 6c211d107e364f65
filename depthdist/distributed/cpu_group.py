"""The processes that make one dataset together: `deepspeed`, `torchrun` or `srun` start the same
command many times.

    ranks = Ranks()                       # alone where no launcher is at work
    mine = jobs[ranks.rank :: ranks.size]
    # each rank's value, on every rank; also the point where all wait for all
    everyone = ranks.gather(value)

torch is only imported where there is more than one process.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from depthdist.core.errors import SettingsError
from depthdist.distributed import launchers as slurm

MEET = timedelta(minutes=10)  # for all to be there
WAIT = timedelta(days=7)  # for the slowest rank; a dead one is noticed at once


class CpuGroup:
    """This process's `rank` among `size`, and `local_size`, how many of them are on this machine."""

    def __init__(self):
        slurm.adopt_slurm_variables()
        env = os.environ
        self.rank, self.size = int(env.get("RANK") or 0), int(env.get("WORLD_SIZE") or 1)
        self.local_size = int(env.get("LOCAL_WORLD_SIZE") or env.get("LOCAL_SIZE") or self.size)
        if self.size > 1:
            import torch.distributed as dist

            try:
                dist.init_process_group("gloo", rank=self.rank, world_size=self.size, timeout=MEET)
            except RuntimeError as err:  # torch's errors of the meeting are all of this kind
                at = f"{env.get('MASTER_ADDR')}:{env.get('MASTER_PORT')}"
                raise ValueError(
                    f"rank {self.rank}: the {self.size} ranks did not meet at {at}"
                    f" ({str(err).splitlines()[0][:120]})"
                ) from err
            self.group = dist.new_group(timeout=WAIT)

    def gather(self, value: Any) -> list[Any]:
        """Everyone's value, by rank. raises ValueError when a rank is gone"""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found = [None] * self.size
        try:
            dist.all_gather_object(found, value, self.group)
        except RuntimeError as err:
            raise ValueError(
                f"rank {self.rank} of {self.size}: another rank is gone; finished shards are kept,"
                f" run again ({str(err).splitlines()[0][:120]})"
            ) from err
        return found

    def agree(self, problem: str | None) -> None:
        """Go on together, or stop together: raises what any rank found wrong, the same on all."""
        found = [
            f"rank {rank}: {text}" if self.size > 1 else text
            for rank, text in enumerate(self.gather(problem))
            if text
        ]
        if found:
            raise SettingsError(found[:3])

    def leave(self) -> None:
        if self.size > 1:
            import torch.distributed as dist

            dist.destroy_process_group()
