"""launch/slurm.sbatch: what it makes of a job that SLURM gave, with GPUs and without."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.captures import ROOT

from depthdist.distributed.launchers import FIRST_PORT, NUM_PORTS, slurm_port

GPUS = {"SLURM_GPUS_ON_NODE": 4, "SLURM_CPUS_ON_NODE": 64}
ARRAY = {"SLURM_ARRAY_JOB_ID": 7, "SLURM_ARRAY_TASK_ID": 2}


def job(folder, *words, **env):
    """What a job of that script prints, whose srun prints its words, one a line."""
    (folder / "srun").write_text('#!/bin/bash\nprintf "srun %s\\n" "$@"\nexit ${SRUN_CODE:-0}\n')
    (folder / "scontrol").write_text('#!/bin/bash\necho "scontrol $*"\n')
    for name in ("srun", "scontrol"):
        (folder / name).chmod(0o755)
    known = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    known |= {"PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    known |= {"SLURM_JOB_ID": "8", "SLURM_JOB_NODELIST": "n[1-2]"}
    known |= {name: str(value) for name, value in env.items()}
    done = subprocess.run(
        ["bash", "launch/slurm.sbatch", *words], cwd=ROOT, env=known, capture_output=True, text=True
    )
    assert not done.stderr, done
    said, *lines = done.stdout.splitlines()
    given = [line.removeprefix("srun ") for line in lines if line.startswith("srun ")]
    return said, given, [line for line in lines if line.startswith("scontrol ")], done.returncode


@pytest.mark.parametrize(
    ("env", "nodes", "tasks", "gpus", "cpus"),
    [
        (GPUS, 1, 4, 4, 16),
        ({**GPUS, "SLURM_JOB_NUM_NODES": 2}, 2, 4, 4, 16),
        ({**GPUS, "SLURM_GPUS_PER_NODE": "a100:2"}, 1, 2, 2, 32),
        ({**GPUS, "SLURM_GPUS_PER_NODE": 0}, 1, 1, 0, 64),
        ({"SLURM_CPUS_ON_NODE": 12}, 1, 1, 0, 12),
        ({"SLURM_CPUS_ON_NODE": 7, "SLURM_NTASKS_PER_NODE": 2}, 1, 2, 0, 2),
        ({"SLURM_CPUS_ON_NODE": 2, "SLURM_NTASKS_PER_NODE": 4}, 1, 4, 0, 1),
        ({**GPUS, "SLURM_NTASKS_PER_NODE": 2, "SLURM_CPUS_PER_TASK": 3}, 1, 2, 4, 3),
    ],
)
def test_processes_follow_from_what_the_nodes_have_and_what_was_asked_for(
    env, nodes, tasks, gpus, cpus, tmp_path
):
    said, given, _, code = job(tmp_path, "--data", "x", **env)
    step = [
        f"--nodes={nodes}",
        f"--ntasks={nodes * tasks}",
        f"--ntasks-per-node={tasks}",
        f"--cpus-per-task={cpus}",
    ]
    step += [f"--gpus-per-node={gpus}"] if gpus else []  # only so has a step what the job has
    train = ["python", "-u", "launch/train.py", "--run", "runs/slurm-8", "--data", "x"]
    assert given == ["--kill-on-bad-exit=0", *step, *train] and code == 0
    assert said == (
        f"slurm        job 8 on n[1-2]: {nodes} x {tasks} processes, {gpus} GPUs a node and"
        f" {cpus} CPUs a process; run runs/slurm-8, port {FIRST_PORT + 8 * 16}"
    )


def test_each_job_of_an_array_has_its_own_run_and_its_number_in_the_words(tmp_path):
    said, given, _, _ = job(tmp_path, "--seed", "{task}", **GPUS, **ARRAY)
    assert given[-4:] == ["--run", "runs/slurm-7_2", "--seed", "2"] and "runs/slurm-7_2" in said
    said, given, _, _ = job(tmp_path, "--run", "runs/s-{task}", **GPUS, **ARRAY)
    assert given[-2:] == ["--run", "runs/s-2"] and "run runs/s-2," in said
    _, given, _, _ = job(tmp_path, "--seed", "{task}", **GPUS)
    assert given[-1] == "{task}"


def test_a_job_that_was_stopped_queues_again_and_one_that_failed_does_not(tmp_path):
    assert job(tmp_path, SRUN_CODE=75)[2:] == (["scontrol requeue 8"], 75)
    assert job(tmp_path, SRUN_CODE=2)[2:] == ([], 2)


def test_steps_of_a_job_and_jobs_of_a_node_meet_at_ports_of_their_own(monkeypatch):
    ports = {}
    for job_id in (12, 13, 4711, 10**6):
        for step in range(3):
            monkeypatch.setenv("SLURM_JOB_ID", str(job_id))
            monkeypatch.setenv("SLURM_STEP_ID", str(step))
            ports[slurm_port()] = job_id, step
    assert len(ports) == 12
    assert all(FIRST_PORT <= port < FIRST_PORT + NUM_PORTS for port in ports)
    assert FIRST_PORT + NUM_PORTS <= 32768, "Linux gives others to outgoing connections"
