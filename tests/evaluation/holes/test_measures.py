"""What is measured of filled holes: a hand-worked map, the parts of holes, the other ways."""

import numpy as np
import pytest

from depthdist.evaluation.holes.measures import (
    FULL_WIDTH,
    Sums,
    fill_in_ways,
    measure_filled,
    parts_of_holes,
)


def test_a_hand_worked_map():
    truth = np.full((6, 8), 1000.0)
    truth[0, 0] = np.nan  # not known: does not count
    measured = np.ones((6, 8), bool)
    measured[2:4, 2:5] = False
    measured[0, 0] = False
    filled = truth.copy()
    filled[2, 2:5] = 1004, 992, 1030
    filled[3, 2:5] = 1000, 1000, np.nan  # left open
    found = measure_filled(filled, truth, measured, np.ones((6, 8), bool))["all"]
    assert (found.pixels, found.filled) == (6, 5)
    means = found.means()
    assert means["mae_mm"] == pytest.approx((4 + 8 + 30) / 5)
    assert means["rmse_mm"] == pytest.approx(np.sqrt((16 + 64 + 900) / 5))
    shares = [means[f"within_{limit}_mm"] for limit in (5, 10, 20)]
    assert shares == pytest.approx([3 / 5, 4 / 5, 4 / 5]) and means["filled"] == 5 / 6
    assert means["flying"] == pytest.approx(1 / 5)  # 1030: 30 mm from all of its neighbors
    # 14 pairs of neighbors at its rim, but one whose filled pixel was left open has two
    steps = [4, 8, 30, 4, 30, 0, 0, 0]  # top, left, right of row 2; left and bottom of row 3
    assert found.rims == len(steps) and means["rim_step_mm"] == pytest.approx(sum(steps) / 8)
    assert means["rim_slope_mm"] == 0
    both = found.plus(found)
    assert both.pixels == 12 and both.means()["mae_mm"] == means["mae_mm"]
    assert np.isnan(Sums(0, 0, 0, 0, (0, 0, 0), 0).means()["mae_mm"])


def test_what_is_wanted_alone_counts():
    truth = np.full((6, 8), 1000.0)
    measured = np.zeros((6, 8), bool)
    measured[0] = True
    wanted = np.zeros((6, 8), bool)
    wanted[3] = True
    found = measure_filled(truth + 7, truth, measured, wanted)
    assert found["all"].pixels == 8 and found["all"].error == 8 * 7


def test_parts_of_holes():
    scale = 4  # of an image a quarter as wide as FULL_WIDTH
    measured = np.ones((200, FULL_WIDTH // scale), bool)
    measured[50:60, 100:110] = False  # 10 x 10: 40 pixels across at full width, up to 20 deep
    measured[:, :30] = False  # touches the rim: 200 x 30
    truth = np.full(measured.shape, 1500.0)
    truth[52, 102] = 1200  # nearer than all that was measured
    parts = parts_of_holes(truth, measured)
    assert parts["all"].sum() == 100 + 200 * 30
    assert parts["interior"].sum() == 100 and parts["beyond"].sum() == 1
    assert parts["hole 20 .. 80 px"].sum() == 100 and parts["hole 80 .. 320 px"].sum() == 6000
    assert parts["rim up to 8 px"].sum() == 36 + 28 + 400  # two rings, and two columns
    for kind in ("hole", "rim"):
        total = sum(part.sum() for name, part in parts.items() if name.startswith(kind))
        assert total == parts["all"].sum()


def test_every_other_way_keeps_what_is_shown_and_a_cameras_repair_closes_small_holes_alone():
    row, column = np.mgrid[:60, :486].astype(float)
    surface = 1200 + column + row
    shown = surface.astype(np.float32)
    shown[20:23, 50:53] = 0  # 3 x 3: 12 pixels across at full width
    shown[10:50, 300:340] = 0
    ways = fill_in_ways((surface + 100).astype(np.float32), shown)
    assert {"prediction", "harmonic", "prediction moved", "small holes alone"} <= ways.keys()
    measured = shown > 0
    for way, filled in ways.items():
        if way != "prediction":
            assert np.allclose(filled[measured], shown[measured], atol=1e-3), way
    assert np.isnan(ways["small holes alone"][30, 320])
    assert ways["small holes alone"][21, 51] == pytest.approx(surface[21, 51], abs=1)
    assert np.abs(ways["prediction moved"] - surface).max() < 1
