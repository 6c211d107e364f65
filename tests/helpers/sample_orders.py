"""Rounds of micro-batches over all ranks, and what is in them."""

import numpy as np

from depthdist.data.sample_order import (
    START,
    Order,
    train_groups,
)


def rounds(plan, start=START, epochs=1, order=None):
    """What all ranks are given at the same time, micro-batch by micro-batch: a list of one group a
    rank for each."""
    order = order or Order(5, (plan.num_samples,))
    return list(
        zip(
            *(train_groups(order, plan, rank, start, epochs) for rank in range(plan.world)),
            strict=True,
        )
    )


def real(groups):
    """The samples that count, of any number of groups."""
    return [slot.sample for group in groups for slot in group.slots if slot.weight]


def steps(done):
    """Rounds cut after each that ends a global batch: (its samples, num_real)."""
    found, now = [], []
    for groups in done:
        now += groups
        if groups[0].last:
            found.append((sorted(real(now)), groups[0].num_real))
            now = []
    assert not now, "an epoch ends with a step"
    return found


def blocked(block, seed=0, weights=(), counts=(40,), sizes=(5, 1, 7, 3, 4, 6, 2, 8, 4)):
    """An Order over shards of those sizes."""
    return Order(seed, counts, weights, block, np.repeat(np.arange(len(sizes)), sizes))
