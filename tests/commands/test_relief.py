"""depthdist relief: grooves, painted treads and goals of a run on captures whose depth is known."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from helpers.commands import command
from helpers.drawn_treads import write_treads
from helpers.html_pages import read
from helpers.runs import make_model, make_shards, train
from PIL import Image

from depthdist.evaluation.relief.study import GOALS
from depthdist.synthetic import command as synthetic


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on captures that show no grooves; its model differs from pixel to pixel."""
    folder = tmp_path_factory.mktemp("relief")
    data = make_shards(folder, 4)
    words = ["--epochs", 1, "--model", make_model(folder / "dav2")]
    assert train(data, folder / "run", *words).code == 0
    return folder / "run"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Two drawn treads, and the same with half the depth."""
    folder = tmp_path_factory.mktemp("treads")
    return write_treads(folder / "whole"), write_treads(folder / "half", 0.5)


@pytest.fixture(scope="module")
def judged(run, drawn):
    """What the command writes and prints with --half, for a refinement that every run has."""
    words = ["--captures", drawn[0], "--half", drawn[1], "--refine", "guided", "--workers", 1]
    done = command("depthdist/__main__.py", "relief", "--run", run, *words)
    assert done.code == 0, done
    return json.loads((run / "relief.json").read_text()), done.out


def test_every_row_has_its_figures_and_the_camera_is_right(judged):
    rows = judged[0]["rows"]
    assert list(rows) == ["plain", "guided", "camera", "says_mean"]
    assert {row["grooves"] for row in rows.values()} == {5}
    assert rows["camera"]["mae_mm"] < 0.1 and rows["camera"]["slope"] == pytest.approx(1, abs=0.05)
    assert rows["camera"]["painted"] == 1 and rows["camera"]["painted_mm"] < 0.1
    # others' mean: (6 + 3) / 2 for 8, 1.5, 4 and (8 + 1.5 + 4) / 3 for 6, 3
    assert rows["says_mean"]["mae_mm"] == pytest.approx((3.5 + 3 + 0.5 + 1.5 + 1.5) / 5, abs=0.02)
    assert rows["plain"]["seconds"] > 0 and rows["guided"]["seconds"] > 0


def test_half_the_depth_is_seen_by_the_camera(judged):
    camera = judged[0]["half"]["rows"]["camera"]
    assert camera["true_ratio"] == pytest.approx(0.5, abs=0.01)
    assert camera["follows"] == pytest.approx(1, abs=0.05)
    assert judged[0]["half"]["settings"]["groove_depth"] == 0.5


def test_it_ends_with_the_goals_and_both_figures(judged):
    content, out = judged
    assert [goal["name"] for goal in content["goals"]] == [goal.name for goal in GOALS]
    lines = out.split("goals of guided\n")[1].splitlines()[: len(GOALS)]
    words = {True: "passed ", False: "missed ", None: "not judged "}  # no edge is 16 mm high
    for line, goal in zip(lines, content["goals"]):
        assert line.startswith(words[goal["passed"]]), (line, goal)
    assert f"groove MAE, mm: {content['rows']['guided']['mae_mm']:.2f}, at most " in lines[0]
    assert f"(0.5 x plain's {content['rows']['plain']['mae_mm']:.2f})" in lines[0]


def test_the_file_names_no_place_on_this_machine(judged, run):
    text = (run / "relief.json").read_text()
    assert str(run.parent) not in text and "/tmp" not in text
    assert list(judged[0]["model"]) == ["best/adapter_model.safetensors"]


def test_an_image_is_beside_it(judged, run):
    with Image.open(run / "relief.png") as image:
        assert np.asarray(image).std() > 0


def test_rendered_captures_are_measured_and_a_run_without_detail_says_so(run, tmp_path):
    raw = tmp_path / "raw"
    synthetic.main([str(raw), "--pairs", "2", "--size", "360x584", "--workers", "1"])
    out = tmp_path / "found.json"
    done = command(
        "depthdist/__main__.py",
        "relief",
        "--run",
        run,
        "--captures",
        raw,
        "--out",
        out,
        "--workers",
        2,
    )
    assert done.code == 0, done
    assert [line for line in done.out.splitlines() if "detail" in line] == [
        f"{run} has no detail stage (detail/best): plain and what it is compared with are measured,"
        " and no goals"
    ]
    content = json.loads(out.read_text())
    assert content["captures"]["images"] == 2 and content["captures"]["settings"]["seed"] == 0
    assert content["rows"]["plain"]["grooves"] >= 2 and content["goals"] == []
    assert content["rows"]["camera"]["mae_mm"] < 0.3
    assert (tmp_path / "found.png").exists()


def test_captures_that_the_run_learned_from_are_a_warning(run, drawn, tmp_path):
    raw = shutil.copytree(drawn[0], tmp_path / "raw")
    known = set(np.load(run / "seen.npy")["hashes"][:, 0].tolist())
    path = raw / "images/a_color.png"
    mine = int(hashlib.sha256(path.read_bytes()).hexdigest()[:16], 16)
    assert mine not in known
    other = shutil.copytree(run, tmp_path / "run")
    seen = np.load(other / "seen.npy")
    seen["hashes"][~seen["validation"]] = mine
    np.save(other / "seen.npy", seen)
    done = command(
        "depthdist/__main__.py", "relief", "--run", other, "--captures", raw, "--workers", 1
    )
    assert "WARNING   the run learned from 1 of these 2 captures, such as a_color.png" in done.out
    assert json.loads((other / "relief.json").read_text())["captures"]["trained_on"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--captures is missing"),
        (["--captures", "nowhere"], "--captures nowhere: no such folder"),
        (["--captures", "tests"], "no captures with their truth"),
        (
            ["--captures", "tests", "--refine", "guide"],
            "--refine is 'guide': expected one of",
        ),
        (["--captures", "tests", "--out", "found.txt"], "expected a file NAME.json"),
        (["--captures", "tests", "--workers", -1], "--workers is -1: expected >= 0"),
    ],
)
def test_what_is_wrong_is_one_clear_line(run, words, message):
    (line,) = command("depthdist/__main__.py", "relief", "--run", run, *words).errors
    assert message in line


def test_the_report_says_how_much_of_the_relief_is_true(judged, run, tmp_path):
    assert command("launch/evaluate.py", "--run", run, "--workers", 1, "--no-details").code == 0
    page = tmp_path / "page.html"
    assert command("tools/report.py", "run", run, "--out", page).code == 0
    text = read(page)
    guided = judged[0]["rows"]["guided"]
    assert f"guided 5 {guided['mae_mm']:.2f} {guided['bias_mm']:.2f}" in text
    assert "A tread that is painted on without relief may be drawn, too: here" in text
    assert "relief that guided draws follows" in text or "guided draws hardly any relief" in text
    other = shutil.copytree(run, tmp_path / "other")
    content = json.loads((other / "relief.json").read_text())
    content["model"]["best/adapter_model.safetensors"] = "0" * 64
    (other / "relief.json").write_text(json.dumps(content))
    assert command("tools/report.py", "run", other, "--out", page).code == 0
    text = read(page)
    assert "relief.json is of other weights than the run's now" in text
    assert "may be drawn, too" not in text
