"""Which sample comes when: arithmetic on counts and a seed, the same on every rank, machine and
number of threads.

    order = Order(seed=0, counts=(46,))  # order.epoch(3): the samples of epoch 3, one after another
    plan = TrainPlan(num_samples=46, global_batch=8, micro_batch=1, world=2)
    for group in train_groups(order, plan, rank=0, start=Position(epoch=3, consumed=16), epochs=15):
    ... for group in eval_groups(num_samples=12, micro_batch=1, rank=0, world=2): ...

The global batch is the same at every world size: each rank takes its part of it, micro-batch by
micro-batch, so what all ranks have worked on is always a beginning of the order, and one number
says where to go on. Every rank has the same number of micro-batches, always full: what is short at
an epoch's end is filled with slots of weight 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from depthdist.data.random_streams import epoch_stream, shuffle_stream

MAX_REPLACEMENTS = 8  # samples that are tried in place of a damaged one


class Position(NamedTuple):
    """Where training goes on: `consumed` samples of that epoch's order are behind it."""

    epoch: int = 0
    consumed: int = 0

    def token(self, data: str, seed: int) -> dict[str, Any]:
        """All that a restart needs, on any number of ranks; under 300 bytes of JSON.

        `data` names the dataset's content.
        """
        return {
            "v": 1,
            "data": data[:16],
            "seed": seed,
            "epoch": self.epoch,
            "consumed": self.consumed,
        }

    @classmethod
    def from_token(cls, token: Any, data: str, seed: int, num_samples: int) -> Position:
        """The position in a token. raises ValueError: not a token, of other data or another seed,
        beyond the epoch's end
        """
        names = {"v", "data", "seed", "epoch", "consumed"}
        if not isinstance(token, dict) or token.keys() != names or token["v"] != 1:
            raise ValueError(
                f"the position in the data is {token!r}; expected version 1 with"
                f" {', '.join(sorted(names))}"
            )
        if token["data"] != data[:16]:
            raise ValueError(
                f"the data changed: the position is one in {token['data']}, this is {data[:16]};"
                " begin anew, or give back the old data"
            )
        if token["seed"] != seed:
            raise ValueError(
                f"the position is one in the order of seed {token['seed']}, this run's is {seed}"
            )
        numbers = token["epoch"], token["consumed"]
        if (
            not all(type(n) is int for n in numbers)
            or token["epoch"] < 0
            or not 0 <= token["consumed"] <= num_samples
        ):
            raise ValueError(
                f"the position is epoch {token['epoch']}, sample {token['consumed']}; expected 0 .."
                f" {num_samples}"
            )
        return cls(*numbers)


class BatchSlot(NamedTuple):
    """One place in a batch: the sample's number in its split, and 1, or 0 where it only fills the
    batch.

    stand_ins  the samples that come next in the order, for where this one is damaged
    """

    sample: int
    weight: float
    stand_ins: tuple[int, ...] = ()


class MicroBatchPlan(NamedTuple):
    """One micro-batch to be.

    position  where training goes on after it;  num_real  real samples of its global batch;  last
              it ends that batch
    """

    slots: list[BatchSlot]
    epoch: int = 0
    position: Position = Position()
    num_real: int = 0
    last: bool = False


# -------------------------------------------------------------------------------------------- order


@dataclass(frozen=True)
class Order:
    """The order of every epoch: a pure function of (seed, epoch).

    counts   samples of each dataset; a sample's number counts through all of them
    weights  how often an epoch shows each sample of a dataset, 1 by default; 0.25 shows a quarter
             (in whole samples), another one each epoch, so all of them in about 4
    block    0: shuffle all samples. M: shuffle the shards, then the samples of M shards at a time,
             for shards that are far away
    shards   with block: (N,) the shard of each sample
    """

    seed: int
    counts: tuple[int, ...]
    weights: tuple[float, ...] = ()
    block: int = 0
    shards: np.ndarray | None = field(default=None, compare=False)

    @property
    def shares(self) -> list[int]:
        """Samples of each dataset that an epoch shows."""
        weights = self.weights or (1.0,) * len(self.counts)
        return [
            max(1, round(weight * count)) if count else 0
            for weight, count in zip(weights, self.counts)
        ]

    @property
    def num_samples(self) -> int:
        """Of an epoch."""
        return sum(self.shares)

    def epoch(self, epoch: int) -> np.ndarray:
        """(num_samples,) the samples of that epoch in their order."""
        random = epoch_stream(self.seed, epoch)
        chosen = self._chosen(epoch)
        if not self.block:
            shuffled = random.permutation(self.num_samples)
            return shuffled if chosen is None else chosen[shuffled]
        chosen = np.arange(self.num_samples) if chosen is None else chosen
        _, shard = np.unique(self.shards[chosen], return_inverse=True)
        place = random.permutation(shard.max() + 1)
        return chosen[np.lexsort((random.random(len(chosen)), place[shard] // self.block))]

    def _chosen(self, epoch: int) -> np.ndarray | None:
        """The samples that take part, unshuffled; None where that is every sample once."""
        if self.shares == list(self.counts):
            return None
        parts, first = [], 0
        for number, (share, count) in enumerate(zip(self.shares, self.counts)):
            begin, end = (
                epoch * share,
                (epoch + 1) * share,
            )  # of an endless row of shuffles, each of the whole dataset
            for turn in range(begin // count, -(-end // count)) if count else ():
                row = shuffle_stream(self.seed, number, turn).permutation(count)
                parts.append(first + row[max(0, begin - turn * count) : end - turn * count])
            first += count
        return np.concatenate(parts)


# ----------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class TrainPlan:
    """How an epoch is cut: global batches, ranks, micro-batches.

    ValueError when the numbers do not divide.
    """

    num_samples: int
    global_batch: int
    micro_batch: int
    world: int

    def __post_init__(self):
        together = self.micro_batch * self.world
        if self.num_samples < 1:
            raise ValueError("there is no training sample")
        if self.global_batch % together:
            worlds = [
                w
                for w in range(1, self.global_batch + 1)
                if self.global_batch % (w * self.micro_batch) == 0
            ]
            low = self.global_batch // together * together
            raise ValueError(
                f"train_batch_size {self.global_batch} cannot be cut into {self.world} ranks x"
                f" micro-batches of {self.micro_batch}:"
                f" {', '.join(map(str, worlds)) or 'no number of'} ranks would do, or"
                f" train_batch_size {f'{low} or ' if low else ''}{low + together}"
            )

    @property
    def accumulation(self) -> int:
        """Micro-batches a rank does for one optimizer step."""
        return self.global_batch // (self.micro_batch * self.world)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps; the last one may hold fewer real samples."""
        return -(-self.num_samples // self.global_batch)

    def groups(
        self, order: np.ndarray, epoch: int, rank: int, consumed: int = 0
    ) -> Iterator[MicroBatchPlan]:
        """This rank's micro-batches of one epoch, from that sample on.

        `consumed` may lie anywhere, also inside a global batch.
        """
        while consumed < self.num_samples:
            start = consumed // self.global_batch * self.global_batch
            end = min(self.num_samples, start + self.global_batch)
            together = self.micro_batch * self.world
            for first in range(consumed, start + self.global_batch, together):
                places = range(
                    first + rank * self.micro_batch, first + (rank + 1) * self.micro_batch
                )
                slots = [self._slot(order, place, end) for place in places]
                after = min(end, first + together)
                position = (
                    Position(epoch + 1) if after == self.num_samples else Position(epoch, after)
                )
                yield MicroBatchPlan(
                    slots,
                    epoch,
                    position,
                    end - start,
                    first + together >= start + self.global_batch,
                )
            consumed = end

    def _slot(self, order: np.ndarray, place: int, end: int) -> BatchSlot:
        if place >= end:
            return BatchSlot(int(order[end - 1]), 0.0)
        return BatchSlot(
            int(order[place]),
            1.0,
            tuple(
                order[(place + k) % self.num_samples].item() for k in range(1, MAX_REPLACEMENTS + 1)
            ),
        )


def train_groups(
    order: Order,
    plan: TrainPlan,
    rank: int,
    start: Position = Position(),
    epochs: int | None = None,
) -> Iterator[MicroBatchPlan]:
    """A rank's micro-batches from `start` on to the end of that many epochs, or for ever."""
    epoch, consumed = start
    while epochs is None or epoch < epochs:
        yield from plan.groups(order.epoch(epoch), epoch, rank, consumed)
        epoch, consumed = epoch + 1, 0


# --------------------------------------------------------------------------------------- evaluation


def eval_groups(
    num_samples: int, micro_batch: int, rank: int, world: int
) -> Iterator[MicroBatchPlan]:
    """A rank's batches, unshuffled: over all ranks every sample has weight 1 exactly once, and all
    have as many batches.
    """
    for batch in range(-(-num_samples // (world * micro_batch))):
        first = (batch * world + rank) * micro_batch
        yield MicroBatchPlan(
            [
                BatchSlot(i, 1.0) if i < num_samples else BatchSlot(num_samples - 1, 0.0)
                for i in range(first, first + micro_batch)
            ]
        )
