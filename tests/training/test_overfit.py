"""--overfit: captures are learned by heart, or the part is named that does not learn."""

import json

import numpy as np
import pytest
import torch
from helpers.runs import deepspeed_json, log, saved_state, train

from depthdist.training.overfit import Fit, describe_fit, shrink

LEARNED = Fit(
    num=2,
    error_mm=4.9,
    rmse_mm=12.5,
    aligned_mm=4.5,
    at_best_mm=0.7,
    size="28x42",
    losses=[1.0, 0.5, 0.2],
    is_frozen=True,
    lr=1e-3,
    epochs=20,
)


def fit(**changes):
    """A fit that missed the goal, at the end of learning."""
    flat = [1.0, *[0.2] * 10]
    return LEARNED._replace(**{"error_mm": 13.6, "aligned_mm": 9.0, "losses": flat, **changes})


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """DeepSpeed's file with steps of two samples."""
    return deepspeed_json(tmp_path_factory.mktemp("json") / "batch2.json", train_batch_size=2)


@pytest.fixture(scope="module")
def trained(data, two, tmp_path_factory):
    """The words of a run that learned 2 captures, its folder, and what it printed."""
    run = tmp_path_factory.mktemp("overfit") / "run"
    words = ["--overfit", 2, "--flip", 1]
    done = train(data, run, *words, deepspeed=two)
    assert done.code == 0, done
    return words, run, done.out


def test_a_run_ends_as_soon_as_half_of_the_pixels_are_within_the_goal(trained):
    _, run, out = trained
    medians = [line["eval/median_mm"] for line in log(run, of="eval/median_mm")]
    assert medians[0] > 5 and min(medians[1:-1], default=9) >= 5 > medians[-1]
    assert f"2 captures: half of the pixels within {medians[-1]:.1f} mm, goal 5 mm" in out
    assert out.splitlines()[-1].endswith("what new captures lack is data")


def test_it_is_scored_on_what_it_learned_and_says_so(trained):
    _, _, out = trained
    assert "data         2 training, 2 validation samples" in out
    assert "the 2 samples that are learned by heart: scores say nothing of new images" in out
    assert "near-duplicates" not in out and "no better than a constant" not in out


def test_nothing_is_augmented(trained):
    _, run, _ = trained
    settings = json.loads((run / "run.json").read_text())["settings"]
    assert (settings["flip"], settings["lora_dropout"], settings["best_by"]) == (0, 0, "median_mm")


def test_only_the_images_that_it_learned_are_on_record_as_seen(trained):
    rows = np.load(trained[1] / "seen.npy")
    assert (len(rows), rows["validation"].any()) == (2, False)


def test_the_same_command_says_that_it_is_finished(data, two, trained):
    words, run, _ = trained
    again = train(data, run, *words, deepspeed=two)
    assert again.code == 0 and "is finished" in again.out and saved_state(run)[1]["train"]["step"]


def test_a_run_that_learned_by_heart_does_not_go_on_as_another(data, two, trained):
    lines = train(data, trained[1], deepspeed=two).errors
    assert any("--overfit is 0, but the run" in line for line in lines)


def test_what_a_command_sets_wins_and_what_does_not_learn_is_named(data, two, tmp_path):
    words = ["--overfit", 1, "--epochs", 1, "--lr", 1e-9]
    done = train(data, tmp_path / "run", *words, deepspeed=two)
    assert done.code == 0, done
    last = done.out.splitlines()[-1]
    assert "does not learn: the adapter: the eval loss fell by 0.0%" in last
    assert "raise --lr, 1e-09 now" in last


def test_more_captures_than_there_are_is_one_line(data, tmp_path):
    (line,) = train(data, tmp_path / "run", "--overfit", 8).errors
    assert line.startswith("--overfit is 8: ") and "has 7 training samples" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("found", "part"),
    [
        (fit(at_best_mm=6.0), "the image size: 28x42"),
        (fit(losses=[1.0, 0.99]), "the adapter: the eval loss fell by 1.0%"),
        (fit(losses=[1.0, 0.5, 0.3]), "nothing, it is still learning"),
        (fit(aligned_mm=4.0), "scale and shift alone"),
        (fit(), "the frozen decoder"),
        (fit(is_frozen=False), "the network"),
    ],
)
def test_the_part_that_does_not_learn_is_named(found, part):
    first, second = describe_fit(found)
    assert "within 13.6 mm, goal 5 mm (RMSE 12.5 mm; the truth itself at 28x42 and back:" in first
    assert second.startswith(f"overfit      what does not learn: {part}")


def test_a_goal_that_is_reached_names_no_part():
    assert "does not learn" not in " ".join(describe_fit(LEARNED))


def test_the_truth_at_the_networks_size_is_the_mean_of_valid_pixels():
    target = torch.tensor([[[1.0, 3.0, 0.0, 0.0], [5.0, 0.0, 0.0, 0.0]]])
    mask = torch.tensor([[[True, True, False, False], [True, False, False, False]]])
    assert torch.allclose(shrink(target, mask, (1, 2)), torch.tensor([[[3.0, 0.0]]]))
