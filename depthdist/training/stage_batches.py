"""Batches of a second stage: their tensors on a device, parts of them, and reading ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
SomeBatch = TypeVar("SomeBatch", bound="StageBatch")


class StageBatch:
    """Samples of a step; a dataclass of it has tensors (B, ...) alone."""

    def to(self: SomeBatch, device: torch.device) -> SomeBatch:
        """Return the batch on a device."""
        moved = (tensor.to(device, non_blocking=True) for tensor in vars(self).values())
        return type(self)(*moved)

    def part(self: SomeBatch, first: int, end: int) -> SomeBatch:
        """Return the samples first .. end - 1."""
        return type(self)(*(tensor[first:end] for tensor in vars(self).values()))

    def __len__(self) -> int:
        return len(next(iter(vars(self).values())))


def read_ahead(read: Callable[[int], T], step: int) -> Iterator[T]:
    """Yield what `read` returns of each step from `step` on, for ever; one step is read ahead."""
    with ThreadPoolExecutor(1) as ahead:
        following = ahead.submit(read, step)
        while True:
            batch = following.result()
            step += 1
            following = ahead.submit(read, step)
            yield batch
