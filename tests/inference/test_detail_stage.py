"""The detail stage of a run, as the commands and Python use it."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from helpers.captures import ROOT, capture
from helpers.commands import ON_CPU, command
from helpers.detail_stages import refined_by_hand, write_stage
from PIL import Image

import depthdist
from depthdist.models.stage_files import find_stage

SIZE = (60, 90)
RGB = capture(seed=5, size=SIZE)[0]


@pytest.fixture(scope="module")
def refined_run(run, tmp_path_factory):
    """A copy of the run with a detail stage."""
    folder = tmp_path_factory.mktemp("detail") / "mine"
    shutil.copytree(run / "best", folder / "best")
    write_stage(folder, SIZE)
    return folder


@pytest.fixture
def predict_by(tmp_path):
    """The depth that the command writes for RGB with a run, and what it printed."""
    Image.fromarray(RGB).save(tmp_path / "a.png")

    def predict(run, *words):
        out = tmp_path / "out"
        where = ["--run", run, "--out", out, "--save", "npy", "--again"]
        done = command("launch/predict.py", tmp_path / "a.png", *where, *words)
        assert done.code == 0, done
        return np.load(out / "a_depth.npy"), done.out

    return predict


def test_predict_refines_by_the_stage_where_a_run_has_one(refined_run, predict_by):
    by_hand = refined_by_hand(refined_run, RGB)
    plain, said = predict_by(refined_run, "--refine", "plain")
    assert np.abs(by_hand - plain).std() > 1, "nothing to see"
    assert "detail (" not in said
    for where in (refined_run, refined_run / "best"):
        depth_mm, said = predict_by(where)
        assert np.abs(depth_mm - by_hand).max() < 0.01
        assert f"refine       detail ({refined_run}/detail/best)" in said
    depth_mm, _ = predict_by(refined_run, "--refine", "detail")
    assert np.abs(depth_mm - by_hand).max() < 0.01


def test_a_stage_that_has_learned_nothing_is_plain(run, predict_by, tmp_path):
    shutil.copytree(run / "best", tmp_path / "new/best")
    write_stage(tmp_path / "new", SIZE, gain=0.0)
    plain, _ = predict_by(run)
    depth_mm, _ = predict_by(tmp_path / "new")
    record = depthdist.load(run, device="cpu").record
    scale = 1 / (1 / record.near_mm - 1 / record.far_mm)  # of 1 / mm to normalized
    assert np.abs(scale / depth_mm - scale / plain).max() < 1e-5


def test_python_and_an_exported_folder_use_it_too(refined_run, tmp_path):
    by_hand = refined_by_hand(refined_run, RGB)
    exported = shutil.copytree(refined_run / "best", tmp_path / "exported")
    shutil.copytree(refined_run / "detail/best", exported, dirs_exist_ok=True)
    for where in (refined_run, exported):
        model = depthdist.load(where, device="cpu")
        assert model.refine == "detail"
        assert np.abs(model.predict(RGB).depth_mm - by_hand).max() < 0.01
    assert depthdist.load(refined_run, refine="plain", device="cpu").refine == "plain"


def test_a_stage_is_found_from_inside_the_adapters_folder(refined_run, monkeypatch):
    monkeypatch.chdir(refined_run / "best")
    adapter, stage = find_stage(Path("."), "detail")
    assert adapter == refined_run / "best"
    assert stage == refined_run / "detail/best"


def test_a_stage_of_another_adapter_is_refused_in_one_line(refined_run, tmp_path):
    other = shutil.copytree(refined_run, tmp_path / "other")
    record = json.loads((other / "detail/best/detail.json").read_text())
    record["adapter"] = "0" * 64
    (other / "detail/best/detail.json").write_text(json.dumps(record))
    Image.fromarray(RGB).save(tmp_path / "a.png")
    words = [tmp_path / "a.png", "--run", other, "--out", tmp_path / "out"]
    for more in ([], ["--refine", "detail"]):
        (line,) = command("launch/predict.py", *words, *more).errors
        assert "was trained on another adapter" in line
        assert "--refine plain" in line
    assert command("launch/predict.py", *words, "--refine", "plain").code == 0
    (line,) = command("launch/serve.py", other).errors
    assert "was trained on another adapter" in line
    with pytest.raises(ValueError, match="or use refine plain"):
        depthdist.load(other, device="cpu")


def test_detail_without_a_stage_is_refused_in_one_line(run, tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    words = [tmp_path / "a.png", "--run", run, "--out", tmp_path / "out", "--refine", "detail"]
    (line,) = command("launch/predict.py", *words).errors
    assert line.startswith(f"{run}/detail/best: no detail stage here")


def test_predictions_of_another_stage_are_not_taken_for_done(refined_run, tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    words = [tmp_path / "a.png", "--out", tmp_path / "out", "--save", "npy"]
    for said in ("1 of 1 images: depth in mm", "1 of 1 images are done"):
        assert said in command("launch/predict.py", *words, "--run", refined_run).out
    retrained = shutil.copytree(refined_run, tmp_path / "retrained")
    write_stage(retrained, SIZE, seed=1)
    (line,) = command("launch/predict.py", *words, "--run", retrained).errors
    assert "holds predictions of" in line


def test_an_image_of_another_width_is_refined_and_said(refined_run, tmp_path):
    wide = np.array(Image.fromarray(RGB).resize((126, 84)))
    model = depthdist.load(refined_run, device="cpu")
    with pytest.warns(UserWarning, match=r"84x126 has another width than .* \(60x90\)"):
        depth_mm = model.predict(wide).depth_mm
    assert np.abs(depth_mm - refined_by_hand(refined_run, wide)).max() < 0.01
    Image.fromarray(wide).save(tmp_path / "a.png")
    words = [tmp_path / "a.png", "--run", refined_run, "--out", tmp_path / "out", "--save", "npy"]
    assert "1 images, such as a of 84x126 has another" in command("launch/predict.py", *words).out


def test_images_of_shards_at_the_networks_size_stay_plain(refined_run, run, tmp_path):
    shards = run.parents[1] / "shards"
    words = ["--save", "npy", "--out", tmp_path / "out", "--run"]
    done = command("launch/predict.py", shards, *words, refined_run)
    assert done.code == 0
    assert "6 images, such as" in done.out and "are not refined" in done.out
    again = ["--again", "--refine", "plain"]
    depths = {p: np.load(p) for p in (tmp_path / "out").glob("*.npy")}
    assert command("launch/predict.py", shards, *words, refined_run, *again).code == 0
    assert all(np.array_equal(np.load(path), depth_mm) for path, depth_mm in depths.items())


def test_the_page_refines_too(refined_run, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-u", "launch/serve.py", str(refined_run), "--port", "0"],
        cwd=ROOT,
        env={**os.environ, **ON_CPU},
        stdout=subprocess.PIPE,
        text=True,
    )
    started = []
    try:
        for line in process.stdout:
            started.append(line)
            if line.startswith("open"):
                break
        url = started[-1].split()[1]
        file = io.BytesIO()
        Image.fromarray(RGB).save(file, "PNG")
        with urllib.request.urlopen(f"{url}/depth?name=a.png", file.getvalue(), 60) as answer:
            number = json.load(answer)["id"]
        with urllib.request.urlopen(f"{url}/depth/{number}.npy", timeout=60) as answer:
            depth_mm = np.load(io.BytesIO(answer.read()))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)
    assert f"refine       detail ({refined_run}/detail/best)\n" in started
    assert np.abs(depth_mm - refined_by_hand(refined_run, RGB)).max() < 0.01
