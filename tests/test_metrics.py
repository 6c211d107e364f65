"""Every registered metric: against float64 NumPy by its definition, and what all of them promise."""

import math

import numpy as np
import pytest
import torch

from depthdist.metrics import METRICS, image_metrics


def numpy_abs_rel(p, g):
    return np.mean(np.abs(p - g) / g)


def numpy_delta1(p, g):
    return np.count_nonzero(np.maximum(p / g, g / p) < 1.25) / p.size


def numpy_rmse_mm(p, g):
    return math.sqrt(np.mean((p - g) ** 2))


def numpy_mae_mm(p, g):
    return np.mean(np.abs(p - g))


# By definition, from METRICS.md 2.1: the value, and what a prediction that is 10 % too far everywhere scores at 1000 mm.
BY_DEFINITION = {"abs_rel": (numpy_abs_rel, 0.1), "delta1": (numpy_delta1, 1.0), "rmse_mm": (numpy_rmse_mm, 100.0), "mae_mm": (numpy_mae_mm, 100.0)}
BEST = {"lower": 0.0, "higher": 1.0}
every_metric = pytest.mark.parametrize("name", METRICS)


def images(seed=0, shape=(30, 40)):
    rng = np.random.default_rng(seed)
    depth_mm = rng.uniform(252, 3907, shape).astype(np.float32)
    pred_mm = (depth_mm * rng.uniform(0.7, 1.4, shape)).astype(np.float32)
    return torch.from_numpy(pred_mm), torch.from_numpy(depth_mm), torch.from_numpy(rng.random(shape) < 0.7)


@every_metric
def test_equals_float64_numpy_by_definition(name):
    pred_mm, depth_mm, mask = images()
    p, g = (t.numpy()[mask.numpy()].astype(np.float64) for t in (pred_mm, depth_mm))
    assert image_metrics(pred_mm, depth_mm, mask)[name] == pytest.approx(BY_DEFINITION[name][0](p, g), rel=1e-12)


@every_metric
def test_a_perfect_prediction_is_the_best_value_and_any_other_is_not(name):
    pred_mm, depth_mm, mask = images()
    best = BEST[METRICS[name].better]
    assert image_metrics(depth_mm, depth_mm, mask)[name] == best
    worse = image_metrics(pred_mm, depth_mm, mask)[name]
    assert worse > best if METRICS[name].better == "lower" else worse < best


@every_metric
def test_a_planted_error_of_10_percent_is_found(name):
    depth_mm = torch.full((6, 7), 1000.0)
    found = image_metrics(depth_mm * 1.1, depth_mm, torch.ones(6, 7, dtype=torch.bool))[name]
    assert found == pytest.approx(BY_DEFINITION[name][1], rel=1e-6)


def test_a_planted_scale_is_abs_rel_whatever_the_scene():
    _, depth_mm, mask = images()
    for scale in (0.9, 1.1, 1.24, 1.26):
        found = image_metrics(depth_mm.double() * scale, depth_mm, mask)
        assert found["abs_rel"] == pytest.approx(abs(scale - 1), rel=1e-9) and found["delta1"] == float(scale < 1.25)


def test_delta1_is_strict_and_the_same_both_ways():
    depth_mm, mask = torch.tensor([[1000.0, 1000.0, 1250.0, 1240.0]]), torch.ones(1, 4, dtype=torch.bool)
    pred_mm = torch.tensor([[1250.0, 1240.0, 1000.0, 1000.0]])  # exactly 1.25 does not count
    assert image_metrics(pred_mm, depth_mm, mask)["delta1"] == 0.5


@pytest.mark.parametrize("junk", [math.nan, math.inf, 0.0, -5.0])
def test_a_masked_image_equals_the_cropped_one(junk):
    pred_mm, depth_mm, _ = images()
    mask = torch.zeros(30, 40, dtype=torch.bool)
    mask[3:20, 5:31] = True
    cropped = image_metrics(pred_mm[3:20, 5:31], depth_mm[3:20, 5:31], torch.ones(17, 26, dtype=torch.bool))
    masked = image_metrics(torch.where(mask, pred_mm, junk), torch.where(mask, depth_mm, junk), mask)
    assert masked == cropped and set(masked) == set(METRICS)


def test_an_image_without_a_valid_pixel_has_no_metrics():
    pred_mm, depth_mm, mask = images()
    assert image_metrics(pred_mm, depth_mm, torch.zeros_like(mask)) is None
    mask = torch.zeros_like(mask)
    mask[4, 4] = True
    assert image_metrics(pred_mm, depth_mm, mask)["mae_mm"] == pytest.approx(abs(pred_mm[4, 4] - depth_mm[4, 4]).item(), rel=1e-6)


def test_sums_over_a_full_picture_are_float64():
    depth_mm = torch.full((1200, 1944), 1542.0)
    pred_mm = depth_mm + 0.125
    found = image_metrics(pred_mm, depth_mm, torch.ones(1200, 1944, dtype=torch.bool))
    assert found["mae_mm"] == 0.125 and found["rmse_mm"] == 0.125


@every_metric
def test_every_metric_knows_unit_direction_and_definition(name):
    metric = METRICS[name]
    assert metric.name == name and metric.unit in ("", "mm") and metric.better in BEST and metric.definition
    assert name.endswith("_mm") == (metric.unit == "mm"), "a name ends with its unit"
    assert name in BY_DEFINITION, "write its definition above"


@every_metric
def test_the_unit_is_what_it_says(name):
    pred_mm, depth_mm, mask = images()
    in_mm, in_half_mm = (image_metrics(pred_mm * k, depth_mm * k, mask)[name] for k in (1, 2))
    assert in_half_mm == pytest.approx(in_mm * (2 if METRICS[name].unit == "mm" else 1), rel=1e-12)
