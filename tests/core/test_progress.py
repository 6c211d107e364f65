"""Long work shows how far it is, on the first rank alone."""

import numpy as np
import pytest

from depthdist.captures.layouts import search_folder
from depthdist.core import progress
from depthdist.core.progress import with_progress


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(progress, "DELAY_S", -1)


def captures(folder):
    from PIL import Image

    for name in ("images", "depth"):
        (folder / name).mkdir(parents=True)
    Image.fromarray(np.zeros((3, 4, 3), np.uint8)).save(folder / "images/a.png")
    np.save(folder / "depth/a.npy", np.ones((3, 4, 3), np.float32))
    return folder


def test_items_come_through_and_quick_work_shows_nothing(capsys):
    assert list(with_progress(range(3), "counting", "numbers")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_long_work_says_what_it_is_and_how_much_is_done(capsys, at_once):
    assert list(with_progress([7, 8], "counting", "numbers")) == [7, 8]
    shown = capsys.readouterr().err
    assert "counting" in shown
    assert "0/2" in shown


def test_a_folder_that_is_listed_is_named(tmp_path, capsys, at_once, monkeypatch):
    folder = captures(tmp_path / "raw")
    assert len(search_folder(folder).pairs) == 1
    shown = capsys.readouterr().err
    assert f"listing {folder}" in shown
    assert "telling files apart" in shown
    monkeypatch.setenv("RANK", "3")  # rank 0 shows it
    assert len(search_folder(folder).pairs) == 1
    assert capsys.readouterr().err == ""
