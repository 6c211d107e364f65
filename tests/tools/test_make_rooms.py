"""The command that writes rooms: the same bytes each time, nothing depends on the workers."""

import hashlib
import json
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from helpers.captures import ROOT
from PIL import Image

from depthdist.captures.layouts import find_pairs
from depthdist.core.settings import Size
from depthdist.synthetic.rooms import render as rooms
from tools import make_rooms

SMALL = ["--scenes", "6", "--size", "28x42", "--seed", "2"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("rooms") / "new"
    make_rooms.main([str(out), *SMALL, "--workers", "1"])
    return out


def digests(out):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(out.iterdir())}


def test_bytes_do_not_depend_on_the_number_of_workers(made, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    make_rooms.main([str(tmp_path / "two"), *SMALL, "--workers", "2"])
    assert digests(tmp_path / "two") == digests(made)
    assert len(digests(made)) == 6 * 2 + 1


def test_the_files_are_pairs_that_sharding_finds_and_hold_what_was_rendered(made):
    assert len(find_pairs(str(made))[0]) == 6
    scene = rooms.render(rooms.Settings(6, Size(28, 42), 2), 4)
    assert (np.asarray(Image.open(made / f"{scene.stem}.png")) == scene.rgb).all()
    assert (np.load(made / f"{scene.stem}.npy") == scene.xyz).all()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_workers_end_with_a_killed_command(name, tmp_path):
    settings = ["--scenes", "5000", "--size", "28x42", "--workers", "2"]
    command = subprocess.Popen(
        [sys.executable, ROOT / "tools/make_rooms.py", tmp_path / "out", *settings]
    )
    while not list(tmp_path.glob("out/*.npy")):
        assert command.poll() is None
        time.sleep(0.02)
    workers = psutil.Process(command.pid).children(recursive=True)
    command.send_signal(signal.Signals[name])
    command.wait()
    assert len(workers) >= 2
    assert psutil.wait_procs(workers, timeout=10)[1] == []


def test_a_second_run_makes_what_is_missing_and_more_where_more_is_asked_for(made, capsys):
    before = digests(made)
    (made / "room-2-000003.npy").unlink()
    make_rooms.main([str(made), *SMALL, "--workers", "1"])
    assert "1 made" in capsys.readouterr().out
    assert digests(made) == before
    make_rooms.main([str(made), "--scenes", "7", *SMALL[2:], "--workers", "1"])
    after = digests(made)
    assert {name for name in before if before[name] != after[name]} == {"rooms.json"}
    assert json.loads((made / "rooms.json").read_text())["scenes"] == 7


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seed", "9"], "other settings"),
        (["--size", "42x42"], "other settings"),
        (["--scenes", "0"], "--scenes is 0"),
        (["--size", "8x8"], "--size is 8x8"),
    ],
)
def test_settings_that_cannot_work_are_refused(made, flags, message):
    with pytest.raises(ValueError, match=message):
        make_rooms.main([str(made), *SMALL, *flags])


@pytest.mark.parametrize("text", ["", "[1]", "7"])
def test_a_record_that_cannot_be_read_is_refused(tmp_path, text):
    (tmp_path / "rooms.json").write_text(text)
    with pytest.raises(ValueError, match=r"rooms\.json: not written by this command"):
        make_rooms.main([str(tmp_path), *SMALL])


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        make_rooms.main([str(tmp_path), *SMALL])
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
