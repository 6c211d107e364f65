"""Data without validation: the last weights are kept, and every later command says what it has."""

import json
import shutil

import numpy as np
import pytest
import torch
from helpers.captures import stem_of
from helpers.commands import command
from helpers.runs import (
    log,
    make_curves_older,
    make_shards,
    saved_state,
    saved_weights,
    train,
)


class Killed(BaseException):
    """What no `except` of ours may catch."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Shards of 6 captures, all for training."""
    return make_shards(tmp_path_factory.mktemp("alone"), 6, split="none")


@pytest.fixture(scope="module")
def trained(alone, batch4, tmp_path_factory):
    """A run of 2 epochs, its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("alone_run") / "run"
    done = train(alone, folder, "--epochs", 2, "--save-every", 1, deepspeed=batch4)
    assert done.code == 0, done
    return folder, done.out


def test_it_is_said_at_the_start_and_the_end(trained):
    _, out = trained
    assert "no images of a split val; the last weights are kept as the best" in out
    assert "epoch 2/2: kept; nothing to validate on" in out
    assert "on 6 of 6 training images: scores of images that were learned from" in out
    assert out.rstrip().endswith("--split train")


def test_the_last_weights_are_the_best(trained):
    from safetensors.torch import load_file

    folder, _ = trained
    record = json.loads((folder / "best/depthdist.json").read_text())
    assert (record["epoch"], record["eval_loss"]) == (2, None)
    best = load_file(folder / "best/adapter_model.safetensors")
    last = {
        name.removeprefix("net.").replace(".default", ""): tensor
        for name, tensor in saved_weights(folder).items()
        if "lora_" in name
    }
    assert last and all(torch.equal(best[name], tensor) for name, tensor in last.items())


def test_nothing_is_logged_as_an_evaluation_of_new_images(trained):
    folder, _ = trained
    assert not log(folder, of="eval/loss") and log(folder, of="fit/rmse_mm")


def test_a_stopped_run_goes_on_to_the_same_end(alone, trained, batch4, tmp_path):
    from depthdist.training import keeping

    whole, _ = trained
    run = tmp_path / "run"
    real = keeping.save_state

    def dying(folder, step, *given):
        real(folder, step, *given)
        if step == 3:  # in the middle of epoch 2
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(keeping, "save_state", dying)
        train(alone, run, "--epochs", 2, "--save-every", 1, deepspeed=batch4)
    make_curves_older(run)
    done = train(alone, run, "--epochs", 2, "--save-every", 1, deepspeed=batch4)
    assert done.code == 0 and "step 3, 1 epochs finished" in done.out, done
    (first, _), (other, _) = saved_state(run), saved_state(whole)
    assert first.keys() == other.keys()
    assert all(torch.equal(first[name], other[name]) for name in first)


def test_a_finished_run_says_so(alone, trained, batch4):
    folder, _ = trained
    done = train(alone, folder, "--epochs", 2, "--save-every", 1, deepspeed=batch4)
    assert "is finished: 2 epochs, without validation" in done.out


@pytest.mark.parametrize("words", [["--patience", 2], ["--best-by", "rmse_mm"]])
def test_settings_that_need_validation_are_one_line_and_leave_nothing(alone, tmp_path, words):
    (line,) = train(alone, tmp_path / "run", *words).errors
    assert line.startswith(f"{words[0]} is {words[1]}") and "no validation images" in line
    assert not (tmp_path / "run").exists()


def test_evaluating_says_which_splits_there_are(trained):
    (line,) = command("launch/evaluate.py", "--run", trained[0]).errors
    assert "has no split 'val'; it has train: take --split train" in line


def test_it_is_scored_on_train_reported_predicted_and_exported(alone, trained, tmp_path):
    run = shutil.copytree(trained[0], tmp_path / "run")
    words = ["--split", "train", "--no-details", "--workers", 1]
    assert command("launch/evaluate.py", "--run", run, *words).code == 0
    assert command("tools/report.py", "run", run).code == 0
    page = (run / "report.html").read_text()
    assert "The run learned from 6 of 6 images of train" in page
    picture = alone.with_name("raw") / f"images/{stem_of(0)}_color.png"
    assert command("launch/predict.py", picture, "--run", run, "--out", tmp_path / "p").code == 0
    done = command("launch/export.py", run, tmp_path / "out", "--forms", "model,adapter")
    assert done.code == 0, done
    card = (tmp_path / "out/model/README.md").read_text()
    assert "The run learned from 6 of 6 images of train" in card


def test_what_it_saw_is_on_record_and_goes_with_its_export(trained, tmp_path):
    run, _ = trained
    rows = np.load(run / "seen.npy")
    assert (len(rows), rows["validation"].any()) == (6, False)
    assert command("launch/export.py", run, tmp_path, "--forms", "model,adapter").code == 0
    for form in ("model", "adapter"):
        assert (tmp_path / form / "seen.npy").read_bytes() == (run / "seen.npy").read_bytes()


def test_a_test_split_is_neither_learned_from_nor_chosen_by(batch4, tmp_path):
    names = ["train", "train", "test", "train", "test", "val"]
    groups = tmp_path / "groups.csv"
    groups.write_text("".join(f"{stem_of(i)},{name}\n" for i, name in enumerate(names)))
    data = make_shards(tmp_path, 6, split="file", groups=str(groups))
    run = tmp_path / "run"
    assert train(data, run, "--epochs", 1, deepspeed=batch4).code == 0
    rows = np.load(run / "seen.npy")
    assert ((~rows["validation"]).sum(), rows["validation"].sum()) == (3, 1)
    done = command(
        "launch/evaluate.py", "--run", run, "--split", "test", "--no-details", "--workers", 1
    )
    images = json.loads((run / "evaluation.json").read_text())["images"]["untrained"]["keys"]
    assert (done.code, images) == (0, [stem_of(2), stem_of(4)])


def test_a_run_on_mixed_data_warns_of_images_that_two_splits_have(batch4, tmp_path):
    a = make_shards(tmp_path / "a", 6, seed=1)
    shutil.copytree(tmp_path / "a/raw", tmp_path / "b/raw")
    b = make_shards(tmp_path / "b", 6, seed=2)
    done = train(f"{a},{b}", tmp_path / "run", "--epochs", 1, deepspeed=batch4)
    assert done.code == 0, done
    assert (
        "images of val are in train as well (the same picture or point map)" in done.out + done.err
    )
