"""Sigma: shares inside, sparsification and AUSE against what is known of distributions."""

import numpy as np
import pytest

from depthdist.evaluation.metrics.sigma import (
    REFUSED,
    ause,
    shares_inside,
    sigma_scale,
    sparsification,
)

RANDOM = np.random.default_rng(0)


def test_a_normal_error_needs_no_scale():
    sigma = RANDOM.uniform(2, 50, 200_000)
    error = np.abs(RANDOM.normal(size=len(sigma))) * sigma
    assert sigma_scale(error, sigma) == pytest.approx(1, abs=0.02)
    assert shares_inside(error, sigma) == pytest.approx((0.683, 0.954), abs=0.005)
    assert sigma_scale(error, sigma / 3) == pytest.approx(3, abs=0.06)


def test_of_a_laplace_error_both_shares_are_missed_by_as_much():
    sigma = RANDOM.uniform(2, 50, 200_000)
    error = RANDOM.exponential(size=len(sigma)) * sigma
    one, two = shares_inside(error, sigma_scale(error, sigma) * sigma)
    assert one - 0.6827 == pytest.approx(0.9545 - two, abs=0.005) and 0.70 < one < 0.73


def test_sparsification_by_hand():
    error, sigma = RANDOM.random(101), RANDOM.random(101)
    curve = sparsification(error, sigma)
    order = np.argsort(sigma)
    for share, found in zip(REFUSED, curve):
        left = error[order][: max(1, round((1 - share) * 101))]
        assert found == pytest.approx(left.mean())
    assert curve[0] == pytest.approx(error.mean())


def test_ause_is_0_for_the_errors_own_order_and_largest_for_the_opposite():
    error = RANDOM.random(5000)
    assert ause(error, 3 * error) == pytest.approx(0, abs=1e-12)
    assert ause(error, RANDOM.random(5000)) == pytest.approx(0.95**2 / 2, abs=0.03)
    assert ause(error, -error) > 0.85
    assert ause(np.zeros(10), np.arange(10.0)) == 0


def test_nothing_is_no_error():
    nothing = np.zeros(0)
    assert sigma_scale(nothing, nothing) == 1
    assert np.isnan(shares_inside(nothing, nothing)).all()
    assert sigma_scale(np.zeros(5), np.ones(5)) == 1
