"""Schedules against their closed forms; what counts as better.

Averaged weights against the sum that defines them.
"""

import math

import pytest
import torch

from depthdist.evaluation.metrics.pixels import PIXEL_METRICS
from depthdist.training.schedule import ScheduleSettings, is_better, lr_factor
from depthdist.training.weight_average import Ema

SCHEDULES = ("linear", "cosine", "constant")


def rates(total, **settings):
    return [lr_factor(ScheduleSettings(**settings), step, total) for step in range(total)]


# ------------------------------------------------------------------------------------ learning rate


def test_the_default_is_exactly_the_recipes_line_to_0():
    assert rates(90) == [max(0.0, 1 - step / 90) for step in range(90)]
    assert 5e-5 * sum(rates(90)) == pytest.approx(2.275e-3)


def test_half_a_cosine_by_its_formula():
    found = rates(90, schedule="cosine")
    assert (
        found == pytest.approx([math.cos(math.pi * step / 180) ** 2 for step in range(90)])
        and found[0] == 1
        and found[45] == pytest.approx(0.5)
    )


def test_constant_is_constant():
    assert rates(7, schedule="constant") == [1.0] * 7


def test_warm_up_rises_in_equal_parts_and_the_decay_takes_the_rest():
    assert rates(12, warmup=3) == pytest.approx(
        [1 / 4, 2 / 4, 3 / 4] + [1 - k / 9 for k in range(9)]
    )
    assert rates(12, warmup=3, schedule="constant") == pytest.approx(
        [1 / 4, 2 / 4, 3 / 4] + [1.0] * 9
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 5, 20])
@pytest.mark.parametrize("total", [1, 2, 20, 91])
def test_every_rate_is_above_0_and_at_most_1_within_the_run_and_falls_after_the_warm_up(
    schedule, warmup, total
):
    found = rates(total, schedule=schedule, warmup=warmup)
    assert all(0 < value <= 1 for value in found)
    rising, falling = found[: warmup + 1], found[warmup:]
    assert rising == sorted(set(rising)) and falling == sorted(falling, reverse=True)
    assert warmup >= total or found[warmup] == 1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rate_is_never_negative_after_the_end(schedule):
    expected = 1.0 if schedule == "constant" else 0.0
    assert [
        lr_factor(ScheduleSettings(schedule=schedule, warmup=2), step, 10)
        for step in (10, 11, 1000)
    ] == [expected] * 3
    assert all(
        0 <= lr_factor(ScheduleSettings(schedule=schedule, warmup=10), step, 10) <= 1
        for step in (10, 11, 1000)
    ), "nor where it was all warm-up"


# ----------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"schedule": "cosine", "warmup": 10, "patience": 3, "ema": 0.999},
        *({"best_by": name} for name in ["loss", *PIXEL_METRICS]),
    ],
)
def test_sensible_settings_have_no_problems(settings):
    assert ScheduleSettings(**settings).problems() == []


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"warmup": -1}, "--warmup is -1: expected >= 0"),
        ({"patience": -2}, "--patience is -2: expected >= 0"),
        ({"ema": 1.0}, "--ema is 1.0"),
        ({"ema": -0.1}, "--ema is -0.1"),
        ({"ema": math.nan}, "--ema is nan"),
        ({"best_by": "absrel"}, "did you mean abs_rel?"),
        ({"best_by": "images"}, f"expected one of loss, {', '.join(PIXEL_METRICS)}"),
    ],
)
def test_what_is_wrong_with_a_setting_is_said(settings, said):
    (problem,) = ScheduleSettings(**settings).problems()
    assert said in problem


def test_all_problems_are_told_at_once():
    assert len(ScheduleSettings(warmup=-1, patience=-1, best_by="x", ema=2).problems()) == 4


# ------------------------------------------------------------------------------------------- better


@pytest.mark.parametrize("name", ["loss", *PIXEL_METRICS])
def test_better_follows_the_direction_of_the_metric(name):
    higher = name in PIXEL_METRICS and PIXEL_METRICS[name].better == "higher"
    assert is_better(name, 0.9, 0.5) is higher and is_better(name, 0.5, 0.9) is not higher
    assert is_better(name, 0.5, 0.5) is False and is_better(name, 0.5, None) is True


@pytest.mark.parametrize("name", ["loss", *PIXEL_METRICS])
@pytest.mark.parametrize("new", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("old", [None, 0.5])
def test_what_is_not_finite_is_never_better(name, new, old):
    assert is_better(name, new, old) is False


# --------------------------------------------------------------------------------- averaged weights


def trajectory(num, shape=(3, 4)):
    generator = torch.Generator().manual_seed(0)
    return [
        {"a": torch.randn(shape, generator=generator), "b": torch.randn((), generator=generator)}
        for _ in range(num)
    ]


def averaged(steps, decay):
    ema = Ema(decay)
    for masters in steps:
        ema.update(masters)
    return ema


@pytest.mark.parametrize("decay", [0.1, 0.9, 0.999])
@pytest.mark.parametrize("num", [1, 2, 90])
def test_the_average_is_the_weighted_sum_that_defines_it(decay, num):
    steps = trajectory(num)
    weights = torch.tensor([decay ** (num - i) for i in range(1, num + 1)], dtype=torch.float64)
    for name, found in averaged(steps, decay).weights.items():
        seen = torch.stack([masters[name].double() for masters in steps])
        expected = (weights.view(-1, *[1] * found.dim()) * seen).sum(0) / weights.sum()
        assert found.dtype == torch.float32 and torch.allclose(
            found.double(), expected, rtol=1e-5, atol=1e-6
        )


def test_the_first_average_is_the_first_weights_and_equal_weights_stay():
    first = trajectory(1)[0]
    ema = averaged([first], 0.99)
    assert all(torch.equal(ema.weights[name], x) for name, x in first.items())
    ema = averaged([{"a": torch.full((2,), 0.1)}] * 50, 0.99)
    assert torch.equal(ema.weights["a"], torch.full((2,), 0.1))


def test_the_average_does_not_follow_later_changes_of_what_it_was_given():
    masters = {"a": torch.zeros(2, requires_grad=True)}
    ema = averaged([masters], 0.5)
    with torch.no_grad():
        masters["a"] += 1
    assert torch.equal(ema.weights["a"], torch.zeros(2)) and not ema.weights["a"].requires_grad
    ema.update(masters)
    assert (
        ema.weights["a"].tolist() == pytest.approx([2 / 3, 2 / 3])
        and not ema.weights["a"].requires_grad
    )
    assert torch.equal(masters["a"], torch.ones(2)), "nor does it change it"


@pytest.mark.parametrize("stop", [1, 7, 19])
def test_going_on_from_a_state_is_bit_identical(stop):
    steps = trajectory(20, shape=(1000, 37))
    whole, begun, resumed = averaged(steps, 0.9), averaged(steps[:stop], 0.9), Ema(0.9)
    resumed.load(begun.state())
    begun.update(steps[0])  # what was loaded is of its own
    for masters in steps[stop:]:
        resumed.update(masters)
    assert resumed.updates == 20 and all(
        torch.equal(x, resumed.weights[name]) for name, x in whole.weights.items()
    )


def test_before_the_first_update_there_are_no_weights_and_the_state_says_so():
    ema = Ema(0.9)
    ema.load(Ema(0.9).state())
    assert ema.weights == {} and ema.updates == 0
