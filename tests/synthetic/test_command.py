"""The command that writes captures of tires: the same bytes each time, in the real layout."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.captures import ROOT
from PIL import Image

from tools import make_tires

SMALL = ["--pairs", "4", "--size", "48x78", "--seed", "1"]


def digests(out: Path) -> dict[str, str]:
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(out.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("tires") / "new"
    make_tires.main([str(out), *SMALL, "--workers", "1", "--sheet"])
    return out


def test_bytes_do_not_depend_on_the_number_of_workers(made, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    make_tires.main([str(tmp_path / "two"), *SMALL, "--workers", "2", "--sheet"])
    assert digests(tmp_path / "two") == digests(made)
    assert len(digests(made)) == 4 * 4 + 2


@pytest.mark.parametrize("which", [0, 5, 11])
def test_a_second_run_makes_only_what_is_missing_and_the_same(made, which, capsys):
    before = digests(made)
    removed = made / [name for name in before if "/" in name][which]
    times = {p: p.stat().st_mtime_ns for p in made.rglob("*_rawDepth.npy")}
    removed.unlink()
    make_tires.main([str(made), *SMALL, "--workers", "1"])
    assert "1 made" in capsys.readouterr().out
    assert digests(made) == before
    assert sum(p.stat().st_mtime_ns != times[p] for p in times) == 1


def test_files_stand_in_the_real_layout(made):
    stem = "21-12-03-18-50-31_Zivid_acquisition"
    xyz = np.load(made / "depth" / f"{stem}_rawDepth.npy")
    rgb = np.asarray(Image.open(made / "images" / f"{stem}_color.png"))
    assert xyz.shape == rgb.shape == (48, 78, 3)
    assert xyz.dtype == np.float32
    assert np.isnan(xyz).any()
    truth = np.load(made / "truth" / f"{stem}_truth.npz", allow_pickle=False)
    assert truth["z"].shape == truth["tire"].shape == truth["groove"].shape == (48, 78)
    assert truth["groove"].dtype == np.uint16
    assert truth["tire"].dtype == np.uint8
    assert truth["K"].shape == (3, 3)
    assert truth["painted"].shape == (48, 78)
    assert truth["painted"].dtype == np.uint16
    columns = ("id", "tire", "depth_mm", "width_mm", "kind")
    for table in ("groove", "painted"):
        assert len({len(truth[f"{table}_{name}"]) for name in columns}) == 1


def test_other_settings_in_the_same_folder_are_refused_with_the_way_out(made):
    with pytest.raises(ValueError, match=r"seed 1 there, 2 asked for.*another folder"):
        make_tires.main([str(made), "--pairs", "4", "--size", "48x78", "--seed", "2"])
    assert json.loads((made / "tires.json").read_text())["settings"]["seed"] == 1


def test_captures_of_an_earlier_version_are_not_mixed_with_new_ones(tmp_path):
    old = {"pairs": 4, "size": [48, 78], "seed": 1, "faults": True}
    (tmp_path / "tires.json").write_text(json.dumps({"settings": old}))
    with pytest.raises(ValueError, match=r"earlier version.*another folder"):
        make_tires.main([str(tmp_path), *SMALL])
    assert [p.name for p in tmp_path.iterdir()] == ["tires.json"]


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"no tires\.json"):
        make_tires.main([str(tmp_path), *SMALL])
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_wrong_settings_are_all_named_at_once():
    with pytest.raises(ValueError) as caught:
        make_tires.main(
            ["somewhere", "--pairs", "0", "--size", "4x4", "--workers", "-1", "--groove-depth", "2"]
        )
    for flag in ("--pairs", "--size", "--workers", "--groove-depth"):
        assert flag in str(caught.value)
