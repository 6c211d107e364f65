"""What a run leaves behind: each line and each curve is read back, also after an interruption."""

import json
import math
from io import BytesIO

import numpy as np
import pytest
from helpers.runs import make_curves_older
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import (
    IMAGES,
    SCALARS,
    TENSORS,
    EventAccumulator,
)

from depthdist.runs.tensorboard_file import EventFile
from depthdist.runs.tracker import Tracker


def tracker(run, step=None, active=True, total=10):
    return Tracker(run, active, step, total)


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def board(run):
    events = EventAccumulator(
        str(run / "tensorboard"), size_guidance={IMAGES: 0, SCALARS: 0, TENSORS: 0}
    )
    return events.Reload()


def points(run, name):
    return [(event.step, round(event.value, 4)) for event in board(run).Scalars(name)]


def test_a_logged_step_is_a_line_and_a_point_of_each_curve(tmp_path):
    log = tracker(tmp_path)
    log.log(1, 0, {"train/loss": 0.5, "lr": 5e-5})
    log.log(2, 0, {"train/loss": 0.25})
    log.log(2, 1, {"eval/loss": 0.125})
    log.close()
    found = lines(tmp_path)
    assert [{k: v for k, v in line.items() if k != "time"} for line in found] == [
        {"step": 1, "epoch": 0, "train/loss": 0.5, "lr": 5e-5},
        {"step": 2, "epoch": 0, "train/loss": 0.25},
        {"step": 2, "epoch": 1, "eval/loss": 0.125},
    ]
    assert all(line["time"] > 1.7e9 for line in found)
    assert points(tmp_path, "train/loss") == [(1, 0.5), (2, 0.25)] and points(
        tmp_path, "eval/loss"
    ) == [(2, 0.125)]
    assert set(board(tmp_path).Tags()["scalars"]) == {"train/loss", "lr", "eval/loss"}


def test_a_line_is_on_the_disk_as_soon_as_it_is_logged(tmp_path):
    log = tracker(tmp_path)
    log.log(1, 0, {"train/loss": 0.5})
    assert len(lines(tmp_path)) == 1
    log.close()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_null_and_the_line_is_strict_json(value, tmp_path):
    log = tracker(tmp_path)
    log.log(1, 0, {"train/loss": value, "lr": 1.0})
    log.close()

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    (line,) = (
        json.loads(text, parse_constant=refuse)
        for text in (tmp_path / "metrics.jsonl").read_text().splitlines()
    )
    assert line["train/loss"] is None and line["lr"] == 1.0


def test_pictures_and_text_can_be_read_back(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    log = tracker(tmp_path)
    log.picture("validation/000", image, 6)
    log.text("settings", "| a | b |")
    log.close()
    events = board(tmp_path)
    (event,) = events.Images("validation/000")
    assert (event.step, event.height, event.width) == (6, 5, 7)
    assert np.array_equal(np.asarray(Image.open(BytesIO(event.encoded_image_string))), image)
    (tag,) = [t for t in events.Tags()["tensors"] if t.startswith("settings")]
    assert events.Tensors(tag)[0].tensor_proto.string_val == [b"| a | b |"]


def test_a_rank_that_is_not_active_writes_and_says_nothing(tmp_path, capsys):
    log = tracker(tmp_path, active=False)
    log.log(1, 0, {"train/loss": 0.5})
    log.picture("validation/000", np.zeros((5, 7, 3), np.uint8), 1)
    log.text("settings", "text")
    log.advance(1, loss="0.5")
    log.say("a line")
    log.close()
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr() == ("", "")


def interrupted(run):
    """A run that logged steps 1 to 6, saved its state at step 4, and was killed while it wrote the
    line of step 7."""
    log = tracker(run)
    for step in range(7):
        log.log(step, step // 3, {"train/loss": float(step)})
    log.close()
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "epo')
    make_curves_older(run)


def test_a_resumed_run_drops_later_lines_and_a_line_cut_off(tmp_path):
    interrupted(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text().splitlines()[:5]
    log = tracker(tmp_path, step=4)
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == before, (
        "steps 0 to 4, letter by letter"
    )
    log.log(5, 1, {"train/loss": 50.0})
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2, 3, 4, 5]
    assert points(tmp_path, "train/loss") == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 50)]
    assert not (tmp_path / "metrics.tmp").exists()


def test_a_run_resumed_before_its_first_step_keeps_what_was_evaluated(tmp_path):
    interrupted(tmp_path)
    tracker(tmp_path, step=0).close()
    assert [line["step"] for line in lines(tmp_path)] == [0] and points(tmp_path, "train/loss") == [
        (0, 0)
    ]


def test_curves_are_on_the_disk_after_a_flush(tmp_path):
    log = tracker(tmp_path)
    log.log(1, 0, {"train/loss": 5.0})
    log.flush()
    assert points(tmp_path, "train/loss") == [(1, 5)]
    log.close()


def test_a_run_that_starts_again_keeps_no_line(tmp_path):
    interrupted(tmp_path)
    log = tracker(tmp_path)
    log.log(0, 0, {"train/loss": 100.0})
    log.close()
    assert [line["train/loss"] for line in lines(tmp_path)] == [100.0]


def test_a_run_that_starts_again_keeps_no_curve(tmp_path):
    interrupted(tmp_path)
    log = tracker(tmp_path)
    log.log(0, 0, {"train/loss": 100.0})
    log.close()
    assert points(tmp_path, "train/loss") == [(0, 100)]


@pytest.mark.parametrize("junk", ["", "[1]", "3", "null", '{"epoch": 1}', "\x00\x00"])
def test_whatever_stands_in_a_line_the_run_goes_on(junk, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{junk}\n{{"step": 2}}\n')
    tracker(tmp_path, step=2).close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_the_progress_line_of_a_log_file_comes_now_and_then_and_shows_what_matters(
    tmp_path, capsys, monkeypatch
):
    log = tracker(tmp_path, step=3)
    log.advance(4, loss="0.5")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr("depthdist.runs.tracker.SECONDS_BETWEEN_LINES", -1)
    log.advance(7, loss="0.25")
    out = capsys.readouterr().out
    assert "7/10" in out and "loss=0.25" in out and out.endswith("\n")
    log.say("a line for people")
    assert "a line for people" in capsys.readouterr().out
    log.close()


def test_curves_begun_in_one_second_stand_in_the_order_of_their_starts(tmp_path):
    names = [EventFile(tmp_path, first_step=step).path.name for step in range(12)]
    assert len(set(names)) == 12
    assert sorted(names) == names
