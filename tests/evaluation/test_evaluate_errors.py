"""What depthdist evaluate says of wrong input: one clear line a problem."""

import shutil
import subprocess
import sys

import pytest
from helpers.captures import ROOT
from helpers.commands import command
from helpers.runs import make_shards


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


def test_a_wrong_second_run_is_found_before_the_first_is_scored(run, monkeypatch):
    def scored(*given, **named):
        raise AssertionError("the first run was scored")

    monkeypatch.setattr("depthdist.evaluation.evaluate.evaluate_run", scored)
    (line,) = command("launch/evaluate.py", "--compare", run, "no-such-run").errors
    assert "no-such-run" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--refine", "tiles"], "or give --raw DIR, the folder of captures"),
        (
            ["--refine", "finer"],
            "--refine is 'finer': expected one of plain, guided,",
        ),
        (["--refine", "tiles", "--raw", "no-such-folder"], "--raw no-such-folder: no such folder"),
        (["--refine", "tiles", "--raw", "tests"], "--raw tests: it has no images/"),
    ],
)
def test_detail_without_its_pictures_is_one_line(run, words, said):
    (line,) = command("launch/evaluate.py", "--run", run, "--no-details", *words).errors
    assert said in line


@pytest.mark.parametrize("words", [["--help"], ["--run", "no-such-folder"], ["--workers", "-1"]])
def test_help_and_wrong_settings_wait_for_no_heavy_import(words):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "launch/evaluate.py", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == (0 if words == ["--help"] else 2)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    heavy = [
        "torch",
        "transformers",
        "peft",
        "safetensors",
        "scipy",
        "matplotlib",
        "skimage",
        "tqdm",
        "numba",
        "numpy",
    ]
    assert "depthdist.evaluation.command" in imported
    assert not imported.intersection(heavy)
