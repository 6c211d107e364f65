"""`depthdist study`: the runs of each study, worked out by hand, and one study done to the end."""

import json

import pytest
import torch
from helpers.captures import ROOT, write_capture, write_raw
from helpers.commands import steps_in_this_process

from depthdist.commands import study, study_plans
from depthdist.models.base_model import load_base
from depthdist.models.builtin_start import initial_model


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """12 captures of sessions of 2, 3 and 7."""
    folder = tmp_path_factory.mktemp("study") / "raw"
    for i, (hour, minute) in enumerate(
        [(8, 0), (8, 1), *((10, m) for m in range(3)), *((12, m) for m in range(7))]
    ):
        stem = f"21-12-03-{hour:02d}-{minute:02d}-00_Zivid_acquisition"
        write_capture(folder / f"images/{stem}_color.png", folder / f"depth/{stem}_rawDepth.npy", i)
    return folder


def groups(run):
    """By side, the captures of a run's group file."""
    sides = {"train": set(), "val": set(), "skip": set()}
    for line in run.groups:
        stem, side = line.split(",")
        sides[side].add(stem)
    return sides


def settings(raw, **changes):
    return study_plans.StudySettings(
        raw=str(raw), deepspeed=ROOT / "ds_configs/fp16.json", **changes
    )


def test_each_session_is_left_out_once(raw):
    runs = list(study_plans.leave_one_out(settings(raw)))
    assert [len(groups(run)["val"]) for run in runs] == [2, 3, 7]
    assert not any(groups(run)["skip"] for run in runs)
    assert (
        set.union(*(groups(run)["val"] for run in runs))
        == groups(runs[0])["train"] | groups(runs[0])["val"]
    )


def test_the_curve_has_one_validation_set_growing_training_sets_and_as_many_steps(raw):
    runs = list(study_plans.curve(settings(raw, train_subset=(2, 5, 10), epochs=6)))
    sides = [groups(run) for run in runs]
    assert all(side["val"] == sides[0]["val"] for side in sides)
    assert len(sides[0]["val"]) == 2, "the smallest session, a sixth of all"
    assert [len(side["train"]) for side in sides] == [2, 5, 10]
    assert sides[0]["train"] < sides[1]["train"] < sides[2]["train"]
    # 2 steps an epoch with 10 captures in batches of 8, 1 with 2 or 5
    assert [run.train.split("--epochs ")[1] for run in runs] == ["12", "12", "6"]
    with pytest.raises(
        ValueError, match="--train-subset has 11: the training side has 10 captures"
    ):
        list(study_plans.curve(settings(raw, train_subset=(11,))))


def test_the_first_few_of_the_curve_are_spread_over_the_sessions(raw):
    (run,) = study_plans.curve(settings(raw, train_subset=(2,)))
    assert len({stem[:11] for stem in groups(run)["train"]}) == 2


def test_the_foundation_is_beside_the_weights_that_its_pretraining_began_with(raw, tmp_path):
    built_in, random = study_plans.foundation(
        settings(raw, model="built-in", split="random", out=tmp_path)
    )
    assert built_in.train == "--recipe near"
    assert built_in.shard == random.shard == "--split random"
    assert built_in.row.startswith("built-in")
    begun = load_base(random.train.split("--model ")[1])
    assert all(
        torch.equal(a, b) for a, b in zip(begun.net.parameters(), initial_model(0).net.parameters())
    )


def test_one_session_alone_cannot_be_left_out(tmp_path):
    with pytest.raises(
        ValueError, match="4 captures of 1 session; expected captures of two or more"
    ):
        list(study_plans.leave_one_out(settings(write_raw(tmp_path / "raw", 4))))


def test_all_problems_of_the_settings_are_reported_at_once():
    with pytest.raises(
        ValueError,
        match=r"'curv' is not a study; expected one of recipes, curve, .*did you mean curve",
    ):
        study.main(["curv"])
    wrong = "curve --recipe far --epochs 0 --train-subset 0,5 --split date"
    with pytest.raises(ValueError) as err:
        study.main(wrong.split())
    named = [line.split()[0] for line in str(err.value).splitlines()]
    assert named == ["RAW", "--epochs", "--train-subset", "--split", "--recipe"]


def test_a_study_done_to_the_end_goes_on_where_it_stopped_and_prints_its_rows(
    raw, tmp_path, capfd, monkeypatch
):
    flags = "--model tiny --epochs 1 --size 28x42 --val 0.3 --deepspeed ds_configs/fp32.json"
    words = ["splits", str(raw), *flags.split(), "--out", str(tmp_path)]
    with steps_in_this_process():
        study.main(words)
    out = capfd.readouterr().out
    found = json.loads((tmp_path / "splits/study.json").read_text())
    assert list(found) == ["split random", "split session"]
    assert found["split random"]["data_sha256"] != found["split session"]["data_sha256"]
    for row, content in found.items():
        value = content["rows"]["adapter, epoch 1"]["rmse_mm"]
        assert any(line.startswith(row) and f"{value:.2f}" in line for line in out.splitlines())
    last = out[out.rindex("rmse_mm@750-1500") :]
    assert last.count("\nuntrained  ") == 2, "one for each validation set"
    done = []
    monkeypatch.setattr(
        study, "run_shown", lambda *words: done.append([str(word) for word in words])
    )
    study.main(words)
    again = capfd.readouterr().out
    assert again[again.rindex("rmse_mm@750-1500") :] == last
    assert [line[0] for line in done] == ["shard", "train"] * 2, (
        "shards and training see themselves that they are done; nothing is evaluated again"
    )
