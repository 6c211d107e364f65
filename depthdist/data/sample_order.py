"""The order of samples: arithmetic on counts and a seed, the same on every rank and machine.

    order = Order(seed=0, counts=(46,))  # order.epoch(3): the samples of epoch 3, one after another
    plan = TrainPlan(num_samples=46, global_batch=8, micro_batch=1, world=2)
    for group in train_groups(order, plan, rank=0, start=Position(epoch=3, consumed=16), epochs=15):
        ...
    for group in eval_groups(range(12), micro_batch=1, rank=0, world=2):
        ...

It depends neither on the number of threads nor on the world size. The global batch is the same at
every world size: each rank takes its part of it, micro-batch by micro-batch, so what all ranks have
processed is always a beginning of the order, and one number says where to resume. Every rank has
the same number of micro-batches, always full: what is missing at an epoch's end is filled with
slots of weight 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from depthdist.data.random_streams import epoch_stream, shuffle_stream

MAX_REPLACEMENTS = 8  # samples that are tried in place of a damaged one


class Position(NamedTuple):
    """Where training resumes: after `consumed` samples of that epoch's order."""

    epoch: int = 0
    consumed: int = 0

    def token(self, data: str, seed: int) -> dict[str, Any]:
        """Return all that a restart needs, on any number of ranks; under 300 bytes of JSON.

        data  names the dataset's content
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
        """Return the position in a token.

        raises ValueError: not a token, of other data or another seed, beyond the epoch's end
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
        epoch, consumed = token["epoch"], token["consumed"]
        are_integers = type(epoch) is int and type(consumed) is int
        if not are_integers or epoch < 0 or not 0 <= consumed <= num_samples:
            raise ValueError(
                f"the position is epoch {epoch}, sample {consumed}; expected 0 .. {num_samples}"
            )
        return cls(epoch, consumed)


START = Position()


class BatchSlot(NamedTuple):
    """One place in a batch.

    sample     the sample's number in its split
    weight     1, or 0 where it only fills the batch
    stand_ins  the samples that come next in the order, to replace this one if it is damaged
    """

    sample: int
    weight: float
    stand_ins: tuple[int, ...] = ()


class MicroBatchPlan(NamedTuple):
    """One micro-batch to be loaded.

    position  where training resumes after it
    num_real  number of samples of weight 1 in its global batch
    last      whether it ends that batch
    """

    slots: list[BatchSlot]
    epoch: int = 0
    position: Position = START
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
             for remote shards
    shards   with block: (N,) the shard of each sample
    """

    seed: int
    counts: tuple[int, ...]
    weights: tuple[float, ...] = ()
    block: int = 0
    shards: np.ndarray | None = field(default=None, compare=False)

    @property
    def shares(self) -> list[int]:
        """Number of samples of each dataset that an epoch shows."""
        weights = self.weights or (1.0,) * len(self.counts)
        return [
            max(1, round(weight * count)) if count else 0
            for weight, count in zip(weights, self.counts)
        ]

    @property
    def num_samples(self) -> int:
        """Number of samples of an epoch."""
        return sum(self.shares)

    def epoch(self, epoch: int) -> np.ndarray:
        """Return (num_samples,) the samples of that epoch in their order."""
        random = epoch_stream(self.seed, epoch)
        chosen = self._chosen(epoch)
        if not self.block:
            shuffled = random.permutation(self.num_samples)
            return shuffled if chosen is None else chosen[shuffled]
        assert self.shards is not None, "an order of blocks needs the shard of each sample"
        if chosen is None:
            chosen = np.arange(self.num_samples)
        _, shard = np.unique(self.shards[chosen], return_inverse=True)
        place = random.permutation(shard.max() + 1)
        return chosen[np.lexsort((random.random(len(chosen)), place[shard] // self.block))]

    def _chosen(self, epoch: int) -> np.ndarray | None:
        """Return the samples that take part, unshuffled; None if that is every sample once.

        Of each dataset an epoch takes the next samples of an endless row of shuffles, each of the
        whole dataset.
        """
        if self.shares == list(self.counts):
            return None
        parts = []
        first = 0
        for number, (share, count) in enumerate(zip(self.shares, self.counts)):
            begin = epoch * share
            end = (epoch + 1) * share
            for turn in range(begin // count, -(-end // count)) if count else ():
                shuffled = shuffle_stream(self.seed, number, turn).permutation(count)
                row = shuffled[max(0, begin - turn * count) : end - turn * count]
                parts.append(first + row)
            first += count
        return np.concatenate(parts)


# ----------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class TrainPlan:
    """How an epoch is cut: global batches, ranks, micro-batches.

    Raises ValueError if the numbers do not divide.
    """

    num_samples: int
    global_batch: int
    micro_batch: int
    world: int

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError("there is no training sample")
        if self.global_batch % self._num_together:
            raise ValueError(self._advice())

    @property
    def _num_together(self) -> int:
        """Number of samples that all ranks process at once."""
        return self.micro_batch * self.world

    def _advice(self) -> str:
        """Return what would divide."""
        together = self._num_together
        worlds = [
            str(world)
            for world in range(1, self.global_batch + 1)
            if self.global_batch % (world * self.micro_batch) == 0
        ]
        low = self.global_batch // together * together
        batches = f"{low} or {low + together}" if low else str(together)
        return (
            f"train_batch_size {self.global_batch} cannot be cut into {self.world} ranks x"
            f" micro-batches of {self.micro_batch}: {', '.join(worlds) or 'no number of'} ranks"
            f" would do, or --global-batch {batches}"
        )

    @property
    def accumulation(self) -> int:
        """Micro-batches a rank does for one optimizer step."""
        return self.global_batch // self._num_together

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps; the last one may hold fewer real samples."""
        return -(-self.num_samples // self.global_batch)

    def groups(
        self, order: np.ndarray, epoch: int, rank: int, consumed: int = 0
    ) -> Iterator[MicroBatchPlan]:
        """Yield this rank's micro-batches of one epoch, from sample `consumed` of the order on.

        `consumed` may lie anywhere, also inside a global batch.
        """
        while consumed < self.num_samples:
            start = consumed // self.global_batch * self.global_batch
            end = min(self.num_samples, start + self.global_batch)
            for first in range(consumed, start + self.global_batch, self._num_together):
                first_of_rank = first + rank * self.micro_batch
                places = range(first_of_rank, first_of_rank + self.micro_batch)
                after = min(end, first + self._num_together)
                ends_epoch = after == self.num_samples
                yield MicroBatchPlan(
                    slots=[self._slot(order, place, end) for place in places],
                    epoch=epoch,
                    position=Position(epoch + 1) if ends_epoch else Position(epoch, after),
                    num_real=end - start,
                    last=first + self._num_together >= start + self.global_batch,
                )
            consumed = end

    def _slot(self, order: np.ndarray, place: int, end: int) -> BatchSlot:
        if place >= end:
            return BatchSlot(int(order[end - 1]), 0.0)
        following = range(place + 1, place + 1 + MAX_REPLACEMENTS)
        stand_ins = tuple(order[other % self.num_samples].item() for other in following)
        return BatchSlot(int(order[place]), 1.0, stand_ins)


def train_groups(
    order: Order,
    plan: TrainPlan,
    rank: int,
    start: Position = START,
    epochs: int | None = None,
) -> Iterator[MicroBatchPlan]:
    """Yield a rank's micro-batches from `start` to the end of that many epochs, or for ever."""
    epoch, consumed = start
    while epochs is None or epoch < epochs:
        yield from plan.groups(order.epoch(epoch), epoch, rank, consumed)
        epoch += 1
        consumed = 0


# --------------------------------------------------------------------------------------- evaluation


def evenly_spread(num: int, count: int) -> list[int]:
    """Return at most `count` of the numbers 0 .. num - 1, evenly spread."""
    if num <= count:
        return list(range(num))
    return [k * num // count for k in range(count)]


def eval_groups(
    samples: Sequence[int], micro_batch: int, rank: int, world: int
) -> Iterator[MicroBatchPlan]:
    """Yield a rank's batches of these samples, in their order.

    Over all ranks every sample has weight 1 exactly once, and all ranks have as many batches.
    """
    num_samples = len(samples)
    for batch in range(-(-num_samples // (world * micro_batch))):
        first = (batch * world + rank) * micro_batch
        yield MicroBatchPlan(
            [
                BatchSlot(samples[i], 1.0) if i < num_samples else BatchSlot(samples[-1], 0.0)
                for i in range(first, first + micro_batch)
            ]
        )
