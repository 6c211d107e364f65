"""CPU threads of a rank: part of a run, as sums in a layer are cut by threads.

remarks = settle_threads(settings.engine.cpu_threads, state, world)

With another number of threads the last bits of a weight differ, so a run keeps those that it began
with, whatever the number of ranks is later. Runs on other numbers of ranks are equal to the bit
where each rank has equally many threads. On a GPU none of this matters.
"""

from __future__ import annotations

import torch

from depthdist.distributed.process_group import World, gather_from_all_ranks
from depthdist.training.train_state import TrainState


def settle_threads(wanted: int | None, state: TrainState, world: World) -> list[str]:
    """Set the threads of this rank, the same on all, note them in the state, and return remarks.

    wanted  --cpu-threads; else those that the run began with; else the fewest that a rank has

    Every rank must call it.
    """
    if world.device.type != "cpu":
        return []
    own = min(gather_from_all_ranks(torch.get_num_threads()))
    began = state.threads
    threads = wanted or began or own
    torch.set_num_threads(threads)
    state.threads = threads
    if began and wanted and wanted != began:
        return [
            f"threads      {threads} a rank, as --cpu-threads says; the run had {began}: from here"
            " on it is not what it would have been to the bit"
        ]
    if threads != own and not wanted:
        return [f"threads      {threads} a rank, as the run began, where {own} would be chosen now"]
    return [f"threads      {threads} a rank; other numbers of ranks with as many give equal bits"]
