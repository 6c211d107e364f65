"""Alignments: against NumPy's least squares, and what each must undo."""

import numpy as np
import pytest
import torch

from depthdist.evaluation.metrics.alignment import ALIGNMENTS, NEAREST_MM, align

every_way = pytest.mark.parametrize("way", ALIGNMENTS)


def scene(seed=0):
    rng = np.random.default_rng(seed)
    depth_mm = torch.from_numpy(rng.uniform(400, 3000, (20, 30)))
    return (
        depth_mm * torch.from_numpy(rng.uniform(0.8, 1.2, (20, 30))),
        depth_mm,
        torch.from_numpy(rng.random((20, 30)) < 0.7),
    )


def by_numpy(way, pred_mm, depth_mm, mask):
    p, g = pred_mm[mask].numpy(), depth_mm[mask].numpy()
    if way == "median":
        return pred_mm.numpy() * np.median(g) / np.median(p)
    if way == "depth":
        s, t = np.polyfit(p, g, 1)
        return s * pred_mm.numpy() + t
    if way == "disparity":
        (s, t), *_ = np.linalg.lstsq(np.stack([1 / p, np.ones_like(p)], 1), 1 / g, rcond=None)
        return 1 / np.maximum(s / pred_mm.numpy() + t, 1 / g.max())
    return pred_mm.numpy()


@every_way
def test_it_equals_numpys_least_squares(way):
    pred_mm, depth_mm, mask = scene()
    assert align(way, pred_mm, depth_mm, mask).numpy() == pytest.approx(
        by_numpy(way, pred_mm, depth_mm, mask), rel=1e-9
    )


@pytest.mark.parametrize(
    ("way", "spoil"),
    [
        ("median", lambda z: z * 0.3),
        ("depth", lambda z: 0.4 * z + 90),
        ("disparity", lambda z: 1 / (2.5 / z + 1e-4)),
    ],
)
def test_what_it_is_for_is_undone(way, spoil):
    _, depth_mm, mask = scene()
    assert align(way, spoil(depth_mm), depth_mm, mask)[mask].numpy() == pytest.approx(
        depth_mm[mask].numpy(), rel=1e-9
    )


@every_way
def test_pixels_outside_the_mask_decide_nothing(way):
    pred_mm, depth_mm, mask = scene()
    junk = torch.where(mask, depth_mm, torch.nan)
    assert torch.equal(align(way, pred_mm, junk, mask), align(way, pred_mm, depth_mm, mask))


@every_way
def test_depth_stays_above_0_and_an_empty_mask_changes_nothing(way):
    pred_mm, depth_mm, mask = scene()
    upside_down = 3500 - depth_mm  # the best line through it may well cross 0
    assert (
        align(way, upside_down * 50, depth_mm * torch.linspace(0.01, 1, 30), mask) >= NEAREST_MM
    ).all()
    assert torch.equal(align(way, pred_mm, depth_mm, torch.zeros_like(mask)), pred_mm)
    flat = align(way, torch.full_like(pred_mm, 700.0), depth_mm, mask)
    assert torch.isfinite(flat).all() and flat.min() == flat.max()
