"""Training from a folder of captures: shards in the cache, before the ranks meet."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.captures import write_capture, write_raw
from helpers.commands import Typed, command, on_srun
from helpers.depth_images import write_ultralytics
from helpers.runs import train

from depthdist.captures.read_options import NO_OPTIONS, ReadOptions
from depthdist.inference.image_sources import find_sources
from depthdist.runs.run_folder import read_options

SMALL = ["--size", "28x42", "--epochs", 1]
pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture(scope="module", autouse=True)
def typed(tmp_path_factory):
    """`depthdist train` on two ranks, and two of srun whose captures are none, meanwhile."""
    folder = tmp_path_factory.mktemp("typed")
    raw = write_raw(folder / "RAW", 5)
    words = ["--cache", folder / "cache", "--model", "tiny", *SMALL]
    words += ["--deepspeed", "ds_configs/fp32.json", "--pictures", 0]
    depthdist_train = [sys.executable, "-m", "depthdist", "train"]
    good = Typed(*depthdist_train, raw, "--gpus", 2, *words, "--run", folder / "run")
    bad = write_raw(folder / "BAD", 3)
    for path in bad.glob("depth/*"):
        path.write_bytes(b"no array")
    wrong = on_srun(2, "launch/train.py", *words, "--data", bad, "--run", folder / "wrong")
    yield good, wrong, folder
    for one in (good, *wrong):
        one.kill()


def in_metres(raw):
    for path in raw.rglob("*.npy"):
        points = np.load(path)
        if np.nanmedian(points[..., 2]) > 100:
            np.save(path, points / 1000)
    return raw


def said_of_captures(done):
    return [line for line in done.out.splitlines() if line.startswith("captures ")]


def test_a_run_from_a_folder_is_resumed_evaluated_and_reported_with_its_own_data(tmp_path):
    raw, run = in_metres(write_raw(tmp_path / "RAW", 6)), tmp_path / "run"
    where = ["--cache", tmp_path / "cache", "--unit", 1000, *SMALL]
    done = train(raw, run, *where)
    assert done.code == 0 and "making shards of them, once" in done.out, done
    record = json.loads((run / "run.json").read_text())
    assert record["settings"]["data"] == [str(raw)] and record["settings"]["unit"] == 1000
    (shards,) = record["derived"]["data"]
    assert Path(shards).parent == tmp_path / "cache/datasets"

    for i in (10, 11, 12):
        write_capture(raw / f"late/{i}.png", raw / f"late/{i}.npy", i)
    in_metres(raw)
    done = train(raw, run, *where, "--epochs", 2)
    assert done.code == 0 and "epoch 2/2" in done.out, done
    assert "captures came or changed since" in "".join(said_of_captures(done))
    assert [p.name for p in (tmp_path / "cache/datasets").glob("RAW-*/")] == [Path(shards).name]
    for script, *words in (
        ("launch/evaluate.py", "--run", run, "--no-details"),
        ("tools/report.py", "run", run),
    ):
        done = command(script, *words)
        assert done.code == 0, done
    assert json.loads((run / "evaluation.json").read_text())["data"] == shards

    done = command("launch/evaluate.py", "--run", run, "--no-details", "--data", raw)
    assert done.code == 0 and "3 more in" in said_of_captures(done)[0], done
    words = ["--config", run / "run.json", "--run", tmp_path / "again", "--dry-run"]
    done = command("launch/train.py", *words)
    assert done.code == 0 and "made before" in done.out, done

    picture = next(raw.glob("images/*.png"))
    found = {}
    for options in (read_options(str(run)), read_options(str(run / "best")), NO_OPTIONS):
        (source,) = find_sources([str(picture)], tmp_path / "out", options)
        image = source.read()
        found[options] = image.note or float(np.nanmedian(image.truth_mm))
    assert list(found) == [ReadOptions(unit_mm=1000), NO_OPTIONS]
    assert found[ReadOptions(unit_mm=1000)] > 500 and "looks like metres" in found[NO_OPTIONS]


def test_an_ultralytics_folder_trains_unchanged_with_its_split(tmp_path):
    raw = write_ultralytics(tmp_path / "RAW", train=5, val=2)
    done = train(raw, tmp_path / "run", "--cache", tmp_path / "cache", *SMALL)
    assert done.code == 0 and "sharded: 5 train, 2 val" in done.out, done
    assert "unit: 0.25 mm a value in 7 captures, as their layout says" in done.out
    derived = json.loads((tmp_path / "run/run.json").read_text())["derived"]
    assert (derived["train_samples"], derived["val_samples"]) == (5, 2)
    done = train(raw, tmp_path / "run", "--cache", tmp_path / "cache", *SMALL, "--epochs", 2)
    assert done.code == 0 and "epoch 2/2" in done.out, done


def test_a_dry_run_says_what_would_be_sharded_and_writes_nothing(tmp_path):
    raw = write_raw(tmp_path / "RAW", 6)
    done = train(raw, tmp_path / "run", "--cache", tmp_path / "cache", "--dry-run")
    assert done.code == 0, done
    assert f"{raw} would be sharded in {tmp_path}/cache/datasets/RAW-" in done.out
    assert "5 train, 1 val, 0 rejected" in done.out and "size 840x1134: the camera's" in done.out
    assert [path.name for path in tmp_path.iterdir()] == ["RAW"]


def test_settings_of_captures_are_refused_with_shards(data, tmp_path):
    lines = train(data, tmp_path / "run", "--near", 300, "--split", "session").errors
    assert len(lines) == 2 and all(f"--data {data} holds shards already" in one for one in lines)
    assert lines[0].startswith("--split is session") and lines[1].startswith("--near is 300.0")


def test_settings_are_checked_before_captures_are_sharded(tmp_path):
    raw = write_raw(tmp_path / "RAW", 6)
    words = ["--cache", tmp_path / "cache", "--size", "30x40", "--val", 2, "--epochs", 0]
    lines = train(raw, tmp_path / "run", *words).errors
    assert [line.split()[0] for line in lines] == ["--size", "--epochs", "--val"], lines
    assert not (tmp_path / "cache").exists()


def test_a_folder_of_neither_is_one_line_that_says_what_is_expected_of_both(tmp_path):
    (tmp_path / "RAW").mkdir()
    (line,) = train(tmp_path / "RAW", tmp_path / "run").errors
    expected = "expected a folder of captures, or one that depthdist shard wrote"
    assert f"{expected}; as a folder of captures: no pictures" in line
    write_capture(tmp_path / "RAW/a.png", tmp_path / "RAW/b.npy")
    (line,) = train(tmp_path / "RAW", tmp_path / "run").errors
    assert "2 files, such as" in line and "a.png: a picture without its point cloud" in line


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["training", "a dry run"])
def test_every_place_is_checked_before_captures_are_sharded(dry, tmp_path):
    raw = write_raw(tmp_path / "RAW", 6)
    where = ["--cache", tmp_path / "cache", *dry]
    (line,) = train(f"{raw},{tmp_path}/nope", tmp_path / "run", *where).errors
    assert "nope: no such folder; expected a folder of captures, or one that" in line
    (line,) = train(f"{raw},{raw}/../RAW", tmp_path / "run", *where).errors
    assert "the same captures twice; --weights 2 shows them twice" in line
    for path in raw.glob("depth/*"):
        path.write_bytes(b"no array")
    (line,) = train(raw, tmp_path / "run", *where).errors
    assert "RAW: no usable pair" in line and "6 rejected" in line and "the first: " in line


def test_the_launchers_ranks_have_one_set_of_shards_and_one_voice(typed):
    good, _, folder = typed
    done = good.done()
    assert done.code == 0 and "Traceback" not in done.out + done.err, done
    assert "8 = 2 ranks x micro-batch 1 x 4 accumulated" in done.out
    assert done.out.count("making shards of them, once") == done.out.count("sharded: 4 train") == 1
    derived = json.loads((folder / "run/run.json").read_text())["derived"]
    assert Path(derived["data"][0]).parent == folder / "cache/datasets"


def test_captures_that_cannot_be_sharded_end_all_ranks_with_one_line(typed):
    first, second = (one.done() for one in typed[1])
    (line,) = first.errors
    assert "BAD: no usable pair for train, 3 rejected" in line
    assert (second.code, second.out + second.err) == (2, ""), second
    assert not (typed[2] / "wrong").exists()
