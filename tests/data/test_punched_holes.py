"""Holes that are punched into measured depth, and predictions that are spoiled in them."""

import numpy as np
import pytest

from depthdist.data.punched_holes import (
    LEAST_HOLE,
    LEAST_KNOWN,
    SLACK,
    blobs,
    dark,
    disturb,
    frame,
    punch_holes,
    shadow,
    shifted,
)
from depthdist.data.random_streams import hole_stream

SIZE = (60, 96)


def scene(seed=0):
    """A near plate before a slanted wall, a tenth of it not measured."""
    random = np.random.default_rng(seed)
    depth = np.tile(1500 + 2.0 * np.arange(SIZE[1]), (SIZE[0], 1)).astype(np.float32)
    depth[20:40, 30:60] = 900
    depth[random.random(SIZE) < 0.1] = 0
    return depth, random.integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def shadow_by_hand(depth, baseline):
    """Pixel by pixel: hidden is what some nearer pixel on its left or right is seen beyond."""
    hidden = np.zeros(depth.shape, bool)
    for row, column in np.ndindex(depth.shape):
        if not depth[row, column]:
            continue
        seen = column + baseline / float(depth[row, column])
        for other in range(depth.shape[1]):
            if not depth[row, other]:
                continue
            others = other + baseline / float(depth[row, other])
            if baseline > 0 and other < column and others > seen + SLACK:
                hidden[row, column] = True
            if baseline < 0 and other > column and others < seen - SLACK:
                hidden[row, column] = True
    return hidden


@pytest.mark.parametrize("baseline", [2e4, -3e4])
def test_a_shadow_is_what_nearer_pixels_hide_from_the_projector(baseline):
    depth, _ = scene()
    found = shadow(depth, baseline)
    assert np.array_equal(found, shadow_by_hand(depth, baseline))
    # the plate's shadow on the wall is its disparity wide, on one side alone
    width = abs(baseline) * (1 / 900 - 1 / 1600) - SLACK
    beside = found[30, 60:] if baseline > 0 else found[30, :30]
    assert abs(beside.sum() - width) < 0.25 * width + 2 and not found[:18].any()


def test_enough_is_hidden_and_enough_stays():
    depth, rgb = scene()
    measured = depth > 0
    for number in range(40):
        hole = punch_holes(depth, rgb, lambda _: scene(1)[0] > 0, hole_stream(0, number))
        if hole.any():
            assert (hole & measured).mean() >= LEAST_HOLE
            assert (measured & ~hole).mean() >= LEAST_KNOWN


def test_a_draw_depends_on_its_stream_alone():
    depth, rgb = scene()

    def drawn(*stream):
        return punch_holes(depth, rgb, lambda _: depth > 0, hole_stream(*stream))

    assert np.array_equal(drawn(3, 7), drawn(3, 7))
    different = [drawn(*stream) for stream in ((3, 7), (3, 8), (4, 7), (3, 7, True))]
    assert len({hole.tobytes() for hole in different}) == 4


def test_a_scene_that_cannot_be_punched_stays_whole():
    depth = np.zeros(SIZE, np.float32)
    depth[0, :3] = 1000
    rgb = np.zeros((*SIZE, 3), np.uint8)
    assert not punch_holes(depth, rgb, lambda _: depth > 0, hole_stream(0, 0)).any()


def test_kinds_of_holes_look_as_they_are_called():
    depth, rgb = scene()
    hole = depth == 0
    for number in range(20):
        random = hole_stream(1, number)
        assert shifted(hole, random).sum() == hole.sum()
        assert not blobs(SIZE, random).all()
        outside = frame(SIZE, random)
        middle = outside[SIZE[0] // 2 - 3 : SIZE[0] // 2 + 3, SIZE[1] // 2 - 3 : SIZE[1] // 2 + 3]
        assert not middle.any()
        light = rgb.mean(2)
        hidden = dark(rgb, random)
        assert not hidden.any() or light[hidden].max() <= np.percentile(light, 35)


def test_a_prediction_is_spoiled_smoothly_and_on_some_samples_in_holes_alone():
    depth, _ = scene()
    measured = np.zeros(SIZE, bool)
    measured[:, :50] = depth[:, :50] > 0
    log_pred = np.log(np.maximum(depth, 1000)).astype(np.float32)
    kinds = []
    for number in range(60):
        error = disturb(log_pred, measured, hole_stream(2, number)).astype(float) - log_pred
        assert np.abs(np.diff(error[:, 60:], axis=1)).max() < 0.25, "smooth where nothing is shown"
        at_measured = np.abs(error[measured]).max() > 1e-6
        in_holes = np.abs(error[~measured]).max() > 1e-6
        kinds.append((at_measured, in_holes))
    assert set(kinds) == {(False, False), (False, True), (True, True)}
