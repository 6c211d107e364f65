"""Several runs on one page, and compared: each under its own name, and no row passed off as another run's."""

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
