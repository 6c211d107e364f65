"""launch/evaluate.py: the numbers of a run's table, against NumPy in float64 on the raw captures,
and what it says when it cannot."""

import json
import math
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.captures import write_capture
from helpers.commands import command
from helpers.runs import make_loader, make_model, make_shards, train

from depthdist.evaluation.image_details import all_metrics
from depthdist.evaluation.metrics.pixels import PIXEL_METRICS


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """11 samples for training, 3 for validation; the captures lie beside them in ../raw."""
    return make_shards(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert (
        train(data, folder, "--epochs", 1, "--model", make_model(folder.with_name("dav2"))).code
        == 0
    )
    return folder


def evaluate(run, *words):
    """The rows of evaluation.json after the command, and what it printed."""
    done = command("launch/evaluate.py", "--run", run, "--workers", 1, *words)
    assert done.code == 0, done
    return json.loads((run / "evaluation.json").read_text())["rows"], done.out


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
    assert (
        train(data, whole, "--epochs", 1, "--model", run.with_name("dav2"), "--lora", "none").code
        == 0
    )
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


def test_padding_never_counts_whatever_it_holds(data):
    from depthdist.evaluation.scoring import score
    from depthdist.geometry.depth_range import normalize_depth
    from depthdist.losses import LossSettings
    from depthdist.training.run_facts import training_bounds

    loader = make_loader(data)
    bounds = training_bounds(loader.dataset)

    def predict(batch):
        return normalize_depth(batch.depth_mm, bounds)[0] + 0.01

    def spoiled():
        for packed in loader.evaluate("val", 2, 0, 1):
            batch = packed.to("cpu")
            empty = batch.weight == 0
            batch.depth_mm[empty], batch.mask[empty] = 1100.0, True
            batch.rgb[empty] = 0
            yield batch

    plain = score(
        predict, loader.evaluate("val", 1, 0, 1), 3, bounds, LossSettings(), torch.device("cpu")
    )["none"]
    found = score(predict, spoiled(), 3, bounds, LossSettings(), torch.device("cpu"))["none"]
    assert (
        found.means() == pytest.approx(plain.means(), rel=1e-6)
        and found.keys == plain.keys
        and len(set(found.keys)) == 3
    )
    with pytest.raises(AssertionError, match=r"met 3 \+ 0 samples of 4"):
        score(predict, spoiled(), 4, bounds, LossSettings(), torch.device("cpu"))


def test_a_split_of_which_nothing_can_be_read_has_no_score(data):
    from depthdist.evaluation.scoring import score
    from depthdist.losses import LossSettings
    from depthdist.training.run_facts import training_bounds

    loader = make_loader(data)

    def unread():
        for packed in loader.evaluate("val", 1, 0, 1):
            batch = packed.to("cpu")
            batch.weight[:] = 0
            yield batch

    with pytest.raises(ValueError, match="none of the 3 samples could be read"):
        score(
            lambda batch: batch.depth_mm * 0,
            unread(),
            3,
            training_bounds(loader.dataset),
            LossSettings(),
            torch.device("cpu"),
        )


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


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_prediction_that_is_no_number_is_named_and_no_score(data, value):
    from depthdist.evaluation.scoring import score
    from depthdist.losses import LossSettings
    from depthdist.training.run_facts import training_bounds

    loader = make_loader(data)

    def broken(batch):
        pred = torch.full_like(batch.depth_mm, 0.5)
        pred[:, 3, 4] = value
        return pred

    with pytest.raises(ValueError, match="the prediction is not finite in 1 of 1200 pixels"):
        score(
            broken,
            loader.evaluate("val", 1, 0, 1),
            3,
            training_bounds(loader.dataset),
            LossSettings(),
            torch.device("cpu"),
        )


def test_the_file_has_the_kind_of_each_row_and_the_number_of_each_image(one, run):
    content = json.loads((run / "evaluation.json").read_text())
    assert list(content["kinds"].items()) == [
        (next(iter(one[0])), "constant"),
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


def test_what_is_missing_is_one_clear_line(run, data, tmp_path):
    (line,) = command("launch/evaluate.py", "--run", run.with_name("frist")).errors
    assert "no run here" in line and str(run) in line
    (line,) = command("launch/evaluate.py").errors
    assert line.startswith("--run is missing")
    (line,) = command("launch/evaluate.py", "--run", run, "--split", "tset").errors
    assert "no split 'tset'" in line and "train, val" in line
    (line,) = command("launch/evaluate.py", "--run", run, "--data", tmp_path / "absent").errors
    assert str(tmp_path / "absent") in line
    (line,) = command(
        "launch/evaluate.py", "--run", run, "--micro-batsch", 2, "--split", "val"
    ).errors[:1]
    assert "did you mean --micro-batch?" in line
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(run / "run.json", begun)
    (line,) = command("launch/evaluate.py", "--run", begun).errors
    assert "no adapter here" in line


def test_data_of_another_picture_size_is_refused(run, tmp_path):
    from depthdist.core.settings import Size

    other = make_shards(tmp_path, 4, size=Size(14, 28))
    (line,) = command("launch/evaluate.py", "--run", run, "--data", other).errors
    assert "28x42" in line and "14x28" in line


def test_a_micro_batch_below_1_is_refused(run):
    (line,) = command("launch/evaluate.py", "--run", run, "--micro-batch", 0).errors
    assert line.startswith("--micro-batch is 0")


# ------------------------------------------------------------------- details, intervals, comparison


@pytest.fixture(scope="module")
def tires_run(tmp_path_factory):
    """A run on built-in captures, whose grooves are labelled: 2 to train, 3 to score, and a second
    with another seed."""
    from helpers.captures import ROOT

    folder = tmp_path_factory.mktemp("tires")
    for words in (
        ["tools/make_tires.py", folder / "raw", "--pairs", 5, "--size", "420x680", "--workers", 1],
        [
            "tools/shard.py",
            folder / "raw",
            folder / "data",
            "--size",
            "28x42",
            "--val",
            0.6,
            "--workers",
            1,
        ],
    ):
        subprocess.run(
            [sys.executable, *map(str, words)], cwd=ROOT, check=True, capture_output=True
        )
    for seed in (0, 1):
        assert (
            train(
                folder / "data",
                folder / f"run{seed}",
                "--epochs",
                1,
                "--seed",
                seed,
                "--model",
                "tiny",
                "--pictures",
                0,
            ).code
            == 0
        )
    return folder


@pytest.fixture(scope="module")
def compared(tires_run):
    done = command(
        "launch/evaluate.py",
        "--compare",
        tires_run / "run0",
        tires_run / "run1",
        "--align",
        "depth",
        "--workers",
        1,
    )
    assert done.code == 0, done
    return [
        json.loads((tires_run / f"run{i}/evaluation.json").read_text()) for i in (0, 1)
    ], done.out


def test_grooves_of_labelled_captures_are_in_the_evaluation(compared):
    (content, _), out = compared
    row = content["rows"]["adapter, epoch 1"]
    grooves = content["grooves"]["adapter, epoch 1"]
    assert (
        len(grooves) >= 5
        and all(0 < g["depths"][0] < 15 and g["width_px"] >= 4 for g in grooves)
        and len({(g["key"], g["id"]) for g in grooves}) == len(grooves)
    )
    by_image = [
        [abs(g["depths"][1] - g["depths"][0]) for g in grooves if g["key"] == key]
        for key in dict.fromkeys(g["key"] for g in grooves)
    ]
    assert (
        row["groove_mae_mm"] == pytest.approx(np.mean([np.mean(off) for off in by_image]))
        and row["groove_found"] < 0.5
    )
    assert "grooves, all images together; limit 1.6 mm" in out and "groove_mae_mm" in out


def test_each_image_goes_once_through_each_network_and_its_truth_is_measured_once(
    compared, tires_run, tmp_path, monkeypatch
):
    from depthdist.evaluation import image_details
    from depthdist.models.depth_model import DepthModel

    seen = Counter()
    monkeypatch.setattr(
        image_details,
        "groove_depths",
        lambda *maps, real=image_details.groove_depths: seen.update(["grooves"]) or real(*maps),
    )
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, *_: seen.update([type(module)]) if type(module) is DepthModel else None
    )
    try:
        rows, _ = evaluate(
            Path(shutil.copytree(tires_run / "run0", tmp_path / "run")), "--align", "depth"
        )
    finally:
        hook.remove()
    assert rows == compared[0][0]["rows"] and len(rows) == 5
    assert seen == {DepthModel: 2 * 3, "grooves": 3}, "3 images, untrained and trained"


def test_every_mean_has_its_interval_and_each_images_value(compared):
    (content, _), _ = compared
    for row, means in content["rows"].items():
        values = content["images"][row]["values"]
        assert len(content["images"][row]["keys"]) == 3 == means["images"] and set(values) == set(
            means
        ) - {"images", "damaged"}
        for name, of_images in values.items():
            known = [v for v in of_images if v is not None]
            low, high = content["intervals"][row][name]
            assert means[name] == pytest.approx(np.mean(known)) if known else means[name] is None
            assert (low is None) == (len(known) < 3) and (
                low is None or min(known) - 1e-9 <= low <= high <= max(known) + 1e-9
            ), name
    assert (
        content["data_sha256"]
        and content["git"] is not None
        and content["versions"]["torch"] == torch.__version__
        and content["device"]
    )


def test_alignments_are_labelled_and_never_marked_best(compared):
    (content, _), out = compared
    assert list(content["rows"])[-2:] == ["adapter, epoch 1", "adapter, epoch 1, depth-aligned"]
    assert all("*" not in line for line in out.splitlines() if "-aligned  " in line)
    assert not {"loss", "l1"} & content["rows"]["adapter, epoch 1, depth-aligned"].keys(), (
        "a loss is of the prediction as it is"
    )
    plain, aligned = (
        content["rows"][f"adapter, epoch 1{way}"]["rmse_mm"] for way in ("", ", depth-aligned")
    )
    assert aligned < plain


def test_the_comparison_is_of_the_same_images_and_says_how_sure(compared):
    contents, out = compared
    a, b = (np.array(c["images"]["adapter, epoch 1"]["values"]["rmse_mm"]) for c in contents)
    (line,) = [
        line
        for line in out.split("images that both were measured on")[1].splitlines()
        if line.startswith("rmse_mm ")
    ]
    assert (
        float(line.split()[3]) == pytest.approx((a - b).mean(), abs=0.006)
        and 0.25 <= float(line.split()[7]) <= 1
    ), "3 images: 8 sign flips"
    assert line.endswith("no difference shown")


def test_runs_of_different_data_are_not_compared(compared, tires_run, run):
    (line,) = command(
        "launch/evaluate.py", "--compare", tires_run / "run0", run, "--no-details"
    ).errors
    assert "learned from different data" in line and "--data" in line


def test_wrong_settings_are_all_named_at_once(run):
    errors = command(
        "launch/evaluate.py",
        "--run",
        run,
        "--align",
        "shift",
        "--bins-mm",
        "500,100",
        "--tread-limit",
        0,
    ).errors
    assert [e.split(" is ")[0] for e in errors] == ["--align", "--bins-mm", "--tread-limit"]
    (line,) = command("launch/evaluate.py", "--run", run, "--compare", run, run).errors
    assert "expected one of them" in line


def test_the_report_shows_the_grooves(compared, tires_run):
    done = command(
        "tools/report.py",
        "run",
        tires_run / "run0",
        tires_run / "run1",
        "--out",
        tires_run / "both.html",
    )
    assert done.code == 0, done
    page, v = (tires_run / "both.html").read_text(), compared[0][1]["grooves"]["adapter, epoch 1"]
    off = [g["depths"][1] - g["depths"][0] for g in v]
    assert (
        "<td>run1: adapter, epoch"
        f" 1</td><td>{len(off)}</td><td>{np.mean(off):.2f}</td><td>{np.mean(np.abs(off)):.2f}</td>"
        in page
    )
    assert "through the tread that shows most grooves" in page


# -------------------------------------------------------------------------------------------- finer


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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--refine", "tiles"], "--raw is missing"),
        (["--refine", "plain", "--raw", "."], "--refine is 'plain': expected one of guided, tiles"),
        (["--refine", "tiles", "--raw", "no-such-folder"], "--raw no-such-folder: no such folder"),
        (["--refine", "tiles", "--raw", "tests"], "--raw tests: it has no images/"),
    ],
)
def test_detail_without_its_pictures_is_one_line(run, words, said):
    (line,) = command("launch/evaluate.py", "--run", run, "--no-details", *words).errors
    assert said in line
