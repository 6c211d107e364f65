"""Where a run may be: several machines, SLURM, torchrun. And how it ends under a launcher."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from helpers.commands import (
    LAUNCHER,
    Launch,
    Typed,
    free_port,
    last_line,
    on_ranks,
    script,
    until,
)
from helpers.runs import deepspeed_json, log, make_shards

from depthdist.core.command import register_ranks, run_command, unregister_ranks
from depthdist.core.environment import timeout_seconds
from depthdist.core.errors import Stopped
from depthdist.distributed import launchers as slurm
from depthdist.distributed import process_group as world

TORCHRUN = LAUNCHER.with_name("torchrun")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A run of 16 steps in 8 epochs, of 7 samples; its state is saved after every step."""
    folder = tmp_path_factory.mktemp("world")
    data, settings = (
        make_shards(folder, 9),
        deepspeed_json(folder / "batch4.json", train_batch_size=4),
    )
    return [
        "launch/train.py",
        "--data",
        data,
        "--model",
        "tiny",
        "--deepspeed",
        settings,
        "--epochs",
        8,
        "--lr",
        1e-3,
        "--pictures",
        0,
        "--save-every",
        1,
    ]


@pytest.fixture(scope="module")
def reference(words, tmp_path_factory):
    """What two ranks under one launcher learn."""
    run = tmp_path_factory.mktemp("reference") / "run"
    done = Launch(2, *words, "--run", run).done()
    assert done.code == 0, done
    return learned(run)


def learned(run: Path):
    """The loss of every step and evaluation, and the best adapter's weights."""
    seen = [(line["step"], line.get("train/loss"), line.get("eval/loss")) for line in log(run)]
    return seen, (run / "best/adapter_model.safetensors").read_bytes()


def at_work(typed: Typed, run: Path) -> list[psutil.Process]:
    """The processes that a launcher started, by rank, as soon as two steps are done."""

    def begun():
        assert typed.process.poll() is None, typed.done()
        return any(path.name >= "step-000002" for path in run.glob("last/step-??????"))

    until(begun)
    rank = {
        child: child.environ().get("RANK") or child.environ().get("SLURM_PROCID")
        for child in psutil.Process(typed.process.pid).children(recursive=True)
    }
    return sorted(filter(rank.get, rank), key=rank.get)


# ------------------------------------------------------------------------------------ where it runs


def test_two_nodes_with_a_launcher_each_learn_what_one_launcher_does(words, reference, tmp_path):
    hosts, port = tmp_path / "hosts", free_port()
    hosts.write_text("127.0.0.1 slots=1\n127.0.0.2 slots=1\n")
    meet = ["--hostfile", hosts, "--no_ssh", "--master_addr", "127.0.0.1", "--master_port", port]
    nodes = [
        Typed(LAUNCHER, *meet, "--node_rank", node, *words, "--run", tmp_path / "run")
        for node in range(2)
    ]
    assert [node.done().code for node in nodes] == [0, 0], nodes[0].done()
    assert learned(tmp_path / "run") == reference
    assert "nnodes=2, num_local_procs=1, node_rank=1" in nodes[1].done().out + nodes[1].done().err


def test_torchrun_on_two_nodes_starts_a_killed_rank_again_and_the_run_goes_on(
    words, reference, tmp_path
):
    meet = [
        "--nnodes",
        2,
        "--nproc_per_node",
        1,
        "--max-restarts",
        1,
        "--master_addr",
        "127.0.0.1",
        "--master_port",
        free_port(),
    ]
    nodes = [
        Typed(TORCHRUN, *meet, "--node_rank", node, "--", *words, "--run", tmp_path / "run")
        for node in range(2)
    ]
    at_work(nodes[1], tmp_path / "run")[0].kill()
    assert [node.done().code for node in nodes] == [0, 0], nodes[0].done()
    assert "going on" in nodes[0].done().out and learned(tmp_path / "run") == reference


FAKE_SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NUM_TASKS=2 SLURM_STEP_TASKS_PER_NODE=2
export SLURM_NODEID=0 SLURM_STEP_NODELIST=127.0.0.1
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & first=$!
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & second=$!
wait $first; code=$?
wait $second; other=$?
exit $((code > other ? code : other))
"""


def test_a_slurm_job_saves_before_its_time_is_up_queues_again_and_goes_on(
    words, reference, tmp_path
):
    (tmp_path / "srun").write_text(FAKE_SRUN)
    (tmp_path / "scontrol").write_text(f'#!/bin/bash\necho "$@" >>{tmp_path}/scontrol.log\n')
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"

    def job():
        return Typed(
            "bash",
            "launch/slurm.sbatch",
            *words,
            "--run",
            tmp_path / "run",
            PATH=path,
            SLURM_JOB_ID=4711,
            MASTER_PORT=free_port(),
        )

    words = words[1:]  # the script is in the job
    first = job()
    for rank in at_work(first, tmp_path / "run"):
        rank.send_signal(signal.SIGUSR1)
    done = first.done()
    assert done.code == 75 and (tmp_path / "scontrol.log").read_text() == "requeue 4711\n", done
    assert done.err.count("stopped by SIGUSR1 at step") == 1 and "Traceback" not in done.err
    assert job().done().code == 0 and learned(tmp_path / "run") == reference
    assert (tmp_path / "scontrol.log").read_text() == "requeue 4711\n", (
        "a job that is done does not queue again"
    )


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu7", "gpu7"),
        ("a,b", "a"),
        ("gpu[03-05,9]-ib,cpu1", "gpu03-ib"),
        ("rack[1-2]node[10,12]", "rack1node10"),
        ("127.0.0.1", "127.0.0.1"),
    ],
)
def test_ranks_under_slurm_meet_on_the_first_node(nodes, host):
    assert slurm.first_host(nodes) == host


def adopted(monkeypatch, **env):
    monkeypatch.setattr(os, "environ", {name: str(value) for name, value in env.items()})
    slurm.adopt_slurm_variables()
    return {
        name: os.environ.get(name)
        for name in (
            "RANK",
            "LOCAL_RANK",
            "WORLD_SIZE",
            "LOCAL_WORLD_SIZE",
            "MASTER_ADDR",
            "MASTER_PORT",
        )
    }


STEP = {
    "SLURM_JOB_ID": 4711,
    "SLURM_STEP_ID": 2,
    "SLURM_STEP_NUM_TASKS": 20,
    "SLURM_PROCID": 17,
    "SLURM_LOCALID": 1,
    "SLURM_NODEID": 2,
}
STEP |= {"SLURM_STEP_TASKS_PER_NODE": "8(x2),4", "SLURM_STEP_NODELIST": "gpu[03-05]"}


def test_an_srun_task_is_a_rank(monkeypatch):
    assert list(adopted(monkeypatch, **STEP).values()) == ["17", "1", "20", "4", "gpu03", "23378"]
    assert list(adopted(monkeypatch, **STEP, MASTER_ADDR="ib3", MASTER_PORT=5).values())[-2:] == [
        "ib3",
        "5",
    ]


def test_a_launcher_under_srun_and_a_command_alone_are_left_as_they_are(monkeypatch):
    assert adopted(monkeypatch, **STEP, RANK=3)["WORLD_SIZE"] is None
    assert not any(adopted(monkeypatch, **{**STEP, "SLURM_STEP_NUM_TASKS": 1}).values())
    assert not any(adopted(monkeypatch, SLURM_JOB_ID=4711, SLURM_NTASKS=8).values()), (
        "the batch script is no task"
    )


# --------------------------------------------------------------------------------- how ranks behave


def slow_to_write(*words):
    """Training whose rank 0 takes seconds to write an adapter."""
    import time

    from depthdist.core.command import run_command
    from depthdist.training import command, keeping

    write = keeping.save_adapter
    keeping.save_adapter = lambda *given: time.sleep(3) or write(*given)
    run_command(lambda: command.main(list(words)))


def test_the_best_adapter_is_scored_once_it_is_written(words, tmp_path):
    done = on_ranks(
        2, slow_to_write, tmp_path, *words[1:], "--epochs", 1, "--run", tmp_path / "run"
    ).done()
    assert done.code == 0 and "best adapter, epoch 1" in done.out, done


def test_a_process_that_does_not_see_its_gpu_says_so(monkeypatch):
    one_gpu = SimpleNamespace(device_name=lambda: "cuda", device_count=lambda: 1)
    monkeypatch.setattr(world, "accelerator", lambda: one_gpu)
    for name, value in (
        ("RANK", 1),
        ("LOCAL_RANK", 1),
        ("WORLD_SIZE", 2),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", 1),
    ):
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ValueError, match="process 1 of this machine sees 1 devices; expected all"):
        world.start()
    with pytest.raises(ValueError, match="srun --gpu-bind=none"):
        world.start()


def fails_alone():
    """The only rank fails, and says at its very end whether it has left its process group."""
    import atexit

    import torch.distributed as dist

    from depthdist.core.command import run_command
    from depthdist.distributed import process_group

    def main():
        process_group.start()
        raise ValueError("bad")

    atexit.register(lambda: print("still in its group:", dist.is_initialized()))
    run_command(main)


def test_a_single_rank_that_fails_leaves_its_group_so_that_nccl_says_nothing(tmp_path):
    done = Typed(sys.executable, script(fails_alone, tmp_path)).done()
    assert (done.code, done.err) == (2, "fails_alone.py: error: bad\n")
    assert done.out.splitlines()[-1] == "still in its group: False"


@pytest.mark.parametrize("text", ["soon", "0", "-3", "inf", "nan", ""])
def test_a_timeout_that_is_no_time_is_refused(text, monkeypatch):
    monkeypatch.setenv("DEPTHDIST_TIMEOUT", text)
    with pytest.raises(ValueError, match=f"DEPTHDIST_TIMEOUT is '{text}': expected seconds > 0"):
        timeout_seconds()


def test_a_rank_killed_under_the_launcher_is_named_last_and_nothing_is_left_behind(words, tmp_path):
    launch = Launch(2, *words, "--run", tmp_path / "run", "--epochs", 10000)
    ranks = at_work(launch, tmp_path / "run")
    began = time.monotonic()
    ranks[1].kill()
    done = launch.done(60)
    assert (
        time.monotonic() - began < 20
        and done.code in (1, 256 - signal.SIGKILL)
        and "Traceback" not in done.err
    ), done
    line = last_line(done.err, "train.py")
    assert line.startswith("train.py: rank 1 on ")
    assert line.endswith(f"(pid {ranks[1].pid}): gone without a word: killed, out of memory?")
    assert not any(rank.is_running() for rank in ranks)


# ----------------------------------------------------------------------- when somebody asks to stop


def test_a_signal_to_one_rank_under_the_launcher_saves_and_ends_all_with_75(words, tmp_path):
    launch = Launch(2, *words, "--run", tmp_path / "run", "--epochs", 10000)
    at_work(launch, tmp_path / "run")[1].terminate()
    done = launch.done(60)
    assert done.code == 75 and "Traceback" not in done.err, done
    line = last_line(done.err, "train.py")
    assert done.err.count("train.py: stopped by SIGTERM at step ") == 1
    assert line.endswith("the same command goes on")
    newest = max((tmp_path / "run/last").glob("step-*"))
    assert json.loads((newest / "state.json").read_text())["train"]["step"] == int(
        line.split("at step ")[1].split()[0]
    )


@pytest.mark.parametrize(("by", "code"), [("SIGTERM", 75), ("Ctrl-C", 130)])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_command_ends_with_its_code_and_rank_0_says_why(
    rank, by, code, monkeypatch, capsys
):
    said = "" if rank else f"thing.py: stopped by {by} at step 3\n"

    def stops():
        raise Stopped(by, "at step 3")

    left = []
    register_ranks(lambda: left.append(True), judge=None)
    monkeypatch.setattr(sys, "argv", ["some/thing.py"])
    monkeypatch.setenv("RANK", str(rank))
    with pytest.raises(SystemExit) as end:
        run_command(stops)
    unregister_ranks()
    assert (end.value.code, capsys.readouterr().err, left) == (code, said, [True])
