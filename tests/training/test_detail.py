"""Training the detail stage: the same on any ranks, after any stop, and begun at any time.

8 captures of 72 x 98 pixels; the adapter learns from 6 at 28 x 42 and the stage, in two folds, from
crops of 64."""

import json
import os
import shutil
from unittest import mock

import numpy as np
import pytest
import torch
from helpers.commands import command, joined, on_srun
from helpers.losses import with_gradient
from helpers.run_ends import curves, numbers, same
from helpers.runs import log, make_curves_older, make_shards, saved_state
from helpers.second_stages import stop_at, train, words, write_captures
from safetensors.torch import load_file

from depthdist.data.dataset import Dataset, DataSettings, open_dataset
from depthdist.geometry.image_resizing import resize_rgb
from depthdist.losses.relief import ReliefWeights
from depthdist.models.adapter import load_adapter
from depthdist.models.stage_files import adapter_sha256
from depthdist.training import loop, second_stage
from depthdist.training.detail import coarse, stage

pytestmark = pytest.mark.usefixtures("quietly_on_one_thread")
STEPS = 4
DETAIL = ["--detail", "--detail-steps", STEPS, "--detail-crops", 4, "--detail-crop", 64]
BEST = "detail/best/detail.safetensors"


@pytest.fixture(scope="module")
def whole(place, adapter):
    """That run with the stage, begun by the same command with --detail; and what folds learned."""
    run = shutil.copytree(adapter, place / "whole")
    make_curves_older(run)
    learned, real = {}, coarse._train_part

    def noting(settings, world, place, part, *others):
        learned[place.path.name] = part.chosen
        real(settings, world, place, part, *others)

    with mock.patch.object(coarse, "_train_part", noting):
        done = train(place, run, *DETAIL)
    assert done.code == 0, done
    assert f"{run} is finished: 1 epochs" in done.out
    assert "best adapter + detail" in done.out
    return run, learned


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of the run with the stage."""
    return shutil.copytree(whole[0], tmp_path / "run")


def ended_alike(run, whole):
    """Weights, moments, coarse predictions and figures, bit for bit."""
    mine, its = run / "detail", whole / "detail"
    assert (run / BEST).read_bytes() == (whole / BEST).read_bytes()
    assert (mine / "best/detail.json").read_bytes() == (its / "best/detail.json").read_bytes()
    assert (mine / "scores.json").read_bytes() == (its / "scores.json").read_bytes()
    assert same(saved_state(mine), saved_state(its))
    assert numbers(mine) == numbers(its) and curves(mine) == curves(its)
    for path in its.glob("coarse/*"):
        assert np.array_equal(
            np.load(path)["coarse"], np.load(mine / "coarse" / path.name)["coarse"]
        )


def test_stopped_in_a_fold_in_its_predictions_and_on_crops_it_ends_as_if_it_was_not(
    place, adapter, whole, tmp_path
):
    run = shutil.copytree(adapter, tmp_path / "run")
    folds, saved = run / "detail/folds", run / "detail/last"
    fold, predictions = (loop, "forward", 3), (coarse, "_coarse_of", 4)
    crops = (second_stage, "forward", 4 + 2, "SIGUSR1")  # of step 1, of step 2
    for place_of_stop, said in (
        (fold, f"stopped by SIGTERM at step 1 of 2, saved in {folds}/1/last"),
        (predictions, f"stopped by SIGTERM while {folds}/2/best predicted train images"),
        (
            crops,
            f"by SIGUSR1 in a look at step 2 of {STEPS} of the detail stage, saved in {saved};",
        ),
    ):
        with stop_at(*place_of_stop):
            done = train(place, run, *DETAIL)
        assert done.code == 75 and said in done.err and "Traceback" not in done.err, done
        assert "best adapter + detail" not in done.out
        if (run / "detail/tensorboard").exists():
            make_curves_older(run / "detail")
    done = train(place, run, *DETAIL)
    assert done.code == 0 and "going on     from step 2 of the detail stage" in done.out, done
    ended_alike(run, whole[0])


def test_two_ranks_train_the_very_same_stage(place, adapter, whole, tmp_path):
    run = shutil.copytree(adapter, tmp_path / "run")
    ranks = [rank.done() for rank in on_srun(2, *words(place, run, *DETAIL))]
    assert all(done.code == 0 for done in ranks), ranks
    assert (run / BEST).read_bytes() == (whole[0] / BEST).read_bytes()
    for name in ("detail/loss", "eval/loss"):
        mine, its = (
            [line[name] for line in log(one / "detail", of=name)] for one in (run, whole[0])
        )
        assert len(its) == STEPS and mine == pytest.approx(its, rel=1e-12)


def test_a_gradient_that_is_not_finite_ends_it_before_a_weight_has_changed(place, whole, tmp_path):
    run = shutil.copytree(whole[0], tmp_path / "run")
    shutil.rmtree(run / "detail/last")
    before = (run / BEST).read_bytes()
    poisoned, real = with_gradient(float("nan")), second_stage.forward

    def forward(*given):
        return {name: poisoned(loss) for name, loss in real(*given).items()}

    with mock.patch.object(second_stage, "forward", forward):
        (line,) = train(place, run, *DETAIL).errors
    assert line.startswith("step 1 of the detail stage: the gradient is nan although the loss is")
    assert line.endswith("try a smaller --detail-lr in a new stage")
    assert (run / BEST).read_bytes() == before and not (run / "detail/last").exists()


def test_it_learned_something(whole):
    run, _ = whole
    losses = [line["detail/loss"] for line in log(run / "detail", of="detail/loss")]
    evals = [line["eval/loss"] for line in log(run / "detail", of="eval/loss")]
    assert len(set(losses)) == STEPS and evals[-1] < evals[0]


def test_a_fold_is_predicted_by_an_adapter_that_has_not_seen_it(place, whole):
    run, learned = whole
    dataset = open_dataset(DataSettings(data=(str(place / "shards"),)))
    files = coarse.CoarseFiles(run / "detail")
    assert learned == {"1": (1, 3, 5), "2": (0, 2, 4)}
    rows = [("train", i, run / f"detail/folds/{i % 2 + 1}/best") for i in range(6)]
    rows += [("val", i, run / "best") for i in range(2)]
    assert len(list((run / "detail/coarse").iterdir())) == len(rows)
    for split, number, folder in rows:
        image = torch.from_numpy(resize_rgb(full_image(dataset, split, number, place), (28, 42)))
        for one in (folder, run / "best"):
            model, _ = load_adapter(one)
            with torch.no_grad():
                expected = model.eval()(image[None])[0].numpy()
            found = files.read(split, number).target
            assert np.allclose(found, expected, rtol=0, atol=1e-6) == (one == folder)


def full_image(dataset, split, number, place):
    return dataset.full_image(split, number, place / "raw")


def test_a_finished_stage_says_so_and_changes_nothing(place, copy):
    files = [path for path in (copy / "detail").rglob("*") if path.is_file()]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    done = train(place, copy, *DETAIL)
    assert done.code == 0
    said = done.out.splitlines()
    assert said[-2].startswith(f"{copy} is finished: 1 epochs")
    assert said[-1].startswith(f"{copy}/detail is finished: {STEPS} steps, loss ")
    after = [path for path in (copy / "detail").rglob("*") if path.is_file()]
    assert sorted(after) == sorted(files)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in after} == before


def test_a_stage_stopped_before_its_table_or_of_an_older_version_prints_it_then(place, copy):
    scores, record = copy / "detail/scores.json", copy / "detail/coarse.json"
    before = scores.read_bytes()
    scores.unlink()
    content = json.loads(record.read_text())
    assert content.pop("complete")
    record.write_text(json.dumps(content))
    done = train(place, copy, *DETAIL)
    assert done.code == 0 and "best adapter + detail" in done.out
    assert scores.read_bytes() == before


def test_another_adapter_makes_it_begin_anew(place, copy):
    before = adapter_sha256(copy / "best")
    for run in (copy, copy / "detail"):
        make_curves_older(run)
    changed = [*DETAIL, "--detail-steps", 1, "--detail-folds", 0, "--detail-lr", 1e-3]
    done = train(place, copy, "--epochs", 3, *changed)
    assert done.code == 0, done
    assert done.out.count("the adapter or the data changed: the detail stage begins anew") == 1
    record = json.loads((copy / "detail/best/detail.json").read_text())
    assert record["adapter"] == adapter_sha256(copy / "best") != before and record["step"] == 1
    assert len(log(copy / "detail", of="detail/loss")) == 1
    assert not (copy / "detail/folds").exists()


def test_a_stage_that_was_begun_with_another_loss_begins_anew(place, whole, copy):
    shutil.rmtree(copy / "detail/last")
    make_curves_older(copy / "detail")
    older = mock.patch.object(stage, "LOSS", ReliefWeights(level=9.0))
    with older, stop_at(second_stage, "forward", 4 * 2 + 1):
        assert train(place, copy, *DETAIL).code == 75
    make_curves_older(copy / "detail")
    done = train(place, copy, *DETAIL)
    assert done.code == 0, done
    said = "step 3 was reached with the loss of another version of depthdist: the detail stage"
    assert done.out.count(f"{said} begins anew") == 1
    ended_alike(copy, whole[0])


@pytest.mark.parametrize(
    ("flag", "value", "before"),
    [("--detail-lr", "0.001", "0.002"), ("--detail-steps", "5", "4"), ("--detail-folds", "3", "2")],
)
def test_another_setting_in_a_begun_stage_is_one_line_and_removes_nothing(
    flag, value, before, place, whole
):
    run, _ = whole
    weights = (run / BEST).read_bytes()
    (line,) = train(place, run, *DETAIL, flag, value).errors
    assert line == (
        f"{flag} is {value}, but the detail stage in {run}/detail began with {before}: give that,"
        f" or remove {run}/detail to train it anew"
    )
    assert (run / BEST).read_bytes() == weights


def test_a_stage_whose_best_is_gone_is_one_line(place, copy):
    shutil.rmtree(copy / "detail/best")
    (line,) = train(place, copy, *DETAIL).errors
    assert line.startswith(f"{copy}/detail/best: the best detail stage so far is gone")


@pytest.mark.parametrize(
    ("others", "said"),
    [
        (["--detail-crop", 96], "--detail-crop is 96: expected at most 72, the images of "),
        (["--detail-crop", 70], "--detail-crop is 70: expected a multiple of 32 from 64"),
        (["--detail-folds", 7], "--detail-folds is 7: expected at most the 6 training images"),
        (["--detail-folds", 1], "--detail-folds is 1: expected 0, or >= 2"),
        (["--overfit", 2], "--detail with --overfit: leave one of them out"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_starts(others, said, place, tmp_path):
    (line,) = train(place, tmp_path / "run", *DETAIL, *others).errors
    assert line.startswith(said) and not (tmp_path / "run").exists()


def test_crops_that_the_ranks_cannot_share_are_one_line(place, tmp_path, monkeypatch):
    joined()
    monkeypatch.setenv("WORLD_SIZE", "2")
    (line,) = train(place, tmp_path / "run", *DETAIL, "--detail-crops", 5).errors
    assert line == "--detail-crops is 5: expected a multiple of the 2 ranks"


@pytest.mark.usefixtures("in_this_process")
def test_small_images_need_the_captures_and_a_folder_of_captures_has_them(place, tmp_path):
    """Without validation, so the last weights are kept."""
    raw = write_captures(tmp_path / "raw", 4)
    make_shards(tmp_path, split="none")
    shutil.copy(place / "batch2.json", tmp_path)
    (line,) = train(tmp_path, tmp_path / "run", *DETAIL).errors
    assert line == (
        f"{tmp_path}/shards: hold images at 28x42; shard again with --rgb-size camera, or give"
        " --raw DIR, the folder of captures"
    )
    seen, real = set(), Dataset.full_image

    def noting(dataset, split, number, folder):
        seen.add((split, number, folder))
        return real(dataset, split, number, folder)

    captures = ["--cache", tmp_path / "cache", "--size", "28x42", "--split", "none"]
    with mock.patch.object(Dataset, "full_image", noting):
        done = train(tmp_path, tmp_path / "run", *captures, *DETAIL, data="raw")
    assert done.code == 0, done
    assert seen == {("train", number, raw) for number in range(4)}
    assert "on 16 train crops" in done.out
    record = json.loads((tmp_path / "run/detail/best/detail.json").read_text())
    assert (record["step"], record["eval_loss"]) == (STEPS, None)
    assert (
        train(tmp_path, tmp_path / "run", *captures, *DETAIL, data="raw")
        .out.splitlines()[-1]
        .startswith(f"{tmp_path}/run/detail is finished: {STEPS} steps")
    )
    masters = saved_state(tmp_path / "run/detail")[0]
    best = {name: tensor for name, tensor in masters.items() if name.startswith("weights/")}
    for name, tensor in load_file(tmp_path / "run" / BEST).items():
        assert torch.equal(best[f"weights/{name}"], tensor)


def test_the_command_adds_it_to_a_run_with_the_runs_own_settings(adapter, whole, tmp_path):
    run = shutil.copytree(adapter, tmp_path / "run")
    with mock.patch.dict(os.environ, RANK="0"):  # as a rank: without the launcher
        done = command("depthdist/__main__.py", "detail", run, *DETAIL[1:])
    assert done.code == 0, done
    assert (run / BEST).read_bytes() == (whole[0] / BEST).read_bytes()
