"""Some training samples of a dataset: what --overfit learns by heart, or all but a fold.

few = FewSamples.of(dataset, count=4, num_shown=200)  # an epoch shows each of 4 samples 50 times
few.count("train"), few.count("val")           # 4, 4: it is scored on what it learns from
rest = FewSamples.without(dataset, range(0, 46, 2))  # the others, once an epoch, without validation
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from depthdist.data.dataset import Dataset
from depthdist.data.sample_order import Order, evenly_spread
from depthdist.shards.index import Index, SampleRef


@dataclass(frozen=True)
class FewSamples(Dataset):
    """Some training samples of a dataset, which are its splits train and, if scored, val.

    chosen   their numbers in the whole training split
    repeats  how often an epoch shows each
    scored   whether they are the validation split as well; else there is none
    """

    chosen: tuple[int, ...] = ()
    repeats: int = 1
    scored: bool = True

    @classmethod
    def of(cls, dataset: Dataset, count: int, num_shown: int) -> FewSamples:
        """Return `count` training samples, evenly spread; an epoch shows at least `num_shown`.

        raises ValueError where there are fewer
        """
        num_train = dataset.count("train")
        if count > num_train:
            raise ValueError(
                f"--overfit is {count}: {dataset.place} has {num_train} training samples"
            )
        chosen = tuple(evenly_spread(num_train, count))
        return cls(dataset.parts, dataset.weights, dataset.block, chosen, -(-num_shown // count))

    @classmethod
    def without(cls, dataset: Dataset, left_out: Iterable[int]) -> FewSamples:
        """Return the training samples that are not in `left_out`, without a validation split."""
        chosen = sorted(set(range(dataset.count("train"))) - set(left_out))
        return cls(dataset.parts, dataset.weights, dataset.block, tuple(chosen), scored=False)

    @property
    def splits(self) -> list[str]:
        """Names of the splits."""
        return ["train", "val"] if self.scored else ["train"]

    @property
    def sha256(self) -> str:
        """Hash of everything that decides which sample comes when and what is in it."""
        content = repr(
            [super().sha256, self.chosen, self.repeats, *([] if self.scored else ["fold"])]
        )
        return hashlib.sha256(content.encode()).hexdigest()

    def count(self, split: str) -> int:
        """Return the number of samples, the same in both splits."""
        return len(self.chosen)

    def find(self, split: str, number: int) -> tuple[Index, SampleRef]:
        """Return the index and the place of a sample."""
        return super().find("train", self.chosen[number])

    def stats(self, split: str) -> dict[str, float]:
        """Return the statistics of the whole training split, whose depth range is learned."""
        return super().stats("train")

    def order(self, seed: int) -> Order:
        """Return the order in which an epoch shows the samples, each `repeats` times."""
        return Order(seed, counts=(len(self.chosen),), weights=(float(self.repeats),))
