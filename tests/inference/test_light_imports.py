"""launch/predict.py, export.py and serve.py import only the modules that their task needs."""

import os
import subprocess
import sys

import pytest
from helpers.captures import ROOT
from helpers.commands import ON_CPU
from PIL import Image

HEAVY = {
    "aiohttp",
    "deepspeed",
    "huggingface_hub",
    "matplotlib",
    "numba",
    "peft",
    "scipy",
    "torch",
    "tqdm",
    "transformers",
}
RUN = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("modules", *sys.modules)
"""


def run_script(*words):
    """Exit code, standard error and the names of all imported modules of a command."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, **ON_CPU, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    modules = done.stdout.splitlines()[-1].split()
    assert modules[0] == "modules", done
    return done.returncode, done.stderr, set(modules)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["launch/predict.py", "depthdist/inference/probe.png", "--run", "a b"], "--run a b: no"),
        (["launch/predict.py", "no-such.png", "--run", "a b"], "no such file or folder"),
        (["launch/export.py", "a b", "no-such-folder", "--forms", "model"], "--run a b: no"),
        (["launch/serve.py", "a b"], "--run a b: no"),
    ],
)
def test_missing_runs_and_images_are_answered_without_heavy_modules(words, text):
    code, stderr, modules = run_script(*words)
    assert code == 2, stderr
    assert text in stderr
    assert not HEAVY & modules


@pytest.fixture(scope="module")
def modules_of_a_prediction(run, tmp_path_factory):
    """All modules that predicting one image with a whole model imports."""
    folder = tmp_path_factory.mktemp("light")
    Image.new("RGB", (40, 30)).save(folder / "a.png")
    paths = [folder / "a.png", "--run", run.parents[1] / "dav2", "--out", folder / "out"]
    words = ["--near-mm", 300, "--far-mm", 4000, "--size", "28x42", "--save", "npy,png"]
    code, stderr, modules = run_script("launch/predict.py", *paths, *words)
    assert code == 0, stderr
    assert (folder / "out/a_depth.npy").exists()
    return modules


@pytest.mark.parametrize(
    "name", ["depthdist.synthetic", "depthdist.data", "depthdist.shards", "matplotlib", "skimage"]
)
def test_a_prediction_imports_neither_renderer_nor_plots_nor_data(modules_of_a_prediction, name):
    assert "torch" in modules_of_a_prediction
    assert name not in modules_of_a_prediction


def test_a_prediction_compiles_nothing(modules_of_a_prediction):
    assert "numba" not in modules_of_a_prediction
