"""Where a run may be: several machines, SLURM, torchrun.

And how it ends, on all ranks, when one fails or somebody asks it to.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from helpers.commands import LAUNCHER, Launch, Typed, free_port, on_ranks, on_srun, script
from helpers.runs import deepspeed_json, log, make_shards

from depthdist.core.command import register_ranks, run_command, unregister_ranks
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


def until(found, seconds: float = 120):
    """What `found()` returns as soon as it is something."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)
    return value


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


@pytest.fixture(autouse=True)
def nothing_stays():
    yield
    for child in psutil.Process().children(recursive=True):
        child.kill()


def last_line(text: str) -> str:
    """The last line that is not a launcher's."""
    return [line for line in text.splitlines() if line.startswith(("train.py: ", "failing.py: "))][
        -1
    ]


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


# -------------------------------------------------------------------------------- when a rank fails


def failing(how, bad="1", others="waiting"):
    """Rank `bad` fails at step 5 while the others wait for it, maybe on another machine, or are
    busy for an hour, as in an exchange that never ends."""
    import os
    import signal
    import time

    from depthdist.core.command import run_command
    from depthdist.distributed import failure_watch, process_group
    from depthdist.distributed.process_group import start, stop, sum_over_ranks

    def main():
        if others == "elsewhere":
            readlink = os.readlink
            os.readlink = lambda path: (
                readlink(path) + (os.environ["RANK"] if path == "/proc/self/ns/pid" else "")
            )
        if how == "stopped":
            failure_watch.LONGEST_SILENCE_S = 5.0
        world = start()
        for step in range(10):
            if step > 5 and others == "silent":
                process_group.dist.all_reduce = lambda values: time.sleep(3600)
            sum_over_ranks([1.0])
            if step == 5 and (world.rank == int(bad) or how == "all"):
                if how == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                if how == "bug":
                    {}["missing"]
                if how == "hanging":
                    time.sleep(3600)
                if how == "stopped":
                    os.kill(os.getpid(), signal.SIGSTOP)
                raise ValueError("shard 7 is broken")
            if step == 5 and others == "busy":
                time.sleep(3600)
        stop()

    run_command(main)


def failed(folder, *how, **env):
    """How both ranks ended, and the seconds from the first one's end to the last's."""
    ranks = on_srun(2, script(failing, folder), *how, **env)
    until(lambda: any(rank.process.poll() is not None for rank in ranks))
    began = time.monotonic()
    return [rank.done() for rank in ranks], time.monotonic() - began


@pytest.mark.parametrize(("bad", "others"), [(0, "waiting"), (1, "waiting"), (0, "busy")])
def test_an_error_on_one_rank_ends_all_and_each_says_whose_it_was(bad, others, tmp_path):
    done, seconds = failed(tmp_path, "error", bad, others)
    assert [rank.code for rank in done] == [2, 2] and seconds < 15
    assert done[bad].err == f"failing.py: error: {'[rank 1] ' if bad else ''}shard 7 is broken\n"
    (line,) = done[1 - bad].err.splitlines()
    assert line.startswith(f"failing.py: rank {bad} on ") and line.endswith("): shard 7 is broken")


@pytest.mark.parametrize(("bad", "others"), [(0, "waiting"), (1, "busy"), (1, "elsewhere")])
def test_a_killed_rank_ends_all_and_is_named_by_one_that_is_left(bad, others, tmp_path):
    done, seconds = failed(tmp_path, "killed", bad, others, TORCH_CPP_LOG_LEVEL="ERROR")
    assert (done[bad].code, done[1 - bad].code) == (-signal.SIGKILL, 1) and seconds < 15
    (line,) = done[1 - bad].err.splitlines()
    assert line.startswith(f"failing.py: rank {bad} on ") and line.endswith(
        "gone without a word: killed, out of memory?"
    )


def test_a_bug_on_one_rank_shows_one_traceback(tmp_path):
    done, _ = failed(tmp_path, "bug")
    assert done[1].err.count("Traceback") == 1 and done[1].err.endswith(
        "failing.py: error: [rank 1] KeyError: 'missing'\n"
    )
    assert (
        "Traceback" not in done[0].err
        and done[0].err.endswith("KeyError: 'missing'\n")
        and done[0].err.count("\n") == 1
    )


def test_what_all_ranks_find_wrong_is_said_once(tmp_path):
    done, _ = failed(tmp_path, "all")
    assert [rank.code for rank in done] == [2, 2]
    assert (done[0].err + done[1].err).count("shard 7 is broken") == 1


def test_a_rank_that_hangs_is_waited_for_as_the_environment_says_and_what_for_is_printed(
    tmp_path,
):
    done, _ = failed(tmp_path, "hanging", DEPTHDIST_TIMEOUT=10)
    assert [rank.code for rank in done] == [1, 1]
    assert (
        "waited in vain for the other ranks in run_command > sum_over_ranks: Timed out"
        in done[0].err
        and "DEPTHDIST_TIMEOUT" in done[0].err
    )
    assert "Traceback" not in done[0].err + done[1].err and last_line(done[1].err).startswith(
        "failing.py: rank 0 on "
    )


def test_a_rank_that_hangs_is_named_where_no_exchange_ever_fails(tmp_path):
    done, _ = failed(tmp_path, "hanging", 1, "silent", DEPTHDIST_TIMEOUT=6)  # as NCCL's never do
    assert [rank.code for rank in done] == [1, 1]
    (line,) = done[0].err.splitlines()
    assert line.startswith("failing.py: rank 1 on ") and "): hangs in " in line, line
    assert line.endswith(
        "rank 0 waited in vain for the other ranks in run_command > sum_over_ranks"
    )


@pytest.mark.parametrize("bad", [0, 1])
def test_a_rank_that_gives_no_sign_of_life_ends_all(bad, tmp_path):
    ranks = on_srun(2, script(failing, tmp_path), "stopped", bad)
    done = ranks[1 - bad].done()
    assert done.code == 1 and "Traceback" not in done.err
    assert last_line(done.err).startswith(f"failing.py: rank {bad} on ")
    assert "): no sign of life for " in last_line(done.err)


def leaving():
    """Rank 1 has nothing more to do while rank 0 works on."""
    import time

    from depthdist.distributed.process_group import start, stop

    world = start()
    time.sleep(0 if world.rank else 3)
    print(time.time())
    stop()
    print(time.time())


def test_ranks_leave_together_and_none_is_taken_for_dead(tmp_path):
    done = [rank.done() for rank in on_srun(2, script(leaving, tmp_path))]
    assert [(rank.code, rank.err) for rank in done] == [(0, ""), (0, "")]
    (last_work, _), (first_work, left) = (map(float, rank.out.split()) for rank in done)
    assert first_work + 2 < last_work <= left


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


def test_ranks_that_do_not_meet_say_where_they_waited(tmp_path):
    groups = [on_srun(2, script(failing, tmp_path), "all", DEPTHDIST_TIMEOUT=3) for _ in range(2)]
    for rank, group in enumerate(groups):
        group[1 - rank].kill()
    for rank, group in enumerate(groups):
        done = group[rank].done()
        assert (
            done.code == 2
            and "error: " in done.err
            and "the ranks cannot meet at 127.0.0.1:" in done.err
            and "Traceback" not in done.err
        ), done


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
        world.timeout_seconds()


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
    assert last_line(done.err).startswith("train.py: rank 1 on ") and last_line(done.err).endswith(
        f"(pid {ranks[1].pid}): gone without a word: killed, out of memory?"
    )
    assert not any(rank.is_running() for rank in ranks)


# ----------------------------------------------------------------------- when somebody asks to stop


def test_a_signal_to_one_rank_under_the_launcher_saves_and_ends_all_with_75(words, tmp_path):
    launch = Launch(2, *words, "--run", tmp_path / "run", "--epochs", 10000)
    at_work(launch, tmp_path / "run")[1].terminate()
    done = launch.done(60)
    assert done.code == 75 and "Traceback" not in done.err, done
    assert done.err.count("train.py: stopped by SIGTERM at step ") == 1 and last_line(
        done.err
    ).endswith("the same command goes on")
    newest = max((tmp_path / "run/last").glob("step-*"))
    assert json.loads((newest / "state.json").read_text())["train"]["step"] == int(
        last_line(done.err).split("at step ")[1].split()[0]
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
