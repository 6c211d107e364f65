"""SLURM's own launcher: `srun python launch/train.py` starts one process for each GPU.

adopt_slurm_variables() gives its variables the names that torch and the other launchers use: RANK,
LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
"""

from __future__ import annotations

import os
import re

FIRST_PORT, NUM_PORTS = 20000, 20000  # two jobs on one node meet at two ports


def adopt_slurm_variables() -> None:
    """Set torch's variables from those of srun.

    Nothing changes where srun did not start this process, or another launcher runs under it.
    """
    env = os.environ
    # of srun; the batch script itself has no SLURM_STEP_NUM_TASKS, though SLURM_NTASKS
    num_tasks = int(env.get("SLURM_STEP_NUM_TASKS") or 1)
    if "RANK" in env or num_tasks == 1:
        return
    by_node = tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE") or str(num_tasks))
    env["RANK"] = env["SLURM_PROCID"]
    env["LOCAL_RANK"] = env.get("SLURM_LOCALID") or env["SLURM_PROCID"]
    env["WORLD_SIZE"] = str(num_tasks)
    env["LOCAL_WORLD_SIZE"] = str(by_node[int(env.get("SLURM_NODEID") or 0)])
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_NODELIST") or "127.0.0.1"
    env.setdefault("MASTER_ADDR", first_host(nodes))
    port = FIRST_PORT + int(env.get("SLURM_JOB_ID") or 0) % NUM_PORTS
    env.setdefault("MASTER_PORT", str(port))


def first_host(nodes: str) -> str:
    """Return the node of rank 0: `gpu[03-05,9]-ib,cpu1` begins with gpu03-ib.

    `scontrol show hostnames` does the same, but is missing in containers.
    """
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", nodes).split(",")[0]


def tasks_per_node(text: str) -> list[int]:
    """Return the number of tasks of each node; SLURM writes 8, 8 and 4 as `8(x2),4`."""
    counts = []
    for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(tasks)] * int(times or 1)
    return counts
