"""Intervals and the paired comparison: how often they are right on drawn data, and hand-worked
cases."""

import math

import numpy as np
import pytest
from scipy import stats

from depthdist.evaluation.metrics.confidence import compare, interval


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    """Skewed, 25 images: the plain normal interval would do worse."""
    rng = np.random.default_rng(0)
    hits = sum(
        low <= 1.0 <= high for low, high in (interval(rng.exponential(1.0, 25)) for _ in range(200))
    )
    assert 0.86 <= hits / 200 <= 0.98


def test_of_normal_values_it_is_near_students():
    values = np.random.default_rng(1).normal(100, 10, 200)
    low, high = stats.t.interval(0.95, 199, values.mean(), stats.sem(values))
    assert interval(values) == pytest.approx((low, high), abs=0.15)


def test_it_is_the_same_each_time_and_whatever_the_order():
    values = np.random.default_rng(2).normal(5, 1, 12)
    assert interval(values) == interval(list(values)) == interval([*values, math.nan])


def test_too_few_or_equal_values():
    assert all(math.isnan(end) for end in interval([1.0, 2.0])) and all(
        math.isnan(end) for end in interval([math.nan] * 9)
    )
    assert interval([3.0] * 12) == (3.0, 3.0)


def test_a_paired_difference_is_found_that_unpaired_ones_hide():
    rng = np.random.default_rng(3)
    images = rng.uniform(50, 500, 12)  # some are harder
    a, b = images + rng.normal(0, 1, 12), images + 5 + rng.normal(0, 1, 12)
    found = compare(a, b)
    assert (
        found.images == 12
        and found.difference == pytest.approx(np.mean(a - b))
        and found.low < -5 < found.high < 0
    )
    assert found.p < 0.001 < stats.ttest_ind(a, b).pvalue, (
        "the images' own spread is forty times the difference"
    )


def test_p_is_the_share_of_sign_flips():
    a, b = [1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]
    assert compare(a, b).p == pytest.approx(2 / 16)  # all plus or all minus, of 16


def test_no_difference_is_called_none_about_as_often_as_it_should():
    rng = np.random.default_rng(4)
    false = sum(compare(rng.normal(size=12), rng.normal(size=12)).p < 0.05 for _ in range(200))
    assert false / 200 < 0.1
    assert compare([1.0] * 5, [1.0] * 5).p == 1.0


def test_images_without_a_value_are_left_out_in_pairs():
    found = compare([1.0, math.nan, 3.0, 4.0, 6.0], [0.0, 1.0, math.nan, 1.0, 2.0])
    assert found.images == 3 and found.difference == pytest.approx((1 + 3 + 4) / 3)
    assert math.isnan(compare([1.0], [2.0]).p) and compare([1.0], [2.0]).difference == -1
