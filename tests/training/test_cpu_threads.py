"""CPU threads are part of a run: equal bits on any number of ranks, without OMP_NUM_THREADS."""

import json
import shutil

import pytest
from helpers.commands import LAUNCHER, Typed, free_port
from helpers.second_stages import words
from safetensors.torch import load_file

from depthdist.runs.state_files import states

FILES = ["best/adapter_model.safetensors", "detail/best/detail.safetensors"]
LENGTH = ["--epochs", 2, "--save-every", 1, "--keep", 99]
STAGE = ["--detail", "--detail-steps", 1, "--detail-crops", 2, "--detail-crop", 64]
STAGE += ["--detail-folds", 0]


def launch(ranks, place, run, *others):
    """What the command prints on so many ranks, with threads as they are without the variable."""
    start = ["env", "-u", "OMP_NUM_THREADS", LAUNCHER, "--num_accelerators", ranks]
    start += ["--master_port", free_port()]
    done = Typed(*start, *words(place, run, *LENGTH, *others)).done()
    assert done.code == 0, done
    return done.out


def content(run):
    """Weights and moments after the last step, and what is kept as the best, as bytes."""
    state = states(run / "last")[-1] / "state.safetensors"
    files = [state, *(run / name for name in FILES)]
    return [path.read_bytes() for path in files if path.exists()]


@pytest.fixture(scope="module")
def on_two_threads(place):
    """A run of one rank that computes on two threads."""
    run = place / "two-threads"
    out = launch(1, place, run, *STAGE, "--cpu-threads", 2)
    assert "threads      2 a rank; other numbers of ranks with as many give equal bits" in out
    return run


def test_one_rank_and_two_with_a_thread_each_learn_the_same_to_the_bit(
    place, on_two_threads, tmp_path
):
    for ranks in (1, 2):
        launch(ranks, place, tmp_path / f"{ranks}", "--cpu-threads", 1)
    assert content(tmp_path / "1") == content(tmp_path / "2")
    mine, its = (load_file(run / FILES[0]) for run in (tmp_path / "1", on_two_threads))
    assert any(not mine[name].equal(its[name]) for name in its), "threads do matter here"


def test_a_run_goes_on_to_the_bit_on_another_number_of_ranks(place, on_two_threads, tmp_path):
    run = shutil.copytree(on_two_threads, tmp_path / "run")
    shutil.rmtree(run / "detail")
    begun = states(run / "last")
    assert len(begun) == 6
    for state in begun[4:]:  # stopped in the middle of the second epoch
        shutil.rmtree(state)
    out = launch(2, place, run, *STAGE)
    assert f"going on     from {begun[3]}: step" in out
    assert json.loads((run / "run.json").read_text())["derived"]["cpu_threads"] == 2
    assert len(content(run)) == 3 and content(run) == content(on_two_threads)
