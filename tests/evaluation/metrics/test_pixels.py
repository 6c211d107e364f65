"""Every registered metric: against float64 NumPy by its definition, and what they all promise."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    mean_absolute_error,
    mean_absolute_percentage_error,
    mean_squared_error,
    root_mean_squared_error,
)

from depthdist.evaluation.metrics.pixels import (
    PIXEL_METRICS,
    bin_metrics,
    binned_metrics,
    image_metrics,
)
from depthdist.evaluation.metrics.registry import BINS_MM


def numpy_delta(p, g, limit):
    return np.count_nonzero(np.maximum(p / g, g / p) < limit) / p.size


def log_ratio(p, g):
    return np.log(p) - np.log(g)


# By definition, from METRICS.md 2.1 and 2.2: the value, and what a prediction that is 10 % too far
# everywhere scores at 1000 mm.
BY_DEFINITION = {
    "abs_rel": (lambda p, g: mean_absolute_percentage_error(g, p), 0.1),
    "delta1": (lambda p, g: numpy_delta(p, g, 1.25), 1.0),
    "delta2": (lambda p, g: numpy_delta(p, g, 1.5625), 1.0),
    "delta3": (lambda p, g: numpy_delta(p, g, 1.953125), 1.0),
    "rmse_mm": (lambda p, g: root_mean_squared_error(g, p), 100.0),
    "mae_mm": (lambda p, g: mean_absolute_error(g, p), 100.0),
    "median_mm": (lambda p, g: np.median(np.abs(p - g)), 100.0),
    "sq_rel_eigen_mm": (lambda p, g: np.mean((p - g) ** 2 / g), 10.0),
    "sq_rel_kitti": (lambda p, g: np.mean((p - g) ** 2 / g**2), 0.01),
    "rmse_log": (lambda p, g: math.sqrt(mean_squared_error(np.log(g), np.log(p))), math.log(1.1)),
    "log10": (lambda p, g: np.mean(np.abs(np.log10(p) - np.log10(g))), math.log10(1.1)),
    "silog_dav2": (
        lambda p, g: math.sqrt(np.mean(log_ratio(p, g) ** 2) - 0.5 * np.mean(log_ratio(p, g)) ** 2),
        math.sqrt(0.5) * math.log(1.1),
    ),
    "silog_kitti": (
        lambda p, g: 100 * math.sqrt(np.mean(log_ratio(p, g) ** 2) - np.mean(log_ratio(p, g)) ** 2),
        0.0,
    ),
    "irmse_per_km": (
        lambda p, g: root_mean_squared_error(1e6 / g, 1e6 / p),
        1e6 / 1000 - 1e6 / 1100,
    ),
}
SCALES = {
    "mm": 2.0,
    "": 1.0,
    "1/km": 0.5,
}  # what a scene twice as large makes of a value in that unit
BEST = {"lower": 0.0, "higher": 1.0}
every_metric = pytest.mark.parametrize("name", PIXEL_METRICS)


def images(seed=0, shape=(30, 40)):
    rng = np.random.default_rng(seed)
    depth_mm = rng.uniform(252, 3907, shape).astype(np.float32)
    pred_mm = (depth_mm * rng.uniform(0.7, 1.4, shape)).astype(np.float32)
    return (
        torch.from_numpy(pred_mm),
        torch.from_numpy(depth_mm),
        torch.from_numpy(rng.random(shape) < 0.7),
    )


@every_metric
def test_equals_float64_numpy_by_definition(name):
    pred_mm, depth_mm, mask = images()
    p, g = (t.numpy()[mask.numpy()].astype(np.float64) for t in (pred_mm, depth_mm))
    assert image_metrics(pred_mm, depth_mm, mask)[name] == pytest.approx(
        BY_DEFINITION[name][0](p, g), rel=1e-9 if "silog" in name else 1e-12
    )


@every_metric
def test_a_perfect_prediction_is_the_best_value_and_any_other_is_not(name):
    pred_mm, depth_mm, mask = images()
    pred_mm = torch.where(
        torch.arange(40) < 20, pred_mm * 0.3, pred_mm * 2.5
    )  # also delta3 is not 1
    best = BEST[PIXEL_METRICS[name].better]
    assert image_metrics(depth_mm, depth_mm, mask)[name] == best
    worse = image_metrics(pred_mm, depth_mm, mask)[name]
    assert worse > best if PIXEL_METRICS[name].better == "lower" else worse < best


@every_metric
def test_a_planted_error_of_10_percent_is_found(name):
    depth_mm = torch.full((6, 7), 1000.0)
    found = image_metrics(depth_mm * 1.1, depth_mm, torch.ones(6, 7, dtype=torch.bool))[name]
    assert found == pytest.approx(BY_DEFINITION[name][1], rel=1e-6, abs=1e-4)


def test_a_planted_scale_is_abs_rel_whatever_the_scene():
    _, depth_mm, mask = images()
    for scale in (0.9, 1.1, 1.24, 1.26):
        found = image_metrics(depth_mm.double() * scale, depth_mm, mask)
        assert found["abs_rel"] == pytest.approx(abs(scale - 1), rel=1e-9) and found[
            "delta1"
        ] == float(scale < 1.25)


def test_delta1_is_strict_and_the_same_both_ways():
    depth_mm, mask = (
        torch.tensor([[1000.0, 1000.0, 1250.0, 1240.0]]),
        torch.ones(1, 4, dtype=torch.bool),
    )
    pred_mm = torch.tensor([[1250.0, 1240.0, 1000.0, 1000.0]])  # exactly 1.25 does not count
    assert image_metrics(pred_mm, depth_mm, mask)["delta1"] == 0.5


@pytest.mark.parametrize("junk", [math.nan, math.inf, 0.0, -5.0])
def test_a_masked_image_equals_the_cropped_one(junk):
    pred_mm, depth_mm, _ = images()
    mask = torch.zeros(30, 40, dtype=torch.bool)
    mask[3:20, 5:31] = True
    cropped = image_metrics(
        pred_mm[3:20, 5:31], depth_mm[3:20, 5:31], torch.ones(17, 26, dtype=torch.bool)
    )
    masked = image_metrics(
        torch.where(mask, pred_mm, junk), torch.where(mask, depth_mm, junk), mask
    )
    assert masked == cropped and set(masked) == set(PIXEL_METRICS)


def test_an_image_without_a_valid_pixel_has_no_metrics():
    pred_mm, depth_mm, mask = images()
    assert all(
        math.isnan(value)
        for value in image_metrics(pred_mm, depth_mm, torch.zeros_like(mask)).values()
    )
    mask = torch.zeros_like(mask)
    mask[4, 4] = True
    assert image_metrics(pred_mm, depth_mm, mask)["mae_mm"] == pytest.approx(
        abs(pred_mm[4, 4] - depth_mm[4, 4]).item(), rel=1e-6
    )


def test_sums_over_a_full_picture_are_float64():
    depth_mm = torch.full((1200, 1944), 1542.0)
    pred_mm = depth_mm + 0.125
    found = image_metrics(pred_mm, depth_mm, torch.ones(1200, 1944, dtype=torch.bool))
    assert found["mae_mm"] == 0.125 and found["rmse_mm"] == 0.125


@every_metric
def test_every_metric_knows_unit_direction_and_definition(name):
    metric = PIXEL_METRICS[name]
    assert (
        metric.name == name
        and metric.unit in SCALES
        and metric.better in BEST
        and metric.definition
    )
    assert {"_mm": "mm", "_per_km": "1/km"}.get(
        name[name.rfind("_mm") :] if name.endswith("_mm") else name[-7:], ""
    ) == metric.unit, "a name ends with its unit"
    assert name in BY_DEFINITION, "write its definition above"


@every_metric
def test_the_unit_is_what_it_says(name):
    pred_mm, depth_mm, mask = images()
    in_mm, in_half_mm = (image_metrics(pred_mm * k, depth_mm * k, mask)[name] for k in (1, 2))
    assert in_half_mm == pytest.approx(in_mm * SCALES[PIXEL_METRICS[name].unit], rel=1e-9)


@every_metric
def test_the_order_of_pixels_does_not_matter(name):
    pred_mm, depth_mm, mask = images()
    order = torch.from_numpy(np.random.default_rng(1).permutation(30 * 40))
    shuffled = (t.flatten()[order].view(40, 30) for t in (pred_mm, depth_mm, mask))
    assert image_metrics(*shuffled)[name] == pytest.approx(
        image_metrics(pred_mm, depth_mm, mask)[name], rel=1e-12
    )


@every_metric
def test_a_bin_is_the_metric_of_its_pixels_and_every_pixel_is_in_one(name):
    pred_mm, depth_mm, mask = images()
    depth_mm[0, 0], depth_mm[0, 1], depth_mm[0, 2], mask[0, :3] = (
        BINS_MM[0],
        BINS_MM[-1],
        BINS_MM[1],
        True,
    )  # the ends
    found, counted = binned_metrics(pred_mm, depth_mm, mask), 0
    for low, high in pairwise(BINS_MM):
        inside = (
            mask
            & (depth_mm >= low)
            & ((depth_mm < high) | (depth_mm == BINS_MM[-1]) & (high == BINS_MM[-1]))
        )
        counted += int(inside.sum())
        assert found[f"{name}@{low:g}-{high:g}"] == image_metrics(pred_mm, depth_mm, inside)[name]
    assert counted == int(mask.sum()) and set(found) == set(bin_metrics())
    nothing = binned_metrics(pred_mm, depth_mm, mask & (depth_mm > 750))[f"{name}@250-750"]
    assert math.isnan(nothing)


def test_scale_invariant_ones_do_not_see_a_scale():
    pred_mm, depth_mm, mask = images()
    one, other = (
        image_metrics(pred_mm.double() * k, depth_mm, mask)["silog_kitti"] for k in (1, 3)
    )
    assert one == pytest.approx(other, rel=1e-9)
