"""`depthdist train` as a person types it, under DeepSpeed's launcher, which it starts."""

import signal
import sys
import time

import psutil
import pytest
from helpers.commands import Typed
from helpers.runs import saved_state, train_words


def train_for_long(data, batch4, run):
    """The command once its first loss is logged."""
    words = [*train_words(data, run, batch4)[1:], "--epochs", 10000, "--save-every", 1]
    typed = Typed(sys.executable, "-m", "depthdist", "train", *words)
    kept = run / "metrics.jsonl"
    while not (kept.exists() and "train/loss" in kept.read_text()) and typed.process.poll() is None:
        time.sleep(0.1)
    return typed


def test_a_signal_to_the_command_reaches_the_rank_that_saves_and_ends_with_75(
    data, batch4, tmp_path
):
    run = tmp_path / "run"
    typed = train_for_long(data, batch4, run)
    typed.process.send_signal(signal.SIGTERM)
    done = typed.done(120)
    assert done.code == 75 and "Traceback" not in done.err, done
    (line,) = [line for line in done.err.splitlines() if "stopped by SIGTERM" in line]
    step = saved_state(run)[1]["train"]["step"]
    assert line.startswith(f"depthdist train: stopped by SIGTERM at step {step} of 20000,"), line
    assert line.endswith("the same command goes on")


def test_a_killed_launcher_ends_the_command_with_137_after_its_rank_has_saved(
    data, batch4, tmp_path
):
    run = tmp_path / "run"
    typed = train_for_long(data, batch4, run)
    (launcher,) = psutil.Process(typed.process.pid).children()
    launcher.kill()
    done = typed.done(120)
    assert done.code == 137 and "Traceback" not in done.err, done
    said = [line for line in done.err.splitlines() if line.startswith("depthdist train: ")]
    step = saved_state(run)[1]["train"]["step"]
    assert said[0].startswith("depthdist train: error: the launcher process (deepspeed.launcher")
    assert " was killed by SIGKILL; " in said[0], said
    stopped = f"depthdist train: stopped by the end of its launcher at step {step} of 20000,"
    assert len(said) == 2 and said[1].startswith(stopped), said


@pytest.mark.parametrize(
    ("ends", "code", "said"),
    [("echo wrong >&2; exit 2", 2, "wrong\n"), ("kill -9 $$", 137, "was ended by SIGKILL\n")],
)
def test_the_launcher_adds_no_line_to_a_ranks_error_and_names_a_signal(ends, code, said):
    words = ["--no_python", "--no_local_rank", "--num_gpus", "1", "sh", "-c", ends]
    start = f"from depthdist.distributed.accelerator import run_launcher; run_launcher({words})"
    done = Typed(sys.executable, "-c", start).done(60)
    assert done.code == code and done.err.count("\n") == 1 and done.err.endswith(said), done
