"""Several runs on one page, and compared: each under its own name, and no row passed off as another run's."""

import json
import shutil
from pathlib import Path

import pytest
from ranks import command
from test_report import read, run  # noqa: F401


@pytest.fixture
def namesakes(run, tmp_path):
    """Two copies of a run, in folders of one name."""
    return [Path(shutil.copytree(run, tmp_path / day / "first")) for day in ("monday", "tuesday")]


def test_runs_of_one_name_are_told_apart_on_a_page(namesakes, run, tmp_path):
    done = command("tools/report.py", "run", *namesakes, run, "--out", tmp_path / "page.html")
    assert done.code == 0, done
    text = read(tmp_path / "page.html")
    for name in ("monday/first", "tuesday/first", "run"):
        assert f" {name}: adapter, epoch 2" in text
    assert "Depth: monday/first, tuesday/first, run" in text
    assert "A monday/first: adapter, epoch 2 B tuesday/first: adapter, epoch 2" in text and "A monday/first: adapter, epoch 2 B run: adapter, epoch 2" in text


def test_runs_of_one_name_are_told_apart_when_compared(namesakes, monkeypatch):
    monkeypatch.chdir(namesakes[0])
    done = command("launch/evaluate.py", "--compare", ".", namesakes[1], "--no-details")
    assert done.code == 0, done
    assert "A monday/first: adapter, epoch 2\nB tuesday/first: adapter, epoch 2\n" in done.out
    assert [line for line in done.out.splitlines() if line in ("A  monday/first", "B  tuesday/first")] == ["A  monday/first", "B  tuesday/first"], "each table's run"


def test_fixed_rows_that_differ_stand_each_under_its_runs(run, tmp_path):
    """`other` learned from data of another mean and other bounds: its constant and its untrained rows are not those of the first run."""
    same, other = (Path(shutil.copytree(run, tmp_path / name)) for name in ("same", "other"))
    for path, change in ((other / "best/depthdist.json", {"far_mm": 1500.0}), (other / "run.json", {"derived": {**json.loads((other / "run.json").read_text())["derived"], "mean_mm": 1100.0}})):
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert command("launch/evaluate.py", "--run", other, "--workers", 1).code == 0
    assert command("tools/report.py", "run", run, same, other, "--out", tmp_path / "page.html").code == 0
    text, rows, others = read(tmp_path / "page.html"), *(json.loads((folder / "evaluation.json").read_text())["rows"] for folder in (run, other))
    for mine, theirs in zip(list(rows)[:3], list(others)[:3]):
        assert f"run, same: {mine} " in text and f"other: {theirs} " in text and rows[mine]["rmse_mm"] != others[theirs]["rmse_mm"]
        assert f"{rows[mine]['rmse_mm']:.2f}" in text and f"{others[theirs]['rmse_mm']:.2f}" in text
    assert command("tools/report.py", "run", run, same, "--out", tmp_path / "page.html").code == 0
    assert "run, same:" not in read(tmp_path / "page.html"), "what all share needs no name"
