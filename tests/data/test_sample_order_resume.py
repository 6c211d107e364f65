"""Resuming the order of samples: tokens, and stops at any position."""

import itertools
import json
from collections import Counter

import pytest
from helpers.sample_orders import blocked, real, rounds, steps

from depthdist.data.sample_order import (
    Position,
    TrainPlan,
)

DATA = "0123456789abcdef" * 4  # a sha256


SHAPES = [(1, 1), (2, 1), (1, 3), (2, 2), (3, 1), (2, 6), (12, 1)]  # ranks, micro-batch


BATCH = 12  # all of them divide it


def stops(plan, start, epochs):
    """Each way to stop that run: where to go on, and what was done by then."""
    done = rounds(plan, start, epochs)
    for k, groups in enumerate(done, 1):
        assert len({group.position for group in groups}) == 1, "one place, whichever rank is asked"
        yield groups[0].position, done[:k]


def samples_of(done, epoch):
    return [sample for groups in done for sample in real(groups) if groups[0].epoch == epoch]


@pytest.mark.parametrize("num", [5, 12, 13, 25])
@pytest.mark.parametrize(("world", "micro"), SHAPES)
def test_stopped_anywhere_and_gone_on_with_in_any_shape_an_epoch_is_every_sample_once(
    num, world, micro
):
    for position, before in stops(TrainPlan(num, BATCH, micro, world), Position(), 2):
        for (ranks, size), batch in itertools.product(
            [*SHAPES[::2], (world, micro)], (BATCH, 2 * BATCH)
        ):
            after = rounds(TrainPlan(num, batch, size, ranks), position, 2)
            for epoch in (0, 1):
                assert sorted(samples_of(before, epoch) + samples_of(after, epoch)) == list(
                    range(num)
                )


@pytest.mark.parametrize("num", [5, 12, 13, 25])
@pytest.mark.parametrize(("world", "micro"), SHAPES)
def test_what_is_left_of_the_steps_is_what_a_run_that_was_never_stopped_does(num, world, micro):
    plan = TrainPlan(num, BATCH, micro, world)
    whole = steps(rounds(plan, epochs=2))
    for (epoch, consumed), before in stops(plan, Position(), 2):
        begun = set(
            samples_of(before, epoch)[consumed // BATCH * BATCH :]
        )  # of a step that was not finished
        left = whole[epoch * plan.steps_per_epoch + consumed // BATCH :]
        first = [(sorted(set(samples) - begun), num_real) for samples, num_real in left[:1]]
        for ranks, size in SHAPES:
            assert (
                steps(rounds(TrainPlan(num, BATCH, size, ranks), Position(epoch, consumed), 2))
                == first + left[1:]
            )


@pytest.mark.parametrize("num", [7, 13, 24])
def test_stopped_twice_it_is_still_every_sample_once(num):
    for (world, micro), (ranks, size) in itertools.permutations([(1, 1), (2, 2), (12, 1)], 2):
        for position, before in stops(TrainPlan(num, BATCH, micro, world), Position(), 2):
            for again, between in stops(TrainPlan(num, BATCH, size, ranks), position, 2):
                after = rounds(TrainPlan(num, BATCH, 1, 3), again, 2)
                for epoch in (0, 1):
                    assert Counter(samples_of([*before, *between, *after], epoch)) == Counter(
                        range(num)
                    )


def test_an_epochs_end_is_the_next_ones_beginning():
    plan = TrainPlan(10, 4, 1, 2)
    assert rounds(plan, Position(1, 10), 3) == rounds(plan, Position(2, 0), 3)
    ends = [groups[0].position for groups in rounds(plan)]
    assert ends == [
        (0, 2),
        (0, 4),
        (0, 6),
        (0, 8),
        (1, 0),
        (1, 0),
    ], "what only fills the last step needs no going back for"


def test_a_position_goes_on_in_a_weighted_block_order_as_well():
    order = blocked(2, weights=(0.5, 2.0), counts=(26, 14))
    plan = TrainPlan(order.num_samples, 8, 1, 2)
    for k, groups in enumerate(whole := rounds(plan, epochs=2, order=order), 1):
        for world in (1, 4):
            after = rounds(TrainPlan(order.num_samples, 8, 1, world), groups[0].position, 2, order)
            for epoch in (0, 1):
                assert sorted(samples_of(whole[:k], epoch) + samples_of(after, epoch)) == sorted(
                    order.epoch(epoch).tolist()
                )


@pytest.mark.parametrize("position", [Position(), Position(14, 40), Position(10**7, 10**7)])
@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_a_token_is_small_json_that_comes_back(position, seed):
    text = json.dumps(position.token(DATA, seed))
    assert len(text) < 300 and Position.from_token(json.loads(text), DATA, seed, 10**7) == position


def test_a_token_holds_nothing_of_ranks_and_batches():
    assert Position(1, 2).token(DATA, 3) == {
        "v": 1,
        "data": DATA[:16],
        "seed": 3,
        "epoch": 1,
        "consumed": 2,
    }


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"data": "f" * 16},
            "the data changed: the position is one in ffffffffffffffff, this is 0123456789abcdef",
        ),
        ({"data": None}, "the data changed"),
        ({"seed": 8}, "in the order of seed 8, this run's is 7"),
        ({"v": 2}, "expected version 1 with consumed, data, epoch, seed, v"),
        ({"v": None}, "expected version 1"),
        ({"rank": 0}, "expected version 1"),
        ({"consumed": 47}, "epoch 2, sample 47; expected 0 .. 46"),
        ({"consumed": -1}, "sample -1; expected"),
        ({"consumed": 8.0}, "sample 8.0; expected"),
        ({"consumed": True}, "sample True; expected"),
        ({"epoch": -1}, "epoch -1"),
        ({"epoch": "2"}, "epoch 2"),
    ],
)
def test_a_token_that_does_not_fit_is_refused_with_the_reason(changes, told):
    token = Position(2, 40).token(DATA, 7)
    assert Position.from_token(token, DATA, 7, 46) == (2, 40)
    with pytest.raises(ValueError) as caught:
        Position.from_token({**token, **changes}, DATA, 7, 46)
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "garbage", [None, {}, [], 3, "token", {"v": 1}, {"epoch": 0, "consumed": 0}]
)
def test_what_is_no_token_is_refused(garbage):
    with pytest.raises(ValueError, match="expected version 1 with consumed, data, epoch, seed, v"):
        Position.from_token(garbage, DATA, 7, 46)
