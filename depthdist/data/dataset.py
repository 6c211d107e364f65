"""The data of a run: one folder of shards, several mixed, or such behind URLs.

dataset = open_dataset(DataSettings(data=("data/tires", "s3://bucket/crates"), weights=(1, 0.5)))
index, ref = dataset.find("train", 17)         # which bytes sample 17 is
order = dataset.order(seed=0)                  # order.epoch(3): numbers that `find` takes
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from depthdist.core.settings import Size
from depthdist.data.sample_order import Order
from depthdist.shards.index import Index, SampleRef, read_index
from depthdist.shards.remote_cache import Cache, CacheSettings, is_remote
from depthdist.shards.sample_arrays import Arrays, empty_arrays


@dataclass(frozen=True)
class ReadSettings:
    """Reading"""

    threads: int = 0
    "Threads a rank that read and decode samples ahead. 0: one a core that the rank has, 4 at most."
    processes: int = 0
    "Processes a rank that decode training samples instead of threads: for heavy augmentation."
    damaged: Literal["stop", "quarantine"] = "stop"
    """stop: end at the first damaged sample. quarantine: go on with the next one in its place,
    count and report it."""
    max_damaged: int = 10
    "Damaged samples a rank that quarantine takes before it stops all the same."
    stall: float = 60.0
    "Seconds without a sample after which it is said what is waited for."

    def problems(self) -> list[str]:
        found = [
            f"--{name.replace('_', '-')} is {value}: expected >= 0"
            for name in ("threads", "processes", "max_damaged")
            if (value := getattr(self, name)) < 0
        ]
        return (
            found
            if self.stall > 0
            else [*found, f"--stall is {self.stall:g}: expected > 0 seconds"]
        )

    @property
    def num_threads(self) -> int:
        ranks = int(
            os.environ.get("LOCAL_WORLD_SIZE")
            or os.environ.get("LOCAL_SIZE")
            or os.environ.get("WORLD_SIZE")
            or 1
        )
        cores = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
        return self.threads or max(1, min(4, cores // ranks))


@dataclass(frozen=True)
class DataSettings(ReadSettings, CacheSettings):
    """Data"""

    data: tuple[str, ...] = ("data/tires",)
    """Folder of shards that tools/shard.py wrote, or its URL (s3://, gs://, https://, hf://);
    several with commas between are mixed."""
    weights: tuple[float, ...] = ()
    """With several: how often an epoch shows each sample of each. Default: 1 for all; 0.25 shows
    another quarter each epoch."""
    size: Size | None = None
    "Height x width that the network sees, pixels. Default: as sharded (the recipe's is 756x1260)."
    shuffle_shards: int = 0
    """0: samples are shuffled over all shards. M: shards are shuffled, then the samples of M
    shards at a time; for remote data that the cache cannot hold."""

    def problems(self) -> list[str]:
        found = [*ReadSettings.problems(self), *CacheSettings.problems(self)]
        if self.shuffle_shards < 0:
            found.append(f"--shuffle-shards is {self.shuffle_shards}: expected >= 0")
        if self.weights and len(self.weights) != len(self.data):
            found.append(
                f"--weights has {len(self.weights)} values, --data {len(self.data)}: expected one"
                " for each"
            )
        found += [
            f"--weights has {w:g}: expected > 0" for w in self.weights if not 0 < w < math.inf
        ]
        try:
            dataset = open_dataset(self)
            num_train = dataset.count("train")
        except ValueError as err:
            return [*found, f"--data {err}{self._hint()}"]
        if self.size not in (None, dataset.size):
            found.append(
                f"--size is {self.size}, the pictures in {dataset.place} are {dataset.size}: leave"
                f" it out, or shard again with --size {self.size}"
            )
        if not num_train:
            found.append(f"--data {dataset.place}: there is no training sample")
        return found

    def _hint(self) -> str:
        folder = (
            Path(self.data[0].removeprefix("file://"))
            if len(self.data) == 1 and not is_remote(self.data[0])
            else None
        )
        if folder is None or folder.exists():
            return ""
        raw = folder.parent / f"{folder.name}_raw"
        return (
            f"; to make some: `python tools/make_tires.py {raw}`, then `python tools/shard.py {raw}"
            f" {folder}`"
        )


@dataclass(frozen=True)
class Dataset:
    """One or several indexes; a sample's number in a split counts through all of them.

    weights  how often an epoch shows each sample of each index
    block    0, or how many shards are shuffled together
    """

    parts: tuple[Index, ...]
    weights: tuple[float, ...] = ()
    block: int = 0

    @property
    def place(self) -> str:
        return ",".join(part.place for part in self.parts)

    @property
    def size(self) -> Size:
        return self.parts[0].size

    @property
    def depth_size(self) -> Size:
        return self.parts[0].depth_size

    @property
    def remote(self) -> bool:
        return any(part.cache for part in self.parts)

    @property
    def sha256(self) -> str:
        """Of everything that decides which sample comes when and what is in it."""
        names = [part.sha256 for part in self.parts]
        mixed = [*names, self.weights, self.block]
        return (
            names[0]
            if mixed == [names[0], (), 0]
            else hashlib.sha256(repr(mixed).encode()).hexdigest()
        )

    def count(self, split: str) -> int:
        """Samples of a split. ValueError where no part has it."""
        return sum(len(samples) for _, samples in self._splits(split))

    def find(self, split: str, number: int) -> tuple[Index, SampleRef]:
        """The index and the place of that sample of a split."""
        for part, samples in self._splits(split):
            if number < len(samples):
                return part, samples[number]
            number -= len(samples)
        raise IndexError(number)

    def meta(self, split: str, number: int) -> dict[str, Any]:
        """What is known of a sample besides its arrays (its meta.json).

        {} where others wrote the shards and there is none.
        """
        index, ref = self.find(split, number)
        member = index.raw["meta"]["member"]
        if not member:
            return {}
        offset, size, _ = ref.members[member]
        with open(index.shard_path(ref.number), "rb", buffering=0) as file:
            return json.loads(os.pread(file.fileno(), size, offset))

    def _splits(self, split: str) -> list[tuple[Index, Any]]:
        if split not in self._found:
            have = [part for part in self.parts if split in part.raw["splits"]]
            if not have:
                self.parts[0].samples(split)  # raises, and names those there are
            self._found[split] = [(part, part.samples(split)) for part in have]
        return self._found[split]

    @cached_property
    def _found(self) -> dict[str, list[tuple[Index, Any]]]:
        return {}

    def stats(self, split: str) -> dict[str, float]:
        """min_mm, max_mm, mean_mm, std_mm, valid_pixels over all parts' samples of a split, each
        once.
        """
        parts = [part.stats[split] for part, _ in self._splits(split)]
        pixels = np.array([s["valid_pixels"] for s in parts], np.float64)
        means, stds = (np.array([s[name] for s in parts]) for name in ("mean_mm", "std_mm"))
        mean = float((pixels * means).sum() / pixels.sum())
        std = math.sqrt((pixels * (stds**2 + (means - mean) ** 2)).sum() / pixels.sum())
        bounds = {
            "min_mm": min(s["min_mm"] for s in parts),
            "max_mm": max(s["max_mm"] for s in parts),
        }
        return {**bounds, "mean_mm": mean, "std_mm": std, "valid_pixels": int(pixels.sum())}

    def order(self, seed: int) -> Order:
        """In which order an epoch shows the training samples."""
        parts, shards, before = self._splits("train"), [], 0
        if self.block:
            for part, samples in parts:
                shards.append(before + samples.shard_numbers.astype(np.int64))
                before += len(part.shards)
        weights = tuple(
            w for part, w in zip(self.parts, self.weights) if "train" in part.raw["splits"]
        )
        return Order(
            seed,
            tuple(len(s) for _, s in parts),
            weights,
            self.block,
            np.concatenate(shards) if shards else None,
        )

    def arrays(self, *batch: int) -> Arrays:
        """Room for a sample, or for (B,) of them."""
        return empty_arrays(self.parts[0], *batch)


def open_dataset(settings: DataSettings) -> Dataset:
    """The dataset that the settings name.

    Where damage stops the run, with every local shard there and of its size.

    raises ValueError: a part cannot be opened, parts of different sizes, a cache that cannot hold
    what is shuffled
    """
    cache = Cache(settings) if any(map(is_remote, settings.data)) else None
    parts = tuple(
        read_index(place, cache if is_remote(place) else None, settings.damaged == "stop")
        for place in settings.data
    )
    if not parts:
        raise ValueError("is empty; expected a folder of shards")
    for part in parts[1:]:
        for what, flag in (
            ("size", "--size"),
            ("depth_size", "--depth-size train, or --depth-size"),
        ):
            if getattr(part, what) != getattr(parts[0], what):
                ours, theirs = getattr(part, what), getattr(parts[0], what)
                raise ValueError(
                    f"{part.place}: {what.replace('_', ' ')} is {ours}, that of {parts[0].place}"
                    f" {theirs}; what is mixed must have one size: shard again with {flag}"
                )
    if len(set(p.sha256 for p in parts)) < len(parts):
        raise ValueError(
            f"{','.join(settings.data)}: the same data twice; --weights 2 shows it twice"
        )
    weights = () if all(w == 1 for w in settings.weights) else settings.weights
    dataset = Dataset(parts, weights, settings.shuffle_shards)
    _see_that_it_fits(dataset, settings)
    return dataset


def _see_that_it_fits(dataset: Dataset, settings: DataSettings) -> None:
    """ValueError where the cache would have to fetch a shard for every sample."""
    sizes = sorted(
        (s["bytes"] for part in dataset.parts if part.cache for s in part.shards), reverse=True
    )
    needed, room = (
        sum(sizes[: 2 * settings.shuffle_shards] if settings.shuffle_shards else sizes),
        settings.cache_gb * 1e9,
    )
    if needed > room:
        way = (
            f"two times {settings.shuffle_shards} shards"
            if settings.shuffle_shards
            else "they are shuffled over all shards, so all"
        )
        raise ValueError(
            f"{dataset.place}: samples need {way} at hand, {needed / 1e9:.3g} GB; --cache-gb is"
            f" {settings.cache_gb:g}: give more, or shuffle fewer at a time with --shuffle-shards"
        )
