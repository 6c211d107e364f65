"""A disk that becomes full, read-only or is gone in the middle of a run: one line, exit code 2,
nothing lost of what was saved, and the same command goes on once that is mended."""

import contextlib
import shutil
import time

import pytest
from helpers.commands import Launch
from helpers.disks import fill, make_read_only, make_room, make_writable, small_disk
from helpers.run_ends import ended_alike, same
from helpers.runs import make_curves_older, saved_state, train, train_words

from depthdist.runs.state_files import states

EPOCHS = ("--epochs", 2, "--save-every", 1)


@pytest.fixture(scope="module")
def whole(data, batch4, tmp_path_factory):
    """An uninterrupted run in this process, its state saved after every step."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert train(data, run, *EPOCHS, deepspeed=batch4).code == 0
    return run


@contextlib.contextmanager
def happening(event, owner, name, count):
    """Call `event` before the call of that number of the function that training uses."""
    real = getattr(owner, name)
    calls = iter(range(1, 1000))

    def disturbed(*arguments, **named):
        if next(calls) == count:
            event()
        return real(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, disturbed)
        yield


def the_function(place):
    from depthdist.training import keeping, loop

    return {
        "the log": (loop, "log_step", 3),
        "best/": (keeping, "save_adapter", 2),
        "last/": (keeping, "save_state", 4),
        "run.json": (keeping, "mark_as_scored", 1),
    }[place]


def hashes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


FAILING = [
    ("full", "the log"),
    ("full", "best/"),
    ("full", "last/"),
    ("full", "run.json"),
    ("read-only", "last/"),
]


@pytest.mark.parametrize(("kind", "place"), FAILING)
def test_a_disk_that_fails_in_mid_run_loses_nothing(kind, place, data, batch4, whole, tmp_path):
    break_it, mend_it, reason = {
        "full": (fill, make_room, "No space left on device"),
        "read-only": (make_read_only, make_writable, "Read-only file system"),
    }[kind]
    with small_disk(tmp_path / "disk") as disk:
        run = disk / "run"
        kept = {}

        def event():
            kept["best"] = hashes(run / "best")
            kept["last"] = {state.name: hashes(state) for state in states(run / "last")}
            break_it(disk)

        with happening(event, *the_function(place)):
            (line,) = train(data, run, *EPOCHS, deepspeed=batch4).errors
        newest = f"{run}/last/{max(kept['last'])}"
        assert reason in line and line.endswith(f"the same command goes on from {newest}")
        assert hashes(run / "best") == kept["best"]
        assert {state.name: hashes(state) for state in states(run / "last")} == kept["last"]
        mend_it(disk)
        make_curves_older(run)
        assert train(data, run, *EPOCHS, deepspeed=batch4).code == 0
        if place == "run.json":  # which says that the run is scored: it was scored once more
            assert same(saved_state(run), saved_state(whole))
        else:
            ended_alike(run, whole)


@pytest.mark.parametrize("place", ["the log", "best/", "last/"])
def test_a_run_whose_folder_is_removed_ends_with_one_line(place, data, batch4, tmp_path):
    run = tmp_path / "run"
    with happening(lambda: shutil.rmtree(run), *the_function(place)):
        (line,) = train(data, run, *EPOCHS, deepspeed=batch4).errors
    assert str(run) in line and "No such file or directory" in line
    assert line.endswith("no state is saved: once that is mended, the same command begins anew")


def test_all_ranks_end_when_the_disk_is_full_and_go_on_when_there_is_room(data, batch4, tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        run = disk / "run"
        words = train_words(data, run, batch4)
        launch = Launch(2, *words, "--epochs", 1000, "--save-every", 1)
        until = time.monotonic() + 200
        while not (run / "last").is_dir() or len(states(run / "last")) < 2:
            assert time.monotonic() < until and launch.process.poll() is None, launch.done()
            time.sleep(0.02)
        fill(disk)
        done = launch.done()
        assert "No space left on device" in done.errors[0]
        step = saved_state(run)[1]["train"]["step"]
        make_room(disk)
        done = train(data, run, "--epochs", step // 2 + 1, deepspeed=batch4)
        assert done.code == 0 and f"step {step}" in done.out, done
