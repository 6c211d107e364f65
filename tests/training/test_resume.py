"""Going on after any interruption: bit for bit on one CPU rank, also in the middle of an epoch.

On other ranks; and what is refused.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.captures import ROOT
from helpers.commands import ON_CPU, Launch
from helpers.run_ends import ended_alike, same
from helpers.runs import deepspeed_json, log, make_curves_older, saved_state, train, train_words

from depthdist.core.settings import field_names
from depthdist.data.capture_folders import FolderSettings


@pytest.fixture(scope="module")
def whole(data, batch4, tmp_path_factory):
    """An uninterrupted run of 3 epochs in this process, its state saved after every step."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert train(data, run, "--epochs", 3, "--save-every", 1, deepspeed=batch4).code == 0
    return run


class Killed(BaseException):
    """What no `except` of ours may catch."""


# the function that the run dies in, at which of its calls, and whether before or after that call's
# work
PLACES = {
    "in the middle of epoch 1": ("forward", 5, "after"),
    "in the middle of a step of epoch 3": ("forward", 2 * 8 + 6, "after"),
    "before the state in the middle of epoch 2": ("save_state", 4, "before"),
    "before the state that is saved before the evaluation of epoch 2": ("save_state", 5, "before"),
    "at the start of the evaluation of epoch 2": ("save_state", 5, "after"),
    "between best and last of epoch 2": ("save_state", 6, "before"),
    "after the state of epoch 2": ("save_state", 6, "after"),
}


def stop_at(place, monkeypatch):
    """Let the next run die there as by SIGKILL: nothing more is done."""
    from depthdist.training import keeping, loop

    name, count, when = PLACES[place]
    owner = loop if name == "forward" else keeping
    real, calls = getattr(owner, name), iter(range(1, 1000))

    def dying(*arguments, **named):
        call = next(calls)
        if call == count and when == "before":
            raise Killed
        result = real(*arguments, **named)
        if call == count:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, dying)


@pytest.mark.parametrize("place", PLACES)
def test_a_run_stopped_anywhere_goes_on_to_the_very_same_end(place, data, batch4, whole, tmp_path):
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        stop_at(place, patch)
        train(data, run, "--epochs", 3, "--save-every", 1, deepspeed=batch4)
    make_curves_older(run)
    assert 0 < len(log(run)) < len(log(whole))
    done = train(data, run, "--epochs", 3, "--save-every", 1, "--resume", "auto", deepspeed=batch4)
    assert done.code == 0 and f"going on     from {run}/last/step-" in done.out
    ended_alike(run, whole)


def test_a_run_stopped_twice_goes_on_to_the_very_same_end(data, batch4, whole, tmp_path):
    run = tmp_path / "run"
    for place in ("in the middle of epoch 1", "before the state in the middle of epoch 2"):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            stop_at(place, patch)
            train(data, run, "--epochs", 3, "--save-every", 1, deepspeed=batch4)
        make_curves_older(run)
    assert train(data, run, "--epochs", 3, "--save-every", 1, deepspeed=batch4).code == 0
    ended_alike(run, whole)


def test_a_run_goes_on_on_another_number_of_ranks(data, batch4, whole, tmp_path):
    """Stopped in the middle of epoch 2 on one rank; 2 ranks do the rest, in micro-batches of 2."""
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        stop_at("before the state in the middle of epoch 2", patch)
        train(data, run, "--epochs", 3, "--save-every", 1, deepspeed=batch4)
    words = [*train_words(data, run, batch4), "--epochs", 3]
    assert Launch(2, *words, "--micro-batch", 2).done().code == 0
    (mine, counters), (its, its_counters) = saved_state(run), saved_state(whole)
    assert (
        mine.keys() == its.keys()
        and max(float((mine[n] - its[n]).abs().max()) for n in mine if n.startswith("weights/"))
        < 1e-6
    )
    assert counters["train"]["position"] == its_counters["train"]["position"]
    assert [line["step"] for line in log(run, of="train/loss")] == list(range(1, 7))
    for a, b in zip(log(run, of="eval/loss"), log(whole, of="eval/loss"), strict=True):
        assert {k: v for k, v in a.items() if k != "time"} == pytest.approx(
            {k: v for k, v in b.items() if k != "time"}, rel=1e-5
        )


def started(run, data, batch4, *words):
    """The command in a process of its own, once it has logged a first step since now."""
    typed = [*words, *train_words(data, run, batch4), "--epochs", 3]
    return subprocess.Popen(
        [*map(str, typed)],
        cwd=ROOT,
        env={**os.environ, **ON_CPU},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def until_steps(run, process, count):
    """Wait until the run has logged so many steps."""
    while process.poll() is None and not (
        (run / "metrics.jsonl").exists()
        and (run / "metrics.jsonl").read_text().count("train/loss") >= count
    ):
        time.sleep(0.005)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_leaves_with_75_and_the_same_command_goes_on(
    name, data, batch4, whole, tmp_path
):
    run = tmp_path / "run"
    process = started(run, data, batch4, sys.executable)
    until_steps(run, process, 1)
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    step = saved_state(run)[1]["train"]["step"]
    assert (
        f"train.py: stopped by {name} at step {step} of 6, saved in {run}/last; the same command"
        " goes on"
        in err
        and "Traceback" not in err
    )
    assert 1 <= step < 6 and list(run.glob(f"last/step-{step:06d}*"))
    assert train(data, run, "--epochs", 3, deepspeed=batch4).code == 0
    ended_alike(run, whole)


def test_a_run_killed_at_random_moments_ends_like_one_that_was_not(data, batch4, whole, tmp_path):
    """kill -9, at drawn moments after the training began.

    After four of them, or where it was quicker, the run comes to its end.
    """
    run, chance, kills = tmp_path / "run", random.Random(1), 0
    words = [
        sys.executable,
        "launch/train.py",
        "--data",
        data,
        "--run",
        run,
        "--model",
        "tiny",
        "--deepspeed",
        batch4,
        "--pictures",
        0,
        "--lr",
        1e-3,
        "--epochs",
        3,
        "--save-every",
        1,
    ]
    while True:
        before = (
            os.stat(run / "metrics.jsonl").st_mtime_ns if (run / "metrics.jsonl").exists() else 0
        )
        process = subprocess.Popen(
            [*map(str, words)],
            cwd=ROOT,
            env={**os.environ, **ON_CPU},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        while (
            kills < 4
            and process.poll() is None
            and not (
                (run / "metrics.jsonl").exists()
                and os.stat(run / "metrics.jsonl").st_mtime_ns > before
            )
        ):
            time.sleep(0.005)
        if kills < 4:
            time.sleep(chance.uniform(0, 0.5))
            process.kill()
        if process.wait() != -signal.SIGKILL:
            break
        kills += 1
    assert process.returncode == 0 and kills >= 2, process.stderr.read()
    ended_alike(run, whole)


def test_a_finished_run_says_so_and_changes_nothing(data, batch4, whole):
    before = (whole / "metrics.jsonl").read_bytes(), saved_state(whole)
    done = train(data, whole, "--epochs", 3, deepspeed=batch4)
    assert done.code == 0 and "is finished: 3 epochs, best eval loss" in done.out
    assert (whole / "metrics.jsonl").read_bytes() == before[0] and same(
        saved_state(whole), before[1]
    )


def test_a_run_finished_by_an_older_version_is_scored_once_more(data, batch4, whole, tmp_path):
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    record = json.loads((run / "run.json").read_text())
    assert record.pop("scored_at_epoch") == 3
    (run / "run.json").write_text(json.dumps(record))
    done = train(data, run, "--epochs", 3, deepspeed=batch4)
    best = saved_state(run)[1]["train"]["best_epoch"]
    assert done.code == 0 and f"best adapter, epoch {best}" in done.out
    assert json.loads((run / "run.json").read_text()) == {**record, "scored_at_epoch": 3}
    assert same(saved_state(run), saved_state(whole))
    done = train(data, run, "--epochs", 3, deepspeed=batch4)
    assert done.code == 0 and "is finished: 3 epochs, best eval loss" in done.out


def test_a_run_of_an_older_version_goes_on_with_the_recipe_that_was_its_default(
    data, batch4, tmp_path
):
    """That was document; its record has neither --overfit nor settings for folders of captures."""
    run = tmp_path / "run"
    assert train(data, run, "--recipe", "document", "--epochs", 1, deepspeed=batch4).code == 0
    record = json.loads((run / "run.json").read_text())
    for name in ("overfit", "log_to", *field_names(FolderSettings)):
        del record["settings"][name]
    (run / "run.json").write_text(json.dumps(record))
    done = train(data, run, "--epochs", 2, deepspeed=batch4)
    assert done.code == 0 and "calibrated" not in done.out, done
    settings = json.loads((run / "run.json").read_text())["settings"]
    assert (settings["recipe"], settings["calibrate"]) == ("document", False)
    assert saved_state(run)[1]["train"]["epoch"] == 2


def test_a_begun_run_is_never_overwritten_by_accident(data, batch4, whole):
    (line,) = train(data, whole, "--resume", "never", deepspeed=batch4).errors
    assert str(whole) in line and "a run is there already" in line
    (line,) = train(data, whole, "--resume", whole, deepspeed=batch4).errors
    assert "a run is there already" in line


def test_changed_settings_are_refused_on_resume_with_old_and_new(data, batch4, whole):
    lines = train(data, whole, "--epochs", 4, "--lr", "2e-3", "--seed", 5, deepspeed=batch4).errors
    assert len(lines) == 2 and str(whole) in lines[0]
    assert any(line.startswith("--lr is 0.002,") and "began with 0.001" in line for line in lines)
    assert any(line.startswith("--seed is 5,") and "began with 0" in line for line in lines)


def test_changed_data_is_refused_on_resume(data, batch4, whole):
    index = data / "index.json"
    kept = index.read_text()
    try:
        index.write_text(kept + " ")  # the same folder, another content
        (line,) = train(data, whole, "--epochs", 4, deepspeed=batch4).errors
    finally:
        index.write_text(kept)
    assert "the data changed since the run" in line and str(data) in line


def test_a_section_that_was_recorded_and_is_left_out_now_does_not_stop_a_resume(
    data, batch4, whole, tmp_path
):
    older = shutil.copytree(whole, tmp_path / "older")
    record = json.loads((older / "run.json").read_text())
    record["deepspeed_config"]["wandb"] = {"enabled": True}
    (older / "run.json").write_text(json.dumps(record))
    assert train(data, older, "--epochs", 4, "--dry-run", deepspeed=batch4).code == 0


def test_a_changed_deepspeed_file_is_refused_on_resume(data, batch4, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    kept = batch4.read_text()
    try:
        deepspeed_json(batch4, train_batch_size=2)  # 4 steps an epoch instead of 2
        done = train(data, run, "--epochs", 4, deepspeed=batch4)
    finally:
        batch4.write_text(kept)
    assert "train_batch_size" in "".join(done.errors)


def test_more_epochs_go_on_where_the_run_ended(data, batch4, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    assert train(data, run, "--epochs", 4, deepspeed=batch4).code == 0
    lines = log(run, of="train/loss")
    assert [line["step"] for line in lines] == list(range(1, 9)) and lines[:6] == log(
        whole, of="train/loss"
    )
    assert [line["train/lr"] for line in lines[6:]] == pytest.approx(
        [1e-3 * 2 / 8, 1e-3 / 8]
    )  # of the longer run's schedule


def test_another_runs_state_starts_a_new_run(data, batch4, whole, tmp_path):
    run = tmp_path / "branch"
    assert train(data, run, "--epochs", 4, "--resume", whole, deepspeed=batch4).code == 0
    assert [line["step"] for line in log(run, of="train/loss")] == [7, 8] and len(
        log(whole, of="train/loss")
    ) == 6


def test_another_runs_state_brings_its_best_and_keeps_its_settings(data, batch4, whole, tmp_path):
    (line,) = train(
        data, tmp_path / "branch", "--epochs", 4, "--resume", whole, "--lr", 5e-4, deepspeed=batch4
    ).errors
    assert (
        "--lr is 0.0005" in line
        and "began with 0.001" in line
        and not (tmp_path / "branch").exists()
    )
    assert (
        train(data, tmp_path / "branch", "--epochs", 3, "--resume", whole, deepspeed=batch4).code
        == 0
    )
    assert (tmp_path / "branch/best/adapter_model.safetensors").read_bytes() == (
        whole / "best/adapter_model.safetensors"
    ).read_bytes()


def test_a_run_whose_best_adapter_is_gone_says_so(data, batch4, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/best")
    (line,) = train(data, tmp_path / "run", "--epochs", 3, deepspeed=batch4).errors
    assert "run/best: the best adapter so far is gone" in line


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_state_is_named_and_the_one_before_it_is_gone_on_from(
    damage, data, batch4, whole, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    older, newer = sorted((run / "last").iterdir())
    file = newer / "state.safetensors"
    (
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        if damage == "cut"
        else file.unlink()
    )
    done = train(data, run, "--epochs", 3, "--save-every", 1, deepspeed=batch4)
    assert (
        done.code == 0
        and f"WARNING      {newer}" in done.out
        and f"going on     from {older}" in done.out
    )
    ended_alike(run, whole)


def test_a_run_without_any_whole_state_is_one_clear_line(data, batch4, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for saved in (run / "last").iterdir():
        (saved / "manifest.json").unlink()
    (line,) = train(data, run, "--epochs", 4, deepspeed=batch4).errors
    assert str(run / "last") in line and "no state is whole" in line


def test_a_state_is_small_and_holds_nothing_frozen(whole):
    tensors, counters = saved_state(whole)
    assert {name.partition("/")[0] for name in tensors} == {
        "weights",
        "exp_avg",
        "exp_avg_sq",
    } and counters["engine"]["optimizer_step"] == 6
    trained = sum(t.numel() for name, t in tensors.items() if name.startswith("weights/"))
    for saved in (whole / "last").iterdir():
        assert 12 * trained < sum(f.stat().st_size for f in saved.iterdir()) < 1.2 * 12 * trained
