"""Real launchers and ranks that are asked to stop: all save, say so, and end."""

import json
import os
import signal
import sys

import psutil
import pytest
from helpers.commands import Launch, Typed, on_srun, script, until
from helpers.runs import make_shards, train_words

from depthdist.distributed.signal_relay import notes_signals

LONG = ("--epochs", 10000, "--save-every", 1)
SOON_S = 45  # nominal 15; a hang is a minute and more


def below(typed):
    """The processes that the command has started by now."""
    return psutil.Process(typed.process.pid).children(recursive=True)


def ranks_at_work(typed, run):
    """The processes that a launcher started, as soon as a step is done."""

    def begun():
        assert typed.process.poll() is None, typed.done()
        return list(run.glob("last/step-??????"))

    until(begun)
    return [child for child in below(typed) if child.environ().get("RANK")]


def saved_step(run):
    newest = max((run / "last").glob("step-??????*"), key=lambda state: state.stat().st_mtime)
    return json.loads((newest / "state.json").read_text())["train"]["step"]


def all_gone(processes):
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


def test_a_signal_in_the_first_moment_ends_with_75_and_says_so(data, batch4, tmp_path):
    typed = Typed(sys.executable, *train_words(data, tmp_path / "run", batch4))
    until(lambda: notes_signals(typed.process.pid))
    typed.process.send_signal(signal.SIGUSR1)
    done = typed.done(120)
    said = "train.py: stopped by SIGUSR1 before training began; the same command goes on\n"
    assert (done.code, done.err) == (75, said)


def test_ranks_of_a_killed_deepspeed_save_and_end(data, batch4, tmp_path):
    run = tmp_path / "run"
    launch = Launch(2, *train_words(data, run, batch4), *LONG)
    ranks = ranks_at_work(launch, run)
    everything = below(launch)
    launch.process.kill()
    until(lambda: all_gone(everything), SOON_S)
    launch.process.wait()
    err = launch.files[1]
    err.seek(0)
    (line,) = [line for line in err.read().splitlines() if line.startswith("train.py:")]
    assert len(ranks) == 2 and "stopped by the end of its launcher " in line, line
    assert line.endswith("/last; the same command goes on") and saved_step(run) >= 1


def test_ranks_of_a_deepspeed_that_was_terminated_before_they_began_end_at_once(
    data, batch4, tmp_path
):
    run = tmp_path / "run"
    launch = Launch(2, *train_words(data, run, batch4), *LONG)
    (starts_ranks,) = until(lambda: below(launch))
    launch.process.terminate()
    assert launch.process.wait() == -signal.SIGTERM
    ranks = until(starts_ranks.children)
    until(lambda: all_gone([starts_ranks, *ranks]), 2 * SOON_S)
    err = launch.files[1]
    err.seek(0)
    assert "train.py: stopped by the end of its launcher before training began" in err.read()
    assert not list(run.glob("last/step-??????"))


@pytest.mark.parametrize(
    ("name", "shown", "code"),
    [("SIGTERM", "SIGTERM", 75), ("SIGUSR1", "SIGUSR1", 75), ("SIGINT", "Ctrl-C", 130)],
)
def test_a_signal_to_all_processes_of_depthdist_train_saves_and_ends_with_its_code(
    name, shown, code, data, batch4, tmp_path
):
    """As `timeout`, systemd, SLURM and the terminal send it."""
    run = tmp_path / "run"
    words = train_words(data, run, batch4)[1:]
    typed = Typed(sys.executable, "-m", "depthdist", "train", *words, "--gpus", 2, *LONG)
    ranks = ranks_at_work(typed, run)
    os.killpg(typed.process.pid, getattr(signal, name))
    done = typed.done(SOON_S)
    (line,) = [line for line in done.err.splitlines() if line.startswith("depthdist train:")]
    assert done.code == code and "Traceback" not in done.err, done
    assert line.startswith(f"depthdist train: stopped by {shown} ") and saved_step(run) >= 1
    assert line.endswith("the same command goes on") and all_gone(ranks)


def test_sigterm_to_all_processes_of_deepspeed_lets_its_ranks_save(data, batch4, tmp_path):
    run = tmp_path / "run"
    launch = Launch(2, *train_words(data, run, batch4), *LONG)
    ranks_at_work(launch, run)
    everything = below(launch)
    os.killpg(launch.process.pid, signal.SIGTERM)
    assert launch.process.wait() == -signal.SIGTERM
    until(lambda: all_gone(everything), SOON_S)
    err = launch.files[1]
    err.seek(0)
    (line,) = [line for line in err.read().splitlines() if line.startswith("train.py:")]
    assert line.startswith("train.py: stopped by SIGTERM at step ") and saved_step(run) >= 1


def slow_to_score(marks, *words):
    """Training on ranks that take a second for each validation image, and mark it."""
    import os
    import time
    from pathlib import Path

    from depthdist.core.command import run_command
    from depthdist.core.stop_signals import note_stop_signals
    from depthdist.evaluation import scoring
    from depthdist.training import command

    score = scoring._score_batch

    def slow(*given):
        (Path(marks) / f"{os.environ['RANK']}-{time.monotonic_ns()}").touch()
        time.sleep(1)
        return score(*given)

    note_stop_signals()
    scoring._score_batch = slow
    run_command(lambda: command.main(list(words)))


def test_a_signal_to_one_rank_stops_the_evaluation_on_all(batch4, tmp_path):
    """Each of 2 ranks has 20 images: the one without a signal learns of it, and leaves most."""
    data = make_shards(tmp_path, 50, val=0.8)
    marks = tmp_path / "marks"
    run = tmp_path / "run"
    marks.mkdir()
    words = [*train_words(data, run, batch4)[1:], "--micro-batch", 1]
    ranks = on_srun(2, script(slow_to_score, tmp_path), marks, *words)
    until(lambda: list(marks.glob("0-*")) and list(marks.glob("1-*")))
    ranks[1].process.send_signal(signal.SIGUSR1)
    done = [rank.done(120) for rank in ranks]
    assert [rank.code for rank in done] == [75, 75]
    assert done[0].err.endswith(
        f": stopped by SIGUSR1 before the first step of {run}; the same command begins it anew\n"
    )
    assert done[1].err == ""
    assert len(list(marks.glob("0-*"))) < 15
