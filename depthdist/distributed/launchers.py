"""SLURM's own launcher: `srun python launch/train.py` starts one process a GPU, as `deepspeed` and
`torchrun` do.

# RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as torch reads them
adopt()
"""

from __future__ import annotations

import os
import re


def adopt_slurm_variables() -> None:
    """Give srun's variables the names that all others use.

    Where no srun is at work, or another launcher under it, nothing changes.
    """
    env = os.environ
    tasks = int(
        env.get("SLURM_STEP_NUM_TASKS") or 1
    )  # of srun; the batch script itself has none, though SLURM_NTASKS
    if "RANK" in env or tasks == 1:
        return
    on_node = tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE") or str(tasks))[
        int(env.get("SLURM_NODEID") or 0)
    ]
    env.update(
        RANK=env["SLURM_PROCID"],
        LOCAL_RANK=env.get("SLURM_LOCALID") or env["SLURM_PROCID"],
        WORLD_SIZE=str(tasks),
        LOCAL_WORLD_SIZE=str(on_node),
    )
    env.setdefault(
        "MASTER_ADDR",
        first_host(env.get("SLURM_STEP_NODELIST") or env.get("SLURM_NODELIST") or "127.0.0.1"),
    )
    env.setdefault(
        "MASTER_PORT", str(20000 + int(env.get("SLURM_JOB_ID") or 0) % 20000)
    )  # two jobs on one node meet at two ports


def first_host(nodes: str) -> str:
    """The node of rank 0: `gpu[03-05,9]-ib,cpu1` begins with gpu03-ib.

    (`scontrol show hostnames` is not there in a container.)
    """
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", nodes).split(",")[0]


def tasks_per_node(text: str) -> list[int]:
    """SLURM's short form written out: `8(x2),4` is 8, 8 and 4."""
    return [
        int(tasks)
        for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
        for _ in range(int(times or 1))
    ]
