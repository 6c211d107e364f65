"""Details, intervals and the comparison of two runs, on built-in captures with labelled grooves."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import command, one_core
from helpers.evaluation import evaluate
from helpers.runs import train


@pytest.fixture(scope="module")
def tires_run(tmp_path_factory):
    """A run on built-in captures, whose grooves are labelled: 2 to train, 3 to score, and a second
    with another seed."""
    folder = tmp_path_factory.mktemp("tires")
    with one_core():
        for words in (
            ["tools/make_tires.py", folder / "raw", "--pairs", 5, "--size", "420x680"],
            ["tools/shard.py", folder / "raw", folder / "data", "--size", "28x42", "--val", 0.6],
        ):
            done = command(*words)
            assert done.code == 0, done
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
    (known,) = [
        line for line in out.splitlines() if line.startswith("knows where, says the mean  ")
    ][:1]
    assert known.split()[5] == f"{len(grooves)}"


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


def test_the_report_shows_the_grooves_of_older_evaluations_too(compared, tires_run):
    for i in (0, 1):  # from before the decision was balanced
        path = tires_run / f"run{i}/evaluation.json"
        path.write_text(path.read_text().replace("groove_balanced_decision", "groove_decision"))
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
    true = np.array([g["depths"][0] for g in v])
    slope = np.polyfit(true, true + off, 1)[0]
    assert f"<td>{slope:.2f}</td>" in page
    assert f"<td>run1: knows where, says the mean</td><td>{len(off)}</td>" in page
