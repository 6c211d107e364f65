"""Means of values that are spread over ranks."""

import math
import pickle
import random

import pytest

from depthdist.evaluation.exact_sums import ExactSum, MetricSums, mean_of_sums
from depthdist.evaluation.scoring import mean


def summed(values):
    total = ExactSum()
    for value in values:
        total.add(value)
    return total


@pytest.mark.parametrize("num_ranks", [1, 2, 7, 64])
def test_the_mean_is_that_of_one_process_to_the_last_bit(num_ranks):
    draw = random.Random(num_ranks)
    values = [draw.uniform(-1, 1) * 10 ** draw.uniform(-12, 12) for _ in range(3000)]
    values[5], values[70] = math.nan, -0.0
    shuffled = draw.sample(values, len(values))
    found = mean_of_sums([summed(shuffled[rank::num_ranks]) for rank in range(num_ranks)])
    assert found == mean(values)


def test_what_is_no_number_does_not_count_and_one_infinity_is_all():
    assert math.isnan(mean_of_sums([summed([math.nan]), summed([])]))
    assert mean_of_sums([summed([math.nan, 3.0]), summed([])]) == 3.0
    assert mean_of_sums([summed([-math.inf, 3.0]), summed([1.0])]) == mean([-math.inf, 3.0, 1.0])


def test_a_rank_sends_no_more_for_more_images():
    sizes = []
    for count in (100, 10_000):
        draw = random.Random(0)
        sums = MetricSums()
        for _ in range(count):
            sums.add({f"metric{i}": draw.expovariate(1 / 50) for i in range(20)})
        sizes.append(len(pickle.dumps(sums)))
    assert sizes[1] < 1.3 * sizes[0] < 4000


def test_a_rank_without_images_changes_nothing():
    some = MetricSums()
    some.add({"loss": 0.5, "rmse_mm": math.nan})
    found = MetricSums.means([MetricSums(), some])
    assert found["loss"] == 0.5 and math.isnan(found["rmse_mm"])
