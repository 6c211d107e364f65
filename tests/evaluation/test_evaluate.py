"""launch/evaluate.py: the numbers of a run's table, against NumPy in float64 on the raw captures,
and what it says when it cannot."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.captures import write_capture
from helpers.commands import command
from helpers.detail_stages import refined_by_hand, write_stage
from helpers.evaluation import evaluate
from helpers.runs import make_shards, train
from PIL import Image

from depthdist.evaluation.image_details import all_metrics
from depthdist.evaluation.metrics.pixels import PIXEL_METRICS
from depthdist.evaluation.row_kinds import RowKind


@pytest.fixture(scope="module")
def one(run):
    """The rows with micro-batch 1, and the text of the table."""
    return evaluate(run)


def raw_truth(data, split="val", bounded=False):
    """(H, W) float64 mm for each sample of the split, from the captures themselves, NaN where
    nothing was measured.

    bounded  also outside the training set's bounds, as the losses have it
    """
    from depthdist.shards.index import read_index

    index = read_index(data)
    low, high = (index.stats["train"][name] for name in ("min_mm", "max_mm"))
    for sample in index.samples(split):
        z = np.load(data.parent / f"raw/depth/{sample.stem}_rawDepth.npy")[:, :, 2].astype(
            np.float64
        )
        with np.errstate(invalid="ignore"):
            z[bounded & ((z < low - index.step_mm / 2) | (z > high + index.step_mm / 2))] = np.nan
        yield sample.stem, z


def by_hand(pairs):
    """Means over images of the four metrics; `pairs` of prediction and truth (H, W) in mm."""
    rows = []
    for p, g in pairs:
        p, g = np.broadcast_to(p, g.shape)[np.isfinite(g)].astype(np.float64), g[np.isfinite(g)]
        delta1 = np.mean(np.maximum(p / g, g / p) < 1.25)
        rows.append(
            (
                np.mean(np.abs(p - g) / g),
                delta1,
                math.sqrt(np.mean((p - g) ** 2)),
                np.mean(np.abs(p - g)),
            )
        )
    return dict(zip(("abs_rel", "delta1", "rmse_mm", "mae_mm"), np.mean(rows, axis=0)))


def compare(row, wanted, within_mm):
    """Truth in the shards is off by step / 2 = 0.03 mm at most, so metrics in mm are too."""
    assert row["rmse_mm"] == pytest.approx(wanted["rmse_mm"], abs=within_mm) and row[
        "mae_mm"
    ] == pytest.approx(wanted["mae_mm"], abs=within_mm)
    assert row["abs_rel"] == pytest.approx(wanted["abs_rel"], abs=within_mm / 1000) and row[
        "delta1"
    ] == pytest.approx(wanted["delta1"], abs=0.002)


def test_the_table_has_the_constant_before_and_the_adapter(one, data):
    from depthdist.shards.index import read_index

    rows, text = one
    mean = read_index(data).stats["train"]["mean_mm"]
    assert list(rows) == [
        f"constant {mean:.0f} mm",
        "untrained",
        "untrained, disparity-aligned",
        "adapter, epoch 1",
    ]
    assert all(
        row["images"] == 3
        and set(row)
        == {
            "images",
            "damaged",
            *({} if "aligned" in name else {"l1", "grad", "loss"}),
            *all_metrics(),
        }
        for name, row in rows.items()
    )
    lines = [line for line in text.split("better")[0].splitlines() if line.startswith(tuple(rows))]
    assert len(lines) == 4 and all(
        f"{row['rmse_mm']:.2f}" in line for line, row in zip(lines, rows.values())
    )
    least = min(row["mae_mm"] for name, row in rows.items() if "aligned" not in name)
    assert sum(f"{least:.2f}*" in line for line in lines) == 1 and text.count("*") >= 5
    assert "evaluation.json" in text


def test_the_constant_row_is_what_numpy_makes_of_the_captures(one, data):
    """The constant is the mean of every valid pixel of the training captures."""
    training = np.concatenate([z[np.isfinite(z)] for _, z in raw_truth(data, "train")])
    row = next(row for name, row in one[0].items() if name.startswith("constant"))
    compare(row, by_hand((training.mean(), z) for _, z in raw_truth(data)), within_mm=0.04)


def test_the_adapter_row_is_what_numpy_makes_of_the_predictions(one, run, data, tmp_path):
    """launch/predict.py writes depth for the raw pictures; nothing of our metrics is used."""
    pictures = [data.parent / f"raw/images/{stem}_color.png" for stem, _ in raw_truth(data)]
    assert (
        command(
            "launch/predict.py", *pictures, "--run", run, "--out", tmp_path, "--save", "npy"
        ).code
        == 0
    )
    predicted = [np.load(tmp_path / f"{picture.stem}_depth.npy") for picture in pictures]
    compare(
        one[0]["adapter, epoch 1"],
        by_hand((p, z) for p, (_, z) in zip(predicted, raw_truth(data))),
        within_mm=0.04,
    )


def test_the_loss_of_the_constant_is_the_formula_worked_out(one, data):
    from depthdist.shards.index import read_index

    stats, found = read_index(data).stats["train"], []
    low, high = 1 / stats["max_mm"], 1 / stats["min_mm"]
    constant = (1 / stats["mean_mm"] - low) / (high - low)
    for _, z in raw_truth(data, bounded=True):
        d, total = np.clip((1 / z - low) / (high - low), 0, 1), 0.0
        for step in (d[:, 1:] - d[:, :-1], d[1:] - d[:-1]):
            step = np.abs(step[np.isfinite(step)])
            total += np.mean(step * (1 + 10 * (step > 0.02)))
        found.append(np.nanmean(np.abs(constant - d)) + 3 * total)
    row = next(row for name, row in one[0].items() if name.startswith("constant"))
    assert row["loss"] == pytest.approx(np.mean(found), rel=0.01) and row["loss"] == pytest.approx(
        row["l1"] + 3 * row["grad"], rel=1e-6
    )


def test_the_adapter_row_is_what_training_saw(one, run):
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row, line in (
        ("untrained", logged[0]),
        ("adapter, epoch 1", [x for x in logged if "eval/loss" in x][-1]),
    ):
        for name, value in one[0][row].items():
            assert f"eval/{name}" not in line or value == pytest.approx(
                line[f"eval/{name}"], rel=1e-5
            )
    assert one[0]["untrained"] != one[0]["adapter, epoch 1"] and {
        f"eval/{name}" for name in PIXEL_METRICS
    } < set(logged[0])


def test_a_network_that_trained_as_a_whole_is_scored_beside_what_it_began_from(run, data):
    whole = run.with_name("whole")
    words = ["--epochs", 1, "--model", run.with_name("dav2"), "--lora", "none"]
    words += ["--recipe", "document"]
    assert train(data, whole, *words).code == 0
    logged = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    rows, _ = evaluate(whole, "--no-details")
    for row, line in (
        ("untrained", logged[0]),
        ("adapter, epoch 1", [x for x in logged if "eval/loss" in x][-1]),
    ):
        assert all(
            rows[row][name] == pytest.approx(line[f"eval/{name}"], rel=1e-5)
            for name in ("loss", "rmse_mm", "abs_rel")
        )
    assert rows["untrained"]["rmse_mm"] != rows["adapter, epoch 1"]["rmse_mm"]


@pytest.mark.parametrize("micro_batch", [2, 3])
def test_the_micro_batch_changes_nothing(micro_batch, one, run):
    """3 samples in micro-batches of 2: one slot only fills the last."""
    rows, _ = evaluate(run, "--micro-batch", micro_batch, "--no-details")
    for name, row in one[0].items():
        measured = {metric: row[metric] for metric in rows[name]}
        assert (
            rows[name] == pytest.approx(measured, rel=1e-9 if name.startswith("constant") else 1e-5)
            and "rmse_mm" in measured
        )


def test_worker_processes_change_nothing(one, run):
    rows, _ = evaluate(run, "--workers", 2)
    assert rows == one[0]


def test_what_is_scored_does_not_depend_on_the_bounds_that_a_run_was_trained_with(run, tmp_path):
    """A run on few captures knows few depths; it is measured on all of them all the same."""
    import shutil

    narrow = tmp_path / "narrow"
    shutil.copytree(run, narrow)
    record = json.loads((narrow / "best/depthdist.json").read_text())
    (narrow / "best/depthdist.json").write_text(
        json.dumps({**record, "far_mm": (record["near_mm"] + record["far_mm"]) / 2})
    )
    here, there = (evaluate(one, "--no-details")[0] for one in (run, narrow))
    constant = next(name for name in here if name.startswith("constant"))
    assert {name: there[constant][name] for name in PIXEL_METRICS} == {
        name: here[constant][name] for name in PIXEL_METRICS
    }, "the same pixels"
    assert there[constant]["loss"] != here[constant]["loss"], "a loss is of the run's own scale"


def test_the_file_has_the_kind_of_each_row_and_the_number_of_each_image(run):
    rows, _ = evaluate(run, "--no-details")
    content = json.loads((run / "evaluation.json").read_text())
    assert list(content["kinds"].items()) == [
        (next(iter(rows)), "constant"),
        ("untrained", "untrained"),
        ("untrained, disparity-aligned", "untrained-aligned"),
        ("adapter, epoch 1", "adapter"),
    ]
    assert all(images["samples"] == [0, 1, 2] for images in content["images"].values())


def test_other_data_and_another_split_can_be_scored(run, data):
    rows, _ = evaluate(run, "--split", "train", "--data", data, "--no-details")
    assert {row["images"] for row in rows.values()} == {11}
    assert json.loads((run / "evaluation.json").read_text())["split"] == "train"


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """6 captures that lie farther than most of `data`: 5 for training, 1 for validation."""
    folder = tmp_path_factory.mktemp("others")
    for i in range(6):
        write_capture(
            folder / f"raw/images/x{i}_color.png", folder / f"raw/depth/x{i}_rawDepth.npy", 15 + i
        )
    return make_shards(folder)


def copy_of(run, folder, **facts):
    """The run in another folder, its record with other facts; those that are None are left out."""
    shutil.copytree(run, folder)
    record = json.loads((folder / "run.json").read_text())
    record["derived"] = {
        name: value for name, value in {**record["derived"], **facts}.items() if value is not None
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize("facts", [{}, {"mean_mm": None}])
def test_the_constant_is_the_mean_of_what_the_run_learned_from_whatever_is_scored(
    run, data, others, tmp_path, facts
):
    """From the run's record or, of one that was made before it was there, from the data."""
    training = np.concatenate([z[np.isfinite(z)] for _, z in raw_truth(data, "train")])
    for split in ("val", "train"):
        rows, _ = evaluate(
            copy_of(run, tmp_path / split, **facts),
            "--data",
            others,
            "--split",
            split,
            "--no-details",
        )
        assert f"constant {training.mean():.0f} mm" in rows
        compare(
            rows[f"constant {training.mean():.0f} mm"],
            by_hand((training.mean(), z) for _, z in raw_truth(others, split)),
            within_mm=0.04,
        )


@pytest.mark.parametrize("facts", [{"data": ["/nowhere"]}, {"data_sha256": "0" * 64}])
def test_where_the_training_data_are_lost_the_row_says_whose_mean_it_is(
    run, others, tmp_path, facts
):
    lost = copy_of(run, tmp_path / "run", mean_mm=None, **facts)
    mean = np.concatenate([z[np.isfinite(z)] for _, z in raw_truth(others, "train")]).mean()
    assert (
        f"constant {mean:.0f} mm, mean of the scored data's train"
        in evaluate(lost, "--data", others, "--no-details")[0]
    )
    record = json.loads((lost / "best/depthdist.json").read_text())
    (lost / "best/depthdist.json").write_text(json.dumps({**record, "far_mm": 1200.0}))
    assert (
        "constant 1200 mm, nearest to the mean of the scored data's train"
        in evaluate(lost, "--data", others, "--no-details")[0]
    )


@pytest.mark.parametrize("name", ["val", "test"])
def test_data_without_a_training_split_are_scored(run, others, tmp_path, name):
    only = Path(shutil.copytree(others, tmp_path / "only"))
    index = json.loads((only / "index.json").read_text())
    index["splits"] = {name: {**index["splits"]["train"], "count": 6}}
    (only / "index.json").write_text(json.dumps(index))
    rows, _ = evaluate(
        copy_of(run, tmp_path / "run"), "--data", only, "--split", name, "--no-details"
    )
    assert {row["images"] for row in rows.values()} == {6} and not any(
        "scored" in row for row in rows
    )
    rows, _ = evaluate(
        copy_of(run, tmp_path / "lost", mean_mm=None, data=["/nowhere"]),
        "--data",
        only,
        "--split",
        name,
        "--no-details",
    )
    assert any(row.endswith(f"mean of the scored data's {name}") for row in rows)
    assert command("tools/report.py", "run", tmp_path / "lost").code == 0


def test_rows_with_detail_from_the_full_picture_are_what_predict_writes(run, data, tmp_path):
    raw = data.parent / "raw"
    rows, out = evaluate(run, "--no-details", "--raw", raw, "--refine", "guided,tiles", "--flip")
    plain, *finer = [name for name in rows if name.startswith("adapter")]
    assert (
        finer == [f"{plain}, flip", f"{plain}, guided", f"{plain}, tiles"]
        and f"seconds an image (median over batches): {plain} " in out
    )
    for words, name in (
        (["--refine", "guided"], finer[1]),
        (["--refine", "tiles"], finer[2]),
        (["--flip"], finer[0]),
        ([], plain),
    ):
        truths = dict(raw_truth(data))
        pictures = [raw / f"images/{stem}_color.png" for stem in truths]
        assert (
            command(
                "launch/predict.py",
                *pictures,
                "--run",
                run,
                "--out",
                tmp_path / name,
                "--save",
                "npy",
                *words,
            ).code
            == 0
        )
        wanted = by_hand(
            [
                (np.load(tmp_path / name / f"{stem}_color_depth.npy"), truth)
                for stem, truth in truths.items()
            ]
        )
        compare(rows[name], wanted, 0.06)
    assert len({rows[name]["rmse_mm"] for name in (plain, *finer)}) == 4, "each does something"


def test_a_detail_stage_has_a_row_of_its_own_beside_plain(run, data, tmp_path):
    detailed = shutil.copytree(run, tmp_path / "detailed")
    write_stage(detailed, (30, 40))
    raw = data.parent / "raw"
    # shards hold images at the network's size: plain alone, and what to give
    rows, out = evaluate(detailed, "--no-details")
    (plain,) = (name for name in rows if name.startswith("adapter"))
    assert f"WARNING      detail ({detailed}/detail/best) is not scored: " in out
    assert "give --raw DIR, the folder of captures" in out
    rows, out = evaluate(detailed, "--raw", raw)
    assert f"refine       detail ({detailed}/detail/best)" in out
    label = f"{plain} + detail"
    assert [name for name in rows if name.startswith("adapter")] == [plain, label]
    content = json.loads((detailed / "evaluation.json").read_text())
    assert content["kinds"][label] == RowKind.ADAPTER_REFINED.value
    pairs = [
        (refined_by_hand(detailed, np.array(Image.open(raw / f"images/{stem}_color.png"))), truth)
        for stem, truth in raw_truth(data)
    ]
    compare(rows[label], by_hand(pairs), 0.06)
    differing = {
        name.partition("@")[0] for name, value in rows[label].items() if value != rows[plain][name]
    }
    assert differing >= {"rmse_mm", "edge_precision", "normal_mean_deg"}
    # kept at the camera's size, shards have the images themselves
    whole = tmp_path / "whole"
    assert command("tools/shard.py", raw, whole, "--rgb-size", "camera", "--rgb", "png").code == 0
    found, _ = evaluate(detailed, "--no-details", "--data", whole, "--split", "val")
    assert found[label]["rmse_mm"] == pytest.approx(rows[label]["rmse_mm"], abs=0.01)
    rows, _ = evaluate(detailed, "--no-details", "--raw", raw, "--refine", "plain")
    assert label not in rows
