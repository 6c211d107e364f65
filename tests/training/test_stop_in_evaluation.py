"""A stop during an evaluation: nothing is lost, and the run ends as if it had not been stopped."""

import pytest
from helpers.run_ends import ended_alike
from helpers.runs import deepspeed_json, log, make_curves_older, make_shards, saved_state, train
from helpers.second_stages import stop_at

from depthdist.evaluation import scoring

WORDS = ("--epochs", 2, "--micro-batch", 1)
IMAGES = 3  # of validation, one a batch
BEFORE, FIRST, SECOND, CONSTANT, BEST = (1 + IMAGES * place for place in range(5))
"""The first image of each evaluation: before training, of two epochs, of two rows of the table."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Shards of 11 images for training and 3 for validation, and a configuration."""
    folder = tmp_path_factory.mktemp("stop")
    make_shards(folder, 14)
    deepspeed_json(folder / "batch4.json", train_batch_size=4)
    return folder


def trained(place, run):
    return train(place / "shards", run, *WORDS, deepspeed=place / "batch4.json")


@pytest.fixture(scope="module")
def whole(place):
    """A run that nobody stopped."""
    assert trained(place, place / "whole").code == 0
    return place / "whole"


GOES_ON = "saved in {run}/last; the same command goes on"
FINISHES = "while the best adapter was scored; the same command finishes the table"
SAID = {
    BEFORE: "before the first step of {run}; the same command begins it anew",
    FIRST: f"at step 3 of 6, in the evaluation of epoch 1, {GOES_ON}",
    SECOND + 1: f"at step 6 of 6, in the evaluation of epoch 2, {GOES_ON}",
    CONSTANT: FINISHES,
    BEST + 1: FINISHES,
}


@pytest.mark.parametrize("image", SAID)
def test_a_stop_between_two_images_of_an_evaluation_is_as_if_it_was_not(
    image, place, whole, tmp_path
):
    run = tmp_path / "run"
    with stop_at(scoring, "_score_batch", image, "SIGUSR1"):
        done = trained(place, run)
    assert (done.code, done.err) == (
        75,
        f"train.py: stopped by SIGUSR1 {SAID[image].format(run=run)}\n",
    )
    if image in (FIRST, SECOND + 1):
        assert saved_state(run)[1]["train"]["evaluation_is_due"]
    make_curves_older(run)
    done = trained(place, run)
    assert done.code == 0 and "best adapter, epoch " in done.out, done
    assert ("going on" in done.out) == (image != BEFORE)
    ended_alike(run, whole)


def test_a_stop_at_the_last_image_lets_the_evaluation_count(place, tmp_path):
    run = tmp_path / "run"
    with stop_at(scoring, "_score_batch", SECOND - 1, "SIGTERM"):
        done = trained(place, run)
    assert done.code == 75 and "stopped by SIGTERM at step 3 of 6, saved in" in done.err
    assert [line["step"] for line in log(run, of="eval/loss")] == [0, 3]
    assert not saved_state(run)[1]["train"]["evaluation_is_due"]


def test_a_stop_at_the_last_image_of_all_comes_too_late(place, whole, tmp_path):
    run = tmp_path / "run"
    with stop_at(scoring, "_score_batch", BEST + IMAGES - 1, "SIGTERM"):
        done = trained(place, run)
    assert (done.code, done.err) == (0, "")
    ended_alike(run, whole)
