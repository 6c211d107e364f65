"""Which sample comes when: pure arithmetic, so every claim is counted out over a grid of sizes,
ranks and places to stop at."""

import itertools
import re

import numpy as np
import pytest
import torch
from helpers.sample_orders import blocked, real, rounds, steps

from depthdist.data.sample_order import (
    MAX_REPLACEMENTS,
    Order,
    Position,
    TrainPlan,
    eval_groups,
    train_groups,
)

# -------------------------------------------------------------------------------------------- order


def test_the_order_is_a_pure_function_of_seed_and_epoch():
    orders = {
        (seed, epoch): Order(seed, (46,)).epoch(epoch).tolist()
        for seed in (0, 1, 2**63)
        for epoch in range(4)
    }
    np.random.seed(3)
    torch.manual_seed(3)
    assert all(
        Order(seed, (46,)).epoch(epoch).tolist() == order for (seed, epoch), order in orders.items()
    )
    assert all(sorted(order) == list(range(46)) for order in orders.values())
    assert len(set(map(tuple, orders.values()))) == len(orders), (
        "each seed and each epoch has its own"
    )


def test_the_order_is_the_same_on_any_machine_and_version():
    assert Order(0, (8,)).epoch(0).tolist() == [5, 0, 6, 1, 7, 2, 4, 3] and Order(7, (8,)).epoch(
        3
    ).tolist() == [4, 3, 5, 6, 0, 7, 1, 2]


def test_ten_million_samples_are_shuffled_at_once():
    order = Order(0, (10**7,)).epoch(3)
    assert np.array_equal(np.bincount(order), np.ones(10**7))


# ------------------------------------------------------------------------------------------ weights


def shown(order, epochs):
    """How often those epochs show each sample."""
    return np.bincount(
        np.concatenate([order.epoch(e) for e in epochs]), minlength=sum(order.counts)
    )


def test_a_weight_of_1_is_every_sample_once_and_no_other_order():
    order = Order(3, (8, 5), (1.0, 1.0))
    assert order.num_samples == 13 and order.epoch(2).tolist() == Order(3, (13,)).epoch(2).tolist()


def test_a_weight_of_2_is_every_sample_twice_in_every_epoch():
    order = Order(3, (8, 5), (1.0, 2.0))
    assert order.num_samples == 18
    for epoch in range(5):
        assert shown(order, [epoch]).tolist() == [1] * 8 + [2] * 5


def test_a_weight_of_a_quarter_is_another_quarter_each_epoch_and_all_in_4():
    order = Order(3, (8, 12), (1.0, 0.25))
    for first in (0, 4, 8):
        assert shown(order, range(first, first + 4)).tolist() == [4] * 8 + [1] * 12
    turns = [frozenset(order.epoch(e)[order.epoch(e) >= 8].tolist()) for e in range(8)]
    assert all(len(turn) == 3 for turn in turns) and set(turns[:4]) != set(turns[4:]), (
        "cut anew each time round"
    )


@pytest.mark.parametrize("weights", [(1.0, 0.3, 2.5), (0.1, 0.7, 1.9), (3.0, 1.0, 0.01)])
def test_any_weights_show_all_samples_of_a_dataset_equally_often(weights):
    counts = (7, 10, 3)
    order = Order(1, counts, weights)
    assert order.shares == [max(1, round(w * c)) for w, c in zip(weights, counts)]
    for epochs in range(1, 12):
        often, first = shown(order, range(epochs)), 0
        for share, count in zip(order.shares, counts):
            own = often[first : first + count]
            assert own.sum() == share * epochs and own.max() - own.min() <= 1
            first += count


def test_a_dataset_without_training_samples_may_have_a_weight():
    assert sorted(Order(0, (0, 4), (2.0, 1.0)).epoch(0).tolist()) == [0, 1, 2, 3]


def test_two_datasets_of_one_size_are_chosen_from_independently():
    order = Order(0, (12, 12), (0.5, 0.5)).epoch(0)
    assert set(order[order < 12]) != set(order[order >= 12] - 12)


def test_a_weighted_epoch_mixes_the_datasets():
    order = Order(0, (100, 50), (0.5, 1.0)).epoch(0)
    assert 10 < (order[:50] < 100).sum() < 40


# --------------------------------------------------------------------------------- blocks of shards


@pytest.mark.parametrize("block", [1, 2, 4, 9, 20])
@pytest.mark.parametrize("epoch", range(3))
def test_a_block_order_shows_every_sample_once_and_mixes_at_most_so_many_shards(block, epoch):
    order = blocked(block)
    samples = order.epoch(epoch)
    assert sorted(samples.tolist()) == list(range(40))
    shards = order.shards[samples]
    first = {shard: np.flatnonzero(shards == shard).min() for shard in range(9)}
    end = {shard: np.flatnonzero(shards == shard).max() for shard in range(9)}
    for place in range(40):
        assert sum(first[shard] <= place <= end[shard] for shard in range(9)) <= block


def test_a_block_order_is_a_pure_function_that_differs_by_epoch_seed_and_block():
    found = {
        (s, e, b): tuple(blocked(b, s).epoch(e).tolist())
        for s in (0, 1)
        for e in range(3)
        for b in (1, 2)
    }
    assert all(
        tuple(blocked(b, s).epoch(e).tolist()) == order for (s, e, b), order in found.items()
    )
    assert len(set(found.values())) == len(found)
    partners = {e: frozenset(blocked(2).shards[blocked(2).epoch(e)][:5].tolist()) for e in range(9)}
    assert len(set(partners.values())) > 3, "not always the same shards together"


def test_a_block_order_is_the_same_on_any_machine_and_version():
    assert blocked(2, sizes=(3, 1, 2), counts=(6,)).epoch(1).tolist() == [2, 1, 3, 0, 4, 5]


def test_weights_hold_in_a_block_order_too():
    order = blocked(2, weights=(0.5, 2.0), counts=(26, 14))
    assert shown(order, [0, 1]).tolist() == [1] * 26 + [4] * 14
    for shard in range(9):
        places = np.flatnonzero(order.shards[order.epoch(0)] == shard)
        between = (
            np.unique(order.shards[order.epoch(0)][places.min() : places.max() + 1])
            if len(places)
            else []
        )
        assert len(between) <= 2


# ---------------------------------------------------------------------------- an epoch on all ranks

GRID = [
    (num, world, micro, world * micro * accumulation)
    for num, world, micro, accumulation in itertools.product(
        (1, 2, 7, 8, 9, 46), (1, 2, 3, 4, 16), (1, 2, 3), (1, 2, 4)
    )
]


@pytest.mark.parametrize(("num", "world", "micro", "batch"), GRID)
def test_over_all_ranks_an_epoch_holds_every_sample_once_in_full_batches(num, world, micro, batch):
    plan = TrainPlan(num, batch, micro, world)
    assert plan.accumulation * micro * world == batch and plan.steps_per_epoch == -(-num // batch)
    done = rounds(plan)
    groups = [group for groups in done for group in groups]
    assert (
        sorted(real(groups)) == list(range(num))
        and len(done) == plan.steps_per_epoch * plan.accumulation
    )
    assert all(len(group.slots) == micro and group.epoch == 0 for group in groups)
    assert all(
        slot.weight in (0, 1) and 0 <= slot.sample < num for group in groups for slot in group.slots
    )
    for k, (samples, num_real) in enumerate(steps(done)):
        assert len(samples) == num_real == min(batch, num - k * batch)
    assert [groups[0].last for groups in done] == [
        (k + 1) % plan.accumulation == 0 for k in range(len(done))
    ]


@pytest.mark.parametrize("num", [5, 24, 46, 47])
def test_each_global_batch_is_the_same_set_at_every_world_size(num):
    found = {}
    for world, micro in itertools.product((1, 2, 3, 4, 6, 8, 24), (1, 2, 3)):
        if 24 % (world * micro) == 0:
            found[world, micro] = steps(rounds(TrainPlan(num, 24, micro, world), Position(2), 3))
    assert len(found) > 10 and all(sets == found[1, 1] for sets in found.values())


def test_46_images_in_batches_of_8_are_6_steps_and_the_last_holds_6():
    plan = TrainPlan(46, 8, 1, 4)
    assert (plan.steps_per_epoch, plan.accumulation, [num for _, num in steps(rounds(plan))]) == (
        6,
        2,
        [8, 8, 8, 8, 8, 6],
    )


def test_epochs_follow_one_another_and_each_has_its_own_order():
    plan, order = TrainPlan(9, 4, 1, 2), Order(5, (9,))
    for epoch, done in itertools.groupby(rounds(plan, epochs=3), lambda groups: groups[0].epoch):
        done = list(done)
        assert real(group for groups in done for group in groups) == order.epoch(epoch).tolist()
        assert done[-1][0].position == Position(epoch + 1, 0) and done[-1][0].last
    assert epoch == 2 and rounds(plan, Position(3), 3) == []
    endless = train_groups(order, plan, 0)
    assert [next(endless).epoch for _ in range(600)][-1] == 99


def test_stand_ins_are_the_samples_that_come_next_at_every_world_size():
    order = Order(5, (46,)).epoch(0).tolist()
    for world, micro in ((1, 1), (2, 2), (8, 1)):
        slots = [
            slot
            for groups in rounds(TrainPlan(46, 8, micro, world))
            for group in groups
            for slot in group.slots
        ]
        for slot in slots:
            place = order.index(slot.sample)
            assert slot.stand_ins == (
                tuple((order * 2)[place + 1 : place + 1 + MAX_REPLACEMENTS]) if slot.weight else ()
            )


@pytest.mark.parametrize(
    ("batch", "micro", "world"),
    [(8, 1, 3), (8, 3, 1), (8, 2, 8), (12, 5, 1), (8, 16, 1), (7, 2, 3), (9, 2, 1)],
)
def test_a_batch_that_does_not_divide_names_numbers_that_do(batch, micro, world):
    with pytest.raises(ValueError) as caught:
        TrainPlan(46, batch, micro, world)
    text = str(caught.value)
    assert (
        f"train_batch_size {batch} " in text
        and f"{world} ranks x micro-batches of {micro}" in text
        and "\n" not in text
    )
    ranks = re.search(r": ([\d, ]+) ranks would do", text)
    named = [int(n) for n in ranks[1].split(", ")] if ranks else []
    assert named == [w for w in range(1, batch + 1) if batch % (w * micro) == 0] and (
        named or "no number of ranks would do" in text
    )
    batches = [int(n) for n in re.search(r"or --global-batch ([\d or]+)$", text)[1].split(" or ")]
    for good in [(batch, w) for w in named] + [(b, world) for b in batches]:
        TrainPlan(46, good[0], micro, good[1])
    assert batches and all(abs(b - batch) < micro * world for b in batches)


def test_no_sample_is_no_epoch():
    with pytest.raises(ValueError, match="no training sample"):
        TrainPlan(0, 8, 1, 1)


# --------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("world", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("micro", [1, 2, 4])
@pytest.mark.parametrize("num", [0, 1, 3, 12, 101])
def test_evaluation_gives_every_sample_weight_1_once_and_all_ranks_as_many_batches(
    num, world, micro
):
    ranks = [list(eval_groups(range(num), micro, rank, world)) for rank in range(world)]
    assert sorted(real(group for groups in ranks for group in groups)) == list(range(num))
    assert {len(groups) for groups in ranks} == {-(-num // (world * micro))}
    slots = [slot for groups in ranks for group in groups for slot in group.slots]
    assert all(len(group.slots) == micro for groups in ranks for group in groups)
    assert all(slot.weight == 1 or (slot.weight == 0 and slot.sample == num - 1) for slot in slots)
    assert all(not slot.stand_ins for slot in slots), "what is damaged must count as such"
