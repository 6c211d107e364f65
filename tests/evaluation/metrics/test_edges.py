"""Edges: against slow loops by the published definitions, scikit-image's and SciPy's parts put
together otherwise, and drawn scenes."""

import math
from unittest.mock import Mock

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.feature import canny

from depthdist.evaluation.metrics import edges
from depthdist.evaluation.metrics.edges import (
    EDGE_METRICS,
    STEPS_MM,
    boundary_errors,
    depth_pro_f1,
    edge_metrics,
    edge_scores,
    edges_of,
    jumps_of,
    moge_f1,
    ratio_edges,
)

WHOLE = np.ones((24, 30), bool)


def scene(seed=0, shape=(24, 30)):
    """A slope with boxes on it, and a prediction that is off in places."""
    rng = np.random.default_rng(seed)
    depth_mm = 1000 + 3.0 * np.arange(shape[1])[None, :] + np.zeros(shape)
    depth_mm[4:12, 5:14] -= 150
    depth_mm[10:20, 16:26] -= 60
    depth_mm[15:18, 2:9] -= 12
    pred_mm = np.roll(depth_mm, 1, axis=1) * rng.uniform(0.99, 1.01, shape)
    pred_mm[:, 0] = depth_mm[:, 0]
    return pred_mm, depth_mm


def of_one(p, g, mask):
    """EDGE_METRICS of one prediction."""
    (found,) = edge_metrics([p], g, mask)
    return found


def step_edges(p, g, mask, step, radius=1, slope=True):
    """Its precision, recall and F1 of steps in mm."""
    return edge_scores(*(edges_of(jumps_of(z, mask, slope), step, radius) for z in (p, g)))


def loops_depth_pro(p, g, mask):
    """Pixel by pixel: 1/depth of one pixel over that of the other, four directions, ten ratios."""
    total, weights = 0.0, np.linspace(1.05, 1.25, 10)
    for t in weights:
        recalls, precisions = [], []
        for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            both = of_p = of_g = 0
            for y in range(g.shape[0]):
                for x in range(g.shape[1]):
                    v, u = y + dy, x + dx
                    if not (
                        0 <= v < g.shape[0] and 0 <= u < g.shape[1] and mask[y, x] and mask[v, u]
                    ):
                        continue
                    in_p, in_g = ((1 / z[y, x]) / (1 / z[v, u]) > t for z in (p, g))
                    both, of_p, of_g = both + (in_p and in_g), of_p + in_p, of_g + in_g
            recalls.append(both / max(of_g, 1))
            precisions.append(both / max(of_p, 1))
        r, q = np.mean(recalls), np.mean(precisions)
        total += t / weights.sum() * (2 * r * q / (r + q) if r + q else 0)
    return total


def loops_moge(p, g, mask, radius):
    total, ts = 0.0, np.linspace(0.05, 0.25, 10)
    for t in ts:
        both = of_p = of_g = 0
        for dy in range(-radius, radius + 1):
            for dx in range(-radius, radius + 1):
                if not 0 < dy * dy + dx * dx <= radius * radius:
                    continue
                for y in range(max(0, -dy), min(g.shape[0], g.shape[0] - dy)):
                    for x in range(max(0, -dx), min(g.shape[1], g.shape[1] - dx)):
                        if mask[y, x] and mask[y + dy, x + dx]:
                            in_p, in_g = (z[y + dy, x + dx] / z[y, x] > 1 + t for z in (p, g))
                            both, of_p, of_g = both + (in_p and in_g), of_p + in_p, of_g + in_g
        total += t / ts.sum() * (2 * both / (of_p + of_g) if of_p and of_g else 0)
    return total


@pytest.mark.parametrize("holes", [0.0, 0.3])
def test_depth_pros_score_equals_loops(holes):
    p, g = scene()
    mask = np.random.default_rng(1).random(g.shape) >= holes
    found = depth_pro_f1(*ratio_edges([p], g, mask))
    assert 0 < found < 1 and found == pytest.approx(loops_depth_pro(p, g, mask), abs=1e-12)


@pytest.mark.parametrize("radius", [1, 2, 3])
def test_moges_score_equals_loops(radius):
    p, g = scene()
    mask = np.random.default_rng(1).random(g.shape) >= 0.2
    found = moge_f1(*ratio_edges([p], g, mask), radius)
    assert 0 < found < 1 and found == pytest.approx(loops_moge(p, g, mask, radius), abs=1e-12)


def test_boundary_errors_equal_sums_over_nearest_edge_pixels():
    """Distances by a k-d tree over the edge pixels, Canny by scikit-image."""
    p, g = scene(shape=(60, 80))
    mask = np.ones(p.shape, bool)
    p_edges, g_edges = (
        np.argwhere(
            canny(
                (z - np.percentile(z, 1)) / np.ptp(np.percentile(z, (1, 99))),
                math.sqrt(2),
                0.1,
                0.2,
                mask=mask,
            )
        )
        for z in (p, g)
    )
    to_g, to_p = cKDTree(g_edges).query(p_edges)[0], cKDTree(p_edges).query(g_edges)[0]
    (found,) = boundary_errors([p], g, mask)
    assert found["dbe_acc_px"] == pytest.approx(to_g[to_g < 10].mean()) and found[
        "dbe_comp_script_px"
    ] == pytest.approx(to_p.mean())
    assert found["dbe_comp_paper_px"] == pytest.approx(
        (np.minimum(to_g, 10).sum() + np.minimum(to_p, 10).sum()) / (len(to_g) + len(to_p))
    )
    assert found["dbe_acc_px"] > 0


def test_a_prediction_without_edges_is_as_bad_as_it_gets():
    _, g = scene()
    found = of_one(np.full_like(g, 1000.0), g, WHOLE)
    assert found["dbe_acc_px"] == 10 and found["dbe_comp_script_px"] == pytest.approx(
        math.hypot(*g.shape)
    )
    assert all(found[name] == 0 for name in EDGE_METRICS if "f1" in name)


def test_a_perfect_prediction_is_perfect_and_a_flat_truth_says_nothing():
    _, g = scene()
    g[4:12, 5:14] -= 150  # an edge for every ratio up to 1.25 in each direction
    found = of_one(g, g, WHOLE)
    for name, metric in EDGE_METRICS.items():
        best = {"higher": 1.0, "lower": 0.0}[metric.better]
        assert found[name] == pytest.approx(best), name
    flat = of_one(g, np.full_like(g, 900.0), WHOLE)
    assert (
        all(math.isnan(value) for name, value in flat.items() if name != "depth_pro_f1")
        and flat["depth_pro_f1"] == 0
    )


def test_several_predictions_are_measured_as_each_alone_and_the_truths_edges_are_found_once(
    monkeypatch,
):
    p, g = scene(0)
    q, _ = scene(1)
    mask = np.random.default_rng(1).random(g.shape) >= 0.1
    alone = [of_one(z, g, mask) for z in (p, q, g)]
    spies = {
        name: Mock(side_effect=getattr(edges, name)) for name in ("canny", "jumps_of", "edges_of")
    }
    for name, spy in spies.items():
        monkeypatch.setattr(edges, name, spy)
    assert edge_metrics([p, q, g], g, mask) == alone
    assert {name: spy.call_count for name, spy in spies.items()} == {
        "canny": 4,
        "jumps_of": 4,
        "edges_of": 4 * len(STEPS_MM),
    }, "three predictions and the truth"


def test_holes_are_no_edges():
    """Whatever stands in them; 31 % of the pixels are holes."""
    p, g = scene()
    mask = np.random.default_rng(2).random(g.shape) >= 0.31
    clean = of_one(np.where(mask, p, 1000.0), np.where(mask, g, 1000.0), mask)
    for junk in (math.nan, 0.0, 1e9):
        with np.errstate(all="ignore"):
            assert of_one(np.where(mask, p, junk), np.where(mask, g, junk), mask) == pytest.approx(
                clean, nan_ok=True
            )
    assert clean["edge_f1@32mm"] > 0


def test_a_step_beside_a_hole_or_the_rim_makes_no_second_one():
    g = np.full((20, 30), 1000.0)
    g[:, 2:] += 20
    g[:, 15:] += 20
    mask = np.ones(g.shape, bool)
    mask[5:9, 12] = mask[:, 18] = False
    down, across = jumps_of(g, mask)
    assert (
        not down.any()
        and set(np.argwhere(across)[:, 1]) == {1, 14}
        and np.allclose(across[:, [1, 14]], 20)
    )


def test_scale_free_ones_do_not_see_a_scale_and_those_in_mm_do():
    p, g = scene()
    one, twice = (of_one(p * k, g * k, WHOLE) for k in (1, 2))
    for name in EDGE_METRICS:
        if "mm" not in name:
            assert one[name] == pytest.approx(twice[name], abs=1e-9), name
    assert [twice[f"edge_f1@{s:g}mm"] for s in STEPS_MM[1:]] == pytest.approx(
        [one[f"edge_f1@{s:g}mm"] for s in STEPS_MM[:-1]]
    )


@pytest.mark.parametrize("step", [3.0, 9.0, 30.0])
def test_a_step_counts_from_its_height_on(step):
    g = np.full((20, 20), 1200.0)
    g[:, 10:] += step
    for limit in (2.0, 4.0, 8.0, 16.0, 32.0):
        recall = step_edges(g, g, np.ones_like(g, bool), limit)["recall"]
        assert (recall == 1.0) if step > limit else math.isnan(recall)


def test_a_tilted_plane_has_no_edges_and_a_step_on_it_is_found():
    """1/Z of a plane is linear in the pixel: 9 mm a pixel at 60 degrees is slope, not edge."""
    y, x = np.mgrid[:40, :50]
    plane = 1 / (1 / 1300 - 7e-6 * x + 3e-6 * y)
    assert np.abs(np.diff(plane, axis=1)).min() > 8
    mask = np.ones(plane.shape, bool)
    assert math.isnan(step_edges(plane, plane, mask, 2.0)["f1"])
    assert step_edges(plane, plane, mask, 2.0, slope=False)["f1"] == 1, (
        "without the slope taken off it is all edges"
    )
    grooved = plane + 6.0 * ((x > 20) & (x < 26))
    found = step_edges(grooved, grooved, mask, 4.0)
    assert found["f1"] == 1 and step_edges(plane, grooved, mask, 4.0)["recall"] == 0


def test_an_edge_may_be_off_by_the_radius_and_must_step_the_same_way():
    g = np.full((20, 30), 1000.0)
    g[:, 15:] += 50
    mask = np.ones(g.shape, bool)
    for off, expected in ((1, 1.0), (2, 0.0)):
        assert (
            step_edges(np.roll(g, off, axis=1)[:, 3:], g[:, 3:], mask[:, 3:], 8.0)["recall"]
            == expected
        )
    assert step_edges(2000 - g, g, mask, 8.0) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert (
        step_edges(np.roll(g, 2, axis=1)[:, 3:], g[:, 3:], mask[:, 3:], 8.0, radius=2)["recall"]
        == 1.0
    )


def test_a_step_as_a_ratio_is_moges_score():
    """Limit case: on flat ground a step of t times the depth is MoGe's ratio, with no tolerance and
    no slope."""
    g = np.full((20, 30), 1000.0)
    g[5:15, 8:20] = 1200.0
    p = np.roll(g, 3, axis=1)
    mask = np.ones(g.shape, bool)
    in_mm = [
        step_edges(p, g, mask, 1000.0 * t, radius=0, slope=False)["f1"]
        for t in np.linspace(0.05, 0.25, 10)
        if t < 0.2
    ]
    weights = [t for t in np.linspace(0.05, 0.25, 10) if t < 0.2]
    assert moge_f1(*ratio_edges([p], g, mask), 1) == pytest.approx(
        np.dot(in_mm, weights) / np.linspace(0.05, 0.25, 10).sum()
    )


def test_what_the_fields_scores_cannot_see_ours_do():
    """METRICS.md 0.3: a tread with and without its grooves, 9 mm deep at 1.3 m."""
    y, x = np.mgrid[:120, :160]
    smooth = 1300 + 0.0005 * (y - 60) ** 2.0
    grooved = smooth + 9.0 * ((x % 40) < 10)
    found = of_one(smooth, ndimage.gaussian_filter(grooved, 0.3), np.ones(smooth.shape, bool))
    assert (
        math.isnan(found["moge_f1_r1"])
        and found["edge_recall@4mm"] == 0
        and found["edge_f1@4mm"] == 0
    )
