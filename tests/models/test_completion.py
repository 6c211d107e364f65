"""Filling holes of measured depth: nothing measured changes, and no hole has a step at its rim."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.completion_stages import learn

from depthdist.geometry.depth_range import DepthRange, normalize_valid
from depthdist.geometry.measured import is_measured
from depthdist.models.completion import (
    Completion,
    CompletionRecord,
    complete,
    continue_from_rims,
    fill_depth,
)
from depthdist.models.completion_maps import network_inputs, working_maps
from depthdist.models.completion_network import CompletionNetwork

ROW, COLUMN = np.mgrid[:90, :120].astype(float)
SURFACE = 1400 + 1.5 * COLUMN + 6 * np.sin(ROW / 9)  # at most 1.7 mm from pixel to pixel
HOLE = (ROW - 45) ** 2 + (COLUMN - 60) ** 2 < 25**2


def steps_across(depth_mm, hole):
    """|differences| between neighbors of which one is in the hole."""
    down, right = hole[1:] != hole[:-1], hole[:, 1:] != hole[:, :-1]
    return np.abs(np.concatenate([np.diff(depth_mm, axis=0)[down], np.diff(depth_mm)[right]]))


@pytest.mark.parametrize("nothing", [np.nan, 0.0, np.inf, -1.0])
def test_measured_pixels_stay_and_no_rim_has_a_step(nothing):
    measured = np.where(HOLE, nothing, SURFACE).astype(np.float32)
    pred = SURFACE * 1.07 - 80 + 0.4 * ROW  # off, by more at one side of the hole than at the other
    filled = fill_depth(pred, measured)
    assert filled.dtype == np.float32 and np.array_equal(filled[~HOLE], measured[~HOLE])
    slope = steps_across(SURFACE, HOLE).max()
    assert steps_across(np.where(HOLE, pred, SURFACE), HOLE).max() > 10 * slope, "a step to remove"
    assert steps_across(filled, HOLE).max() < 1.5 * slope + 0.5
    assert np.abs(filled - SURFACE)[HOLE].max() < 3  # what differs smoothly is taken back


def test_a_prediction_that_knows_the_shape_gives_it_to_the_hole():
    bump = 40 * np.exp(-((ROW - 45) ** 2 + (COLUMN - 60) ** 2) / 100)
    surface = SURFACE - bump
    filled = fill_depth(1.1 * surface, np.where(HOLE, np.nan, surface))
    flat = fill_depth(np.full_like(surface, 1000.0), np.where(HOLE, np.nan, surface))
    error, without = (np.abs(one - surface)[HOLE].max() for one in (filled, flat))
    assert error < 0.5 and without > 30


def test_without_a_measured_pixel_it_is_the_prediction():
    assert not is_measured(np.array([np.nan, 0, -3, np.inf])).any()
    pred = SURFACE.astype(np.float32)
    assert np.array_equal(fill_depth(pred, np.full_like(pred, np.nan)), pred)


# ------------------------------------------------------------------------------- a trained stage


BOUNDS = DepthRange(250.0, 4000.0)
SIZE = (90, 120)


@pytest.fixture(scope="module")
def completion():
    """A stage whose output differs much from pixel to pixel."""
    network = CompletionNetwork((8, 8)).begin(0)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(network.head.weight, std=0.2, generator=generator)
    record = CompletionRecord("", (8, 8), SIZE, 1, filled_sigma=1.5, predicted_sigma=3.0)
    return Completion(network.eval(), record)


def completed(completion, measured_mm, pred_mm=SURFACE):
    rgb = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    pred = normalize_valid(torch.from_numpy(pred_mm.astype(np.float32)), BOUNDS)
    return complete(completion, rgb, pred, pred_mm.astype(np.float32), measured_mm, BOUNDS)


def test_what_was_measured_stays_to_the_bit_and_is_sure(completion):
    measured = np.where(HOLE, np.nan, SURFACE).astype(np.float32)
    depth_mm, sigma_mm = completed(completion, measured)
    assert depth_mm.dtype == sigma_mm.dtype == np.float32
    assert np.array_equal(depth_mm[~HOLE], measured[~HOLE])
    assert not sigma_mm[~HOLE].any() and (sigma_mm[HOLE] > 0).all()
    assert np.isfinite(depth_mm).all()


def surface_with_a_hole(seed):
    """Maps of a bent surface, off in its prediction, and what a round hole hides of it."""
    random = np.random.default_rng(seed)
    bent = 1500 + random.uniform(-3, 3) * COLUMN + random.uniform(-3, 3) * ROW
    bent += random.uniform(0, 15) * np.sin(ROW / random.uniform(8, 20) + COLUMN / 30)
    center, radius = random.uniform(20, 70, 2), random.uniform(8, 25)
    hole = (ROW - center[0]) ** 2 + (COLUMN - center[1]) ** 2 < radius**2
    pred = bent * random.uniform(0.9, 1.1) + random.uniform(-1, 1) * ROW
    rgb = random.integers(0, 60, (*SIZE, 3), dtype=np.uint8)
    target = normalize_valid(torch.from_numpy(pred.astype(np.float32)), BOUNDS)
    return working_maps(rgb, np.where(hole, 0, bent), target, BOUNDS), bent, hole


def test_a_stage_that_learned_surfaces_leaves_no_step_at_a_rim(completion):
    scenes = [surface_with_a_hole(seed) for seed in range(8)]
    inputs = [network_inputs(maps) for maps, _, _ in scenes]
    channels, guesses = (torch.from_numpy(np.stack(maps)) for maps in zip(*inputs))
    truth = torch.from_numpy(np.stack([bent for _, bent, _ in scenes])).float()
    hole = torch.from_numpy(np.stack([hole for _, _, hole in scenes]))
    log_pred = torch.from_numpy(np.stack([maps.log_pred for maps, _, _ in scenes]))
    network = CompletionNetwork((8, 8)).begin(0)
    learn(network, (channels, guesses), log_pred, truth, hole, steps=60)
    measured = np.where(HOLE, 0, SURFACE).astype(np.float32)
    pred = SURFACE * 1.07 - 80 + 0.4 * ROW
    filled = completed(Completion(network.eval(), completion.record), measured, pred).depth_mm
    slope = steps_across(SURFACE, HOLE).max()
    assert steps_across(np.where(HOLE, pred, SURFACE), HOLE).max() > 10 * slope, "a step to remove"
    assert steps_across(filled, HOLE).max() < 1.5 * slope + 0.5
    assert np.abs(filled - SURFACE)[HOLE].max() < 15


def test_a_silhouette_at_a_rim_stays():
    far = np.where(COLUMN < 60, 1800.0, 1000.0).astype(np.float32)
    shadow = (COLUMN >= 45) & (COLUMN < 60)
    known = np.where(shadow, 0, far).astype(np.float32)
    off = far + 8  # on either side
    filled = continue_from_rims(off, known)
    assert np.allclose(filled[shadow], 1800, atol=8) and np.allclose(filled[:, 45], 1800, atol=0.1)
    assert np.allclose(filled[:, 59], 1808, atol=0.1), "nothing pulls it to the near side"


@pytest.mark.parametrize("measured", [None, np.full(SIZE, np.nan, np.float32)])
def test_without_a_measured_pixel_the_prediction_stays_and_has_its_own_sigma(completion, measured):
    depth_mm, sigma_mm = completed(completion, measured)
    assert np.array_equal(depth_mm, SURFACE.astype(np.float32)) and (sigma_mm > 0).all()
    record = replace(completion.record, predicted_sigma=6.0)
    twice = completed(Completion(completion.network, record), measured).sigma_mm
    assert np.allclose(twice, 2 * sigma_mm)
