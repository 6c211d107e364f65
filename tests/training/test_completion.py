"""Training the completion stage: the same on any ranks, after any stop, and begun at any time."""

import json
import os
import shutil
from unittest import mock

import numpy as np
import pytest
from helpers.commands import command, on_srun
from helpers.run_ends import curves, numbers, same
from helpers.runs import log, make_curves_older, saved_state
from helpers.second_stages import CAMERA, stop_at, train, words
from safetensors.torch import load_file

from depthdist.data.dataset import DataSettings, open_dataset
from depthdist.models.completion import load_completion
from depthdist.models.seen_range import measure_images
from depthdist.models.stage_files import adapter_sha256
from depthdist.training import second_stage
from depthdist.training.completion import hole_batches, stage, working_images
from depthdist.training.completion.hole_batches import Draw, HoleReader
from depthdist.training.completion.working_images import WorkingImages

pytestmark = pytest.mark.usefixtures("quietly_on_one_thread")
STEPS = 4
SETTINGS = ["--completion", "--completion-steps", STEPS, "--completion-images", 2]
SETTINGS += ["--detail-folds", 0]
BEST = "completion/best/completion.safetensors"


@pytest.fixture(scope="module")
def whole(place, adapter):
    """That run with the stage, begun by the same command with --completion."""
    run = shutil.copytree(adapter, place / "whole")
    make_curves_older(run)
    done = train(place, run, *SETTINGS)
    assert done.code == 0, done
    assert f"{run} is finished: 1 epochs" in done.out
    assert f"completion   {run}/completion/best; predict --fill and --save sigma use it" in done.out
    return run


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of the run with the stage."""
    return shutil.copytree(whole, tmp_path / "run")


def ended_alike(run, whole):
    """Weights, moments, images and figures, bit for bit."""
    mine, its = run / "completion", whole / "completion"
    assert (run / BEST).read_bytes() == (whole / BEST).read_bytes()
    record = "best/completion.json"
    assert (mine / record).read_bytes() == (its / record).read_bytes()
    assert (mine / "scores.json").read_bytes() == (its / "scores.json").read_bytes()
    assert same(saved_state(mine), saved_state(its))
    assert numbers(mine) == numbers(its) and curves(mine) == curves(its)


def test_stopped_while_images_are_made_and_at_a_step_it_ends_as_if_it_was_not(
    place, adapter, whole, tmp_path
):
    run = shutil.copytree(adapter, tmp_path / "run")
    saved = run / "completion/last"
    for place_of_stop, said in (
        ((working_images, "working_maps", 3), "while images were made for the completion stage"),
        (
            (second_stage, "forward", 2 + 2, "SIGUSR1"),
            f"by SIGUSR1 in a look at step 2 of {STEPS} of the completion stage, saved in {saved};",
        ),
    ):
        with stop_at(*place_of_stop):
            done = train(place, run, *SETTINGS)
        assert done.code == 75 and said in done.err and "Traceback" not in done.err, done
        if (run / "completion/tensorboard").exists():
            make_curves_older(run / "completion")
    done = train(place, run, *SETTINGS)
    assert done.code == 0 and "going on     from step 2 of the completion stage" in done.out, done
    ended_alike(run, whole)


def test_two_ranks_train_the_very_same_stage(place, adapter, whole, tmp_path):
    run = shutil.copytree(adapter, tmp_path / "run")
    ranks = [rank.done() for rank in on_srun(2, *words(place, run, *SETTINGS))]
    assert all(done.code == 0 for done in ranks), ranks
    assert (run / BEST).read_bytes() == (whole / BEST).read_bytes()
    record = "completion/best/completion.json"
    mine, its = (json.loads((one / record).read_text()) for one in (run, whole))
    for name in ("eval_loss", "filled_sigma", "predicted_sigma"):
        assert mine.pop(name) == pytest.approx(its.pop(name), rel=1e-12)
    assert mine == its


def test_each_step_has_its_losses(whole):
    lines = log(whole / "completion", of="completion/loss")
    assert len({line["completion/loss"] for line in lines}) == STEPS
    for line in lines:
        weights = vars(stage.LOSS).items()
        total = sum(weight * line[f"completion/{name}"] for name, weight in weights)
        assert line["completion/loss"] == pytest.approx(total, rel=1e-5)


def test_its_record_says_what_it_belongs_to_and_how_sure_it_is(whole):
    completion = load_completion(whole)
    record = completion.record
    assert record.adapter == adapter_sha256(whole / "best") and record.camera == CAMERA
    assert record.filled_sigma > 0 and record.predicted_sigma > 0
    images = [WorkingImages(whole / "completion").read("train", number) for number in range(6)]
    assert record.seen == measure_images(images)
    weights = load_file(whole / BEST)
    assert weights.keys() == completion.network.state_dict().keys()


def test_a_finished_stage_says_so_and_changes_nothing(place, copy):
    files = [path for path in (copy / "completion").rglob("*") if path.is_file()]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    done = train(place, copy, *SETTINGS)
    assert done.code == 0
    assert done.out.splitlines()[-1].startswith(f"{copy}/completion is finished: {STEPS} steps")
    after = [path for path in (copy / "completion").rglob("*") if path.is_file()]
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in after} == before


def test_another_adapter_makes_it_begin_anew(place, copy):
    for run in (copy, copy / "completion"):
        make_curves_older(run)
    done = train(place, copy, "--epochs", 2, *SETTINGS, "--completion-steps", 1)
    assert done.code == 0, done
    assert done.out.count("adapter or the data changed: the completion stage begins anew") == 1
    record = json.loads((copy / "completion/best/completion.json").read_text())
    assert record["adapter"] == adapter_sha256(copy / "best") and record["step"] == 1


def test_a_stage_that_was_begun_with_another_loss_begins_anew(place, whole, copy):
    shutil.rmtree(copy / "completion/last")
    make_curves_older(copy / "completion")
    older = mock.patch.object(stage, "LOSS", stage.CompletionWeights(kept=9.0))
    with older, stop_at(second_stage, "forward", 2 * 2 + 1):
        assert train(place, copy, *SETTINGS).code == 75
    make_curves_older(copy / "completion")
    done = train(place, copy, *SETTINGS)
    assert done.code == 0, done
    said = "step 3 was reached with the loss of another version of depthdist: the completion stage"
    assert done.out.count(f"{said} begins anew") == 1
    ended_alike(copy, whole)


def test_another_setting_in_a_begun_stage_is_one_line(place, whole):
    (line,) = train(place, whole, *SETTINGS, "--completion-lr", 0.002).errors
    assert line == (
        f"--completion-lr is 0.002, but the completion stage in {whole}/completion began with"
        f" 0.001: give that, or remove {whole}/completion to train it anew"
    )


@pytest.mark.parametrize(
    ("others", "said"),
    [
        (["--completion-steps", 0], "--completion-steps is 0: expected >= 1"),
        (["--detail-folds", 7], "--detail-folds is 7: expected at most the 6 training images"),
        (["--overfit", 2], "--completion with --overfit: leave one of them out"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_starts(others, said, place, tmp_path):
    (line,) = train(place, tmp_path / "run", *SETTINGS, *others).errors
    assert line.startswith(said) and not (tmp_path / "run").exists()


def test_the_command_adds_it_to_a_run_with_the_runs_own_settings(adapter, whole, tmp_path):
    run = shutil.copytree(adapter, tmp_path / "run")
    with mock.patch.dict(os.environ, RANK="0"):  # as a rank: without the launcher
        done = command("depthdist/__main__.py", "completion", run, *SETTINGS[1:])
    assert done.code == 0, done
    assert (run / BEST).read_bytes() == (whole / BEST).read_bytes()


# ------------------------------------------------------------------------------------- its samples


@pytest.fixture
def reader(whole):
    return HoleReader(WorkingImages(whole / "completion"), num_masks=6, seed=5)


def test_kept_images_are_what_the_camera_measured(place, whole):
    dataset = open_dataset(DataSettings(data=(str(place / "shards"),)))
    for number in range(6):
        maps = WorkingImages(whole / "completion").read("train", number)
        stem = dataset.find("train", number)[1].stem.split("/")[-1].removesuffix("_color")
        z = np.load(place / f"raw/depth/{stem}_rawDepth.npy")[..., 2]
        assert maps.rgb.shape == (*CAMERA, 3)
        assert np.allclose(maps.depth_mm, np.nan_to_num(z), atol=0.06)  # steps of the shards


def test_what_is_hidden_is_not_seen_and_a_sample_depends_on_its_number_alone(reader):
    (once,), (again,), (other,) = ([reader("train", [Draw(2, number)])] for number in (40, 40, 41))
    assert all(same for same in map(np.array_equal, *(vars(one).values() for one in (once, again))))
    assert not np.array_equal(once.depth_mm, other.depth_mm) or (once.hole != other.hole).any()
    for number in range(20):
        shown, depth_mm = reader.maps("train", Draw(number % 6, number))
        hole = (depth_mm > 0) & (shown.depth_mm == 0)
        assert np.array_equal(shown.depth_mm[~hole], depth_mm[~hole])
        batch = reader("train", [Draw(number % 6, number)])
        hidden = batch.depth_mm.clone()
        hidden[batch.hole] = 0
        assert np.array_equal(hidden[0].numpy(), shown.depth_mm)


def test_some_samples_show_nothing_for_the_predictions_own_sigma(reader):
    def shows_nothing(draw):
        return not reader.maps("train", draw)[0].depth_mm.any()

    share = np.mean([shows_nothing(Draw(number % 6, number)) for number in range(200)])
    assert abs(share - hole_batches.NOTHING_SHOWN) < 0.08
    draws = hole_batches.validation_draws(2, 8)
    nothing = [not reader.maps("val", draw)[0].depth_mm.any() for draw in draws]
    assert nothing == [False, False, False, True] * 2
