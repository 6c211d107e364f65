"""SLURM's own launcher: `srun python launch/train.py` starts one process for each GPU.

adopt_slurm_variables() gives its variables the names that torch and the other launchers use: RANK,
LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from pathlib import Path

FIRST_PORT, NUM_PORTS = 20000, 12000  # below those that Linux gives to outgoing connections
STEPS_A_JOB = 16  # of one job that may run at once


def adopt_slurm_variables() -> None:
    """Set torch's variables from those of srun.

    Nothing changes where srun did not start this process, or another launcher runs under it, or
    somebody typed it in a shell: `srun -n4 --pty bash` gives that one shell the variables of four
    tasks, of which three are over at once.
    """
    env = os.environ
    # of srun; the batch script itself has no SLURM_STEP_NUM_TASKS, though SLURM_NTASKS
    num_tasks = int(env.get("SLURM_STEP_NUM_TASKS") or 1)
    if "RANK" in env or num_tasks == 1 or _is_typed_in_a_step(num_tasks):
        return
    by_node = tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE") or str(num_tasks))
    env["RANK"] = env["SLURM_PROCID"]
    env["LOCAL_RANK"] = env.get("SLURM_LOCALID") or env["SLURM_PROCID"]
    env["WORLD_SIZE"] = str(num_tasks)
    env["LOCAL_WORLD_SIZE"] = str(by_node[int(env.get("SLURM_NODEID") or 0)])
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_NODELIST") or "127.0.0.1"
    env.setdefault("MASTER_ADDR", first_host(nodes))
    env.setdefault("MASTER_PORT", str(slurm_port()))


def slurm_port() -> int:
    """Return the port at which the ranks of this step meet: two jobs or steps on a node have two.

    In the batch script it is that of the job's first step.
    """
    job, step = (int(os.environ.get(name) or 0) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return FIRST_PORT + (job * STEPS_A_JOB + step % STEPS_A_JOB) % NUM_PORTS


@functools.cache
def _is_typed_in_a_step(num_tasks: int) -> bool:
    """Return whether an interactive shell of this step started this process, and then say so."""
    if not _has_interactive_shell(os.getpid()):
        return False
    print(
        f"one process: this is a shell inside a SLURM step of {num_tasks} tasks; `srun python ...`"
        " starts a process for each",
        file=sys.stderr,
    )
    return True


def _has_interactive_shell(pid: int) -> bool:
    """Return whether a process that began with srun's variables, on a terminal, runs us as a job.

    Only interactive shells give what they start a process group of its own (job control); a script,
    `bash -c` and slurmstepd do not.
    """
    parent, child_group, _ = _process(pid)
    while parent > 1:
        grandparent, group, terminal = _process(parent)
        if terminal and group != child_group and _is_task(parent):
            return True
        parent, child_group = grandparent, group
    return False


def _process(pid: int) -> tuple[int, int, int]:
    """Return a process's parent, its group and the number of its terminal; 0 for what is hidden."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # another system, or another user's process
        return 0, 0, 0
    _, parent, group, _, terminal = text.rpartition(")")[2].split()[:5]
    return int(parent), int(group), int(terminal)


def _is_task(pid: int) -> bool:
    try:
        return b"SLURM_STEP_NUM_TASKS=" in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def why_so_many_ranks() -> str:
    """Return where the number of ranks comes from, for messages."""
    env = os.environ
    if env.get("SLURM_STEP_NUM_TASKS") == env.get("WORLD_SIZE") and "SLURM_PROCID" in env:
        return f"SLURM_STEP_NUM_TASKS is {env['SLURM_STEP_NUM_TASKS']}"
    return f"WORLD_SIZE is {env.get('WORLD_SIZE')}"


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
