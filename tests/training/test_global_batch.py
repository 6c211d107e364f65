"""--global-batch and --lr-scaling, and batches that the ranks cannot share."""

import json
import subprocess
import sys

import pytest
from helpers.captures import ROOT
from helpers.runs import deepspeed_json, log, make_shards, saved_weights, train

from depthdist.training.deepspeed_config import EngineSettings

pytestmark = pytest.mark.usefixtures("quietly_on_one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data"))  # 11 for training


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """DeepSpeed's file with batches of 4, and with 8."""
    folder = tmp_path_factory.mktemp("batch")
    return {n: deepspeed_json(folder / f"{n}.json", train_batch_size=n) for n in (4, 8)}


@pytest.fixture(scope="module")
def scaled(data, batch, tmp_path_factory):
    """A run with twice the file's batch, and with twice the learning rate."""
    run = tmp_path_factory.mktemp("scaled") / "run"
    words = ["--epochs", 1, "--global-batch", 8, "--lr-scaling", "linear"]
    done = train(data, run, *words, deepspeed=batch[4])
    assert done.code == 0, done
    return run, done


def test_it_is_the_run_of_a_file_with_that_batch_and_rate(scaled, data, batch, tmp_path):
    run, done = scaled
    assert "lr           0.002: 0.001 x 2 (--lr-scaling linear) for a batch of 8 in" in done.out
    other = tmp_path / "run"
    assert train(data, other, "--epochs", 1, "--lr", 2e-3, deepspeed=batch[8]).code == 0
    mine, its = saved_weights(run), saved_weights(other)
    assert mine.keys() == its.keys() and all(mine[name].equal(its[name]) for name in its)
    rates = [[line["train/lr"] for line in log(one, of="train/lr")] for one in (run, other)]
    assert rates[0] == rates[1] and rates[0][0] == 2e-3
    record = json.loads((run / "run.json").read_text())
    assert record["settings"]["global_batch"] == 8
    assert record["settings"]["lr_scaling"] == "linear"
    assert record["derived"]["global_batch"] == 8 and record["derived"]["lr_factor"] == 2
    assert record["deepspeed_config"]["train_batch_size"] == 8


def test_a_run_that_goes_on_keeps_batch_and_rate_or_says_what_to_give(scaled, data, batch):
    run, _ = scaled
    size, rate = train(data, run, "--epochs", 1, deepspeed=batch[4]).errors
    assert "the global batch (train_batch_size) is 4, but" in size
    assert "began with 8: give --global-batch 8" in size
    assert "multiplied by 1 (--lr-scaling none)" in rate and "began with 2:" in rate
    words = ["--epochs", 1, "--global-batch", 8, "--lr-scaling", "linear"]
    done = train(data, run, *words, deepspeed=batch[4])
    assert done.code == 0 and f"{run} is finished" in done.out


@pytest.mark.parametrize(
    ("scaling", "factor"), [("none", 1), ("linear", 8), ("sqrt", pytest.approx(8**0.5))]
)
def test_rates_follow_the_ratio_of_the_batches(scaling, factor):
    assert EngineSettings(global_batch=64, lr_scaling=scaling).lr_factor == factor
    assert EngineSettings(lr_scaling=scaling).lr_factor == 1


def test_a_dry_run_shows_the_batch_and_advises_on_a_larger_one(data, batch, tmp_path):
    words = ["--dry-run", "--global-batch", 64]
    done = train(data, tmp_path / "run", *words, deepspeed=batch[4])
    assert "batch        64 = 1 ranks x micro-batch 1 x 64 accumulated" in done.out
    assert "lr           0.001 for a batch of 64 in place of 4" in done.out
    (advice,) = (line for line in done.out.splitlines() if line.startswith("advice"))
    assert "16 times fewer steps than 4" in advice and "--lr-scaling sqrt" in advice
    done = train(data, tmp_path / "run", *words, "--lr-scaling", "sqrt", deepspeed=batch[4])
    assert "lr           0.004: 0.001 x 4 (--lr-scaling sqrt)" in done.out
    assert "advice" not in done.out


@pytest.mark.parametrize(
    ("ranks", "words", "expected"),
    [
        (64, [], "8 cannot be cut into 64 ranks x micro-batches of 1: 1, 2, 4, 8 ranks would do"),
        (64, [], "or --global-batch 64"),
        (3, [], "or --global-batch 6 or 9"),
        (64, ["--global-batch", "64"], "an epoch has 11 training samples: 53 ranks would have"),
        (64, ["--global-batch", "64"], "at most 11 ranks, of which 1, 2, 4, 8 would do with a"),
        (1, ["--global-batch", "0"], "--global-batch is 0: expected >= 1"),
        (1, ["--cpu-threads", "0"], "--cpu-threads is 0: expected 1 .. 1024"),
    ],
)
def test_ranks_that_cannot_share_the_batch_are_told_which_numbers_would_do(
    ranks, words, expected, data, batch, tmp_path, monkeypatch
):
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    (line,) = train(data, tmp_path / "run", *words, deepspeed=batch[8]).errors
    assert expected in line


WITHOUT_TORCH = """
import sys
from depthdist.core.errors import SettingsError
from depthdist.training.command import main
try:
    main(sys.argv[1:])
except SettingsError as err:
    print(err, "torch" in sys.modules)
"""


def test_that_is_said_before_torch_is_imported_and_before_captures_are_sharded(
    data, batch, tmp_path
):
    for place in (data, data.parent / "raw"):
        words = ["--data", place, "--run", tmp_path / "run", "--deepspeed", batch[8]]
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH, *map(str, words)],
            env={"WORLD_SIZE": "64", "PATH": "", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert "1, 2, 4, 8 ranks would do" in done.stdout and "False" in done.stdout, done
