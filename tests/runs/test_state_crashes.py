"""A full disk or a kill at any moment leaves a whole state."""

import itertools
import multiprocessing
import os
import random
import resource
import signal
import sys
import time

import pytest
from helpers.disks import fill, make_room, small_disk
from helpers.training_states import load, names, save, weights

from depthdist.runs.state_files import MANIFEST, TENSORS, VALUES, states
from depthdist.runs.training_state import load_state, save_state

# -------------------------------------------------------------------------------------- a full disk


def refused(folder, step, *said):
    with pytest.raises(ValueError) as caught:
        save_state(folder, step, weights(step, 50_000), {"step": step}, keep=1)
    assert "\n" not in str(caught.value) and all(
        part in str(caught.value) for part in (f"{folder}: ", "cannot be written", *said)
    ), caught.value


def test_a_write_that_fails_leaves_the_state_before_it(tmp_path):
    save(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # a real failing write: EFBIG, as ENOSPC would arrive
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        refused(
            tmp_path,
            2,
            "the training state of step 2",
            "File too large",
            "the state before it, step-000001, is whole",
        )
        refused(tmp_path / "new", 2, "there is no state before it")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (
        names(tmp_path) == ["new", "step-000001"]
        and names(tmp_path / "new") == []
        and load(tmp_path)[0] == 1
    )
    assert save(tmp_path, 2, keep=1).name == "step-000002" and load(tmp_path)[0] == 2


def test_a_full_disk_leaves_the_state_before_it(tmp_path):
    with small_disk(tmp_path / "disk", "256k") as disk:
        save(disk / "last", 1)
        whole = "the state before it, step-000001, is whole"
        refused(disk / "last", 2, "No space left on device", whole)
        assert names(disk / "last") == ["step-000001"] and load(disk / "last")[0] == 1
        for free in range(0, 40_000, 4096):  # full after the folder, the tensors, the values, ...
            fill(disk, free)
            try:
                save(disk / "last", 2, keep=2)
                assert load(disk / "last")[0] == 2
                break
            except ValueError as err:
                assert (
                    "No space left on device" in str(err)
                    and names(disk / "last") == ["step-000001"]
                    and load(disk / "last")[0] == 1
                )
                make_room(disk)
        else:
            pytest.fail("never enough room")
        assert free > 0


def test_the_folder_of_a_run_that_is_gone_is_not_made_again(tmp_path):
    refused(tmp_path / "run/last", 2, "No such file", "there is no state before it")
    assert not (tmp_path / "run").exists()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "last").write_text("a file")
    refused(tmp_path / "last", 1, "File exists", "there is no state before it")
    refused(tmp_path / "last/deeper", 1, "Not a directory")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_write_permission_is_one_line(tmp_path):
    save(tmp_path, 1)
    tmp_path.chmod(0o500)
    refused(tmp_path, 2, "Permission denied", "the state before it, step-000001, is whole")
    tmp_path.chmod(0o300)
    with pytest.raises(PermissionError):  # and no new beginning beside a state that is there
        load_state(tmp_path, pytest.fail)
    tmp_path.chmod(0o700)


# ------------------------------------------------------------------------------------------ kill -9


@pytest.fixture(scope="module")
def processes():
    """Starts processes in which nothing of this one runs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["depthdist.runs.training_state", "pytest"])
    return context


def save_on_and_on(folder, done):
    """Saves one state after another, and tells each that is saved."""
    found = load_state(folder, pytest.fail)
    for step in itertools.count(1 + (found[1]["step"] if found else 0)):
        save_state(folder, step, weights(step, 30_000), {"step": step}, keep=2)
        done.send(step)


def test_kill_9_at_drawn_moments_leaves_the_state_before_or_the_new_one(processes, tmp_path):
    draw, saved, cut = random.Random(0), 0, 0
    for _ in range(20):
        told, done = processes.Pipe(duplex=False)
        process = processes.Process(target=save_on_and_on, args=(tmp_path, done))
        process.start()
        done.close()
        saved = told.recv()
        time.sleep(draw.uniform(0, 0.02))
        process.kill()
        process.join()
        while told.poll():
            try:
                saved = told.recv()
            except EOFError:
                break
        step, _, said = load(tmp_path)
        assert step in (saved, saved + 1) and not said and process.exitcode == -signal.SIGKILL
        cut += any(name.endswith(".tmp") for name in names(tmp_path))
    assert cut > 0, "no kill came in the middle of a saving"
    save(tmp_path, step + 1)
    assert names(tmp_path) == [f"step-{step:06d}", f"step-{step + 1:06d}"]


def save_and_die(folder, moment):
    """Saves step 3, and is killed at the `moment`-th call to the file system."""
    calls = itertools.count()

    def hook(event, _):
        if (event == "open" or event.startswith(("os.", "shutil."))) and next(calls) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    save(folder, 3)
    os._exit(0)


def test_kill_9_at_every_call_to_the_file_system_leaves_the_state_before_or_the_new_one(
    processes, tmp_path
):
    seen = []
    for moment in itertools.count():
        last = tmp_path / str(moment)
        for step in (1, 2):
            save(last, step)
        process = processes.Process(target=save_and_die, args=(last, moment))
        process.start()
        process.join()
        step, _, said = load(last)
        seen.append(step)
        assert not said and process.exitcode in (0, -signal.SIGKILL)
        assert all(names(state) == sorted([TENSORS, VALUES, MANIFEST]) for state in states(last)), (
            "nor half of an old one"
        )
        save(last, 4)
        assert names(last) == [f"step-{step:06d}", "step-000004"]
        if process.exitcode == 0:
            break
    assert seen == sorted(seen) and seen.count(2) > 8 and seen.count(3) > 3, seen
