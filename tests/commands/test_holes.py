"""depthdist holes: filling measured by hidden pixels and exact depth, and what its report shows."""

import json
import shutil

import numpy as np
import pytest
from helpers.captures import write_capture
from helpers.commands import command
from helpers.completion_stages import write_completion
from helpers.html_pages import read
from helpers.runs import make_model, make_shards, train
from PIL import Image

from depthdist.synthetic import command as synthetic


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An evaluated run with a completion stage of random weights."""
    folder = tmp_path_factory.mktemp("holes")
    words = ["--epochs", 1, "--model", make_model(folder / "dav2")]
    assert train(make_shards(folder, 4), folder / "run", *words).code == 0
    assert command("launch/evaluate.py", "--run", folder / "run").code == 0
    write_completion(folder / "run", (30, 40), gain=0.05)
    return folder / "run"


def holes(run, captures, *words):
    return command("depthdist/__main__.py", "holes", "--run", run, "--captures", captures, *words)


@pytest.fixture(scope="module")
def rendered(run, tmp_path_factory):
    """What the command writes and prints of two rendered captures."""
    raw = tmp_path_factory.mktemp("rendered") / "raw"
    synthetic.main([str(raw), "--pairs", "2", "--size", "360x584", "--workers", "1"])
    done = holes(run, raw)
    assert done.code == 0, done
    return raw, json.loads((run / "holes.json").read_text()), done.out


def test_natural_holes_are_measured_against_exact_depth(rendered):
    raw, content, _ = rendered
    by_way = content["rows"]["natural"]
    ways = {"prediction", "harmonic", "prediction moved", "small holes alone", "completion stage"}
    assert ways <= by_way.keys()
    num_holes = 0
    for path in sorted((raw / "truth").glob("*.npz")):
        exact = np.load(path)["z"]
        stem = path.name.removesuffix("_truth.npz")
        z = np.load(raw / f"depth/{stem}_rawDepth.npy")[..., 2]
        num_holes += (~np.isfinite(z) & np.isfinite(exact) & (exact > 0)).sum()
    for way in by_way.values():
        assert way["all"]["pixels"] == num_holes
    assert by_way["small holes alone"]["all"]["filled"] < 1
    assert by_way["prediction moved"]["all"]["filled"] == 1
    assert by_way["harmonic"]["all"]["mae_mm"] < by_way["prediction"]["all"]["mae_mm"]


def test_punched_holes_are_measured_and_the_same_again(rendered, run, tmp_path):
    raw, content, _ = rendered
    assert content["rows"]["punched"]["completion stage"]["all"]["pixels"] > 1000
    done = holes(run, raw, "--out", tmp_path / "again.json")
    again = json.loads((tmp_path / "again.json").read_text())
    assert done.code == 0 and again["rows"] == content["rows"]
    assert holes(run, raw, "--seed", 1, "--out", tmp_path / "other.json").code == 0
    other = json.loads((tmp_path / "other.json").read_text())
    assert other["rows"]["natural"] == content["rows"]["natural"]
    assert other["rows"]["punched"] != content["rows"]["punched"]


def test_sigma_is_judged_and_the_goals_are_printed(rendered):
    _, content, out = rendered
    for sigma in content["sigma"].values():
        assert 0 <= sigma["inside_1_sigma"] <= sigma["inside_2_sigma"] <= 1
        assert len(sigma["by_depth"]) == 4 and sigma["pixels"] > 1000
        curve = sigma["curves_mm"]
        assert curve["best"][10] <= min(curve["completion"][10], curve["mirror"][10])
        assert curve["best"][0] == pytest.approx(sigma["mae_mm"])
    lines = out.split("goals\n")[1].splitlines()[: len(content["goals"])]
    assert len(content["goals"]) == 5
    for line, goal in zip(lines, content["goals"]):
        assert line.startswith("passed" if goal["passed"] else "missed") and goal["text"] in line


def test_its_figures_show_something(rendered, run):
    for name in ("holes.png", "holes_sigma_natural.png", "holes_sigma_punched.png"):
        with Image.open(run / name) as image:
            assert np.asarray(image).std() > 0


def test_the_report_has_it_until_the_weights_change(rendered, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    words = ["depthdist/__main__.py", "report", "run", copy]
    assert command(*words).code == 0
    page = read(copy / "report.html")
    assert "natural holes" in page and "AUSE" in page
    write_completion(copy, (30, 40), gain=0.1)
    assert command(*words).code == 0
    page = read(copy / "report.html")
    assert "holes.json is of other weights than the run's now" in page


def test_captures_of_any_camera_have_punched_holes_alone(run, tmp_path):
    for number in range(2):
        write_capture(tmp_path / f"raw/{number}.png", tmp_path / f"raw/{number}.npy", number)
    done = holes(run, tmp_path / "raw", "--out", tmp_path / "found.json")
    assert done.code == 0, done
    assert list(json.loads((tmp_path / "found.json").read_text())["rows"]) == ["punched"]


def test_a_run_without_the_stage_says_so_and_has_no_goals(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(copy / "completion")
    write_capture(tmp_path / "raw/a.png", tmp_path / "raw/a.npy", 0)
    done = holes(copy, tmp_path / "raw")
    assert done.code == 0 and "has no completion stage" in done.out, done
    content = json.loads((copy / "holes.json").read_text())
    assert content["goals"] == [] and "completion stage" not in content["rows"]["punched"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--captures", "nowhere"], "--captures nowhere: no such folder"),
        (["--out", "x.txt"], "--out x.txt: expected a file NAME.json in a folder that exists"),
        (["--seed", -1], "--seed is -1: expected 0 .. 2**63 - 1"),
    ],
)
def test_what_cannot_be_is_one_line(run, tmp_path, words, said):
    done = holes(run, tmp_path, *words)
    assert done.code == 2 and said in done.err and "Traceback" not in done.err, done
