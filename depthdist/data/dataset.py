"""The data of a run: one folder of shards, several mixed, or such behind URLs.

dataset = open_dataset(DataSettings(data=("data/tires", "s3://bucket/crates"), weights=(1, 0.5)))
index, ref = dataset.find("train", 17)         # which bytes sample 17 is
order = dataset.order(seed=0)                  # order.epoch(3): numbers that `find` takes
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from depthdist.core.environment import count_workers, local_rank, local_world_size, world_size
from depthdist.core.files import parse_json, read_at
from depthdist.core.settings import Size
from depthdist.data.sample_order import Order
from depthdist.shards.cached_datasets import holds_captures, may_hold_captures, why_no_captures
from depthdist.shards.index import Index, SampleRef, Samples, read_index
from depthdist.shards.remote_cache import Cache, CacheSettings, is_remote
from depthdist.shards.sample_arrays import Arrays, empty_arrays
from depthdist.shards.settings import size_problems

MAX_DEFAULT_THREADS = 4
EXPECTED = "a folder of captures, or one that depthdist shard wrote"


@dataclass(frozen=True)
class ReadSettings:
    """Reading."""

    threads: int = 0
    "Threads a rank that read and decode samples ahead. 0: one a core that the rank has, 4 at most."
    processes: int = 0
    "Processes a rank that decode training samples instead of threads: for heavy augmentation."
    damaged: Literal["stop", "quarantine"] = "stop"
    """stop: end at the first damaged sample. quarantine: replace it by the next one, count and
    report it."""
    max_damaged: int = 10
    "Damaged samples a rank that quarantine accepts before it stops as well."
    stall: float = 60.0
    "Seconds without a sample after which a warning names what is being waited for."

    def problems(self) -> list[str]:
        """Return what is wrong with the values, a line each."""
        found = []
        for name in ("threads", "processes", "max_damaged"):
            value = getattr(self, name)
            if value < 0:
                found.append(f"--{name.replace('_', '-')} is {value}: expected >= 0")
        if not self.stall > 0:
            found.append(f"--stall is {self.stall:g}: expected > 0 seconds")
        return found

    @property
    def num_threads(self) -> int:
        """Threads of this rank; by default its share of the machine's cores, 4 at most."""
        return self.threads or count_workers(0, MAX_DEFAULT_THREADS, local_world_size())


@dataclass(frozen=True)
class DataSettings(ReadSettings, CacheSettings):
    """Data."""

    data: tuple[str, ...] = ("data/tires",)
    """Folder of captures (shards of them are made once, in --cache), folder of shards that
    depthdist shard wrote, or its URL (s3://, gs://, https://, hf://); several with commas between
    are mixed. A folder that has a comma in its name, and exists, is that folder."""
    weights: tuple[float, ...] = ()
    """With several: how often an epoch shows each sample of each. Default: 1 for all; 0.25 shows
    another quarter each epoch."""
    size: Size | None = None
    """Height x width that the network sees, pixels, multiples of 14. Default: as sharded; of
    captures their aspect at the recipe's number of pixels (1200x1944 gives 756x1260). Shards with
    --rgb-size camera may be seen at any."""
    shuffle_shards: int = 0
    """0: samples are shuffled over all shards. M: shards are shuffled, then the samples of M
    shards at a time; for remote data that the cache cannot hold."""

    def __post_init__(self) -> None:
        """Put the names of existing folders together again that have commas in them."""
        object.__setattr__(self, "data", join_at_commas(self.data))

    def problems(self) -> list[str]:
        """Return what is wrong with the values and with the data they name, a line each.

        Data of captures can be looked at once it is sharded.
        """
        found = [*ReadSettings.problems(self), *CacheSettings.problems(self)]
        if self.shuffle_shards < 0:
            found.append(f"--shuffle-shards is {self.shuffle_shards}: expected >= 0")
        if self.weights and len(self.weights) != len(self.data):
            found.append(
                f"--weights has {len(self.weights)} values, --data {len(self.data)}: expected one"
                " for each"
            )
        for weight in self.weights:
            if not 0 < weight < math.inf:
                found.append(f"--weights has {weight:g}: expected > 0")
        if not all(place.strip() for place in self.data):
            return [*found, "--data has an empty place: expected folders of captures or of shards"]
        folders = [Path(place.removeprefix("file://")).resolve() for place in self.captures]
        if len(set(folders)) < len(folders):
            places = ",".join(self.data)
            return [
                *found,
                f"--data {places}: the same captures twice; --weights 2 shows them twice",
            ]
        shards = tuple(place for place in self.data if place not in self.captures)
        if self.captures:
            found += size_problems(self.size)
            if not shards:
                return found
        try:
            dataset = (replace(self, data=shards) if self.captures else self).opened
            num_train = None if self.captures else dataset.count("train")
        except ValueError as err:
            return [*found, f"--data {err}{self._advice()}"]
        if self.size == dataset.size and not self.captures:
            found += size_problems(self.size)  # shards may be read at any
        if self.size not in (None, dataset.size):
            found.append(
                f"--size is {self.size}, the images in {dataset.place} are {dataset.size}: leave"
                f" it out, or shard again with --size {self.size}"
            )
        if num_train == 0:
            found.append(f"--data {dataset.place}: there is no training sample")
        return found

    @cached_property
    def opened(self) -> Dataset:
        """The dataset, opened once; raises ValueError as `open_dataset` does."""
        return open_dataset(self)

    @cached_property
    def captures(self) -> tuple[str, ...]:
        """The places that are folders of captures, not of shards."""
        return tuple(filter(holds_captures, self.data))

    def _advice(self) -> str:
        """Return how to make a dataset, if the only one is a folder that has or is none."""
        if len(self.data) != 1 or is_remote(self.data[0]):
            return ""
        folder = Path(self.data[0].removeprefix("file://"))
        if may_hold_captures(folder):
            return f"; as a folder of captures: {why_no_captures(folder)}"
        if folder.exists():
            return ""
        raw = folder.parent / f"{folder.name}_raw"
        return (
            f"; to make some: `python -m depthdist.synthetic {raw}`, then `depthdist shard {raw}"
            f" {folder}`"
        )


def join_at_commas(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return names that were cut at commas, whole where the whole is an existing folder."""
    found: list[str] = []
    start = 0
    while start < len(names):
        ends = range(len(names), start + 1, -1)
        whole = (end for end in ends if Path(",".join(names[start:end])).is_dir())
        end = next(whole, start + 1)
        found.append(",".join(names[start:end]))
        start = end
    return tuple(found)


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
    def places(self) -> list[str]:
        """Folder or URL of each part."""
        return [part.place for part in self.parts]

    @property
    def place(self) -> str:
        """Folders and URLs of all parts, for messages."""
        return ",".join(self.places)

    @property
    def size(self) -> Size:
        """Height and width of the RGB."""
        return self.parts[0].size

    @property
    def depth_size(self) -> Size:
        """Height and width of depth and mask."""
        return self.parts[0].depth_size

    @property
    def camera(self) -> Size:
        """Height and width of the RGB before it was resized, or another size of that aspect."""
        raw = self.parts[0].raw
        if raw.get("stretched"):
            return Size(*raw["stretched"])
        # points that see the same field as the image may have another aspect
        return self.size if raw.get("settings", {}).get("registered") else self.depth_size

    @property
    def remote(self) -> bool:
        """Whether a part is behind a URL."""
        return any(part.cache for part in self.parts)

    @property
    def splits(self) -> list[str]:
        """Names of the splits that a part has."""
        return list(dict.fromkeys(split for part in self.parts for split in part.raw["splits"]))

    @property
    def sha256(self) -> str:
        """Hash of everything that decides which sample comes when and what is stored of it.

        The size that images are read at is in the settings, where it is not the shards'.
        """
        names = [part.sha256 for part in self.parts]
        mixed = [*names, self.weights, self.block]
        if mixed == [names[0], (), 0]:
            return names[0]
        return hashlib.sha256(repr(mixed).encode()).hexdigest()

    def count(self, split: str) -> int:
        """Return the number of samples of a split, raise ValueError if no part has it."""
        return sum(len(samples) for _, samples in self._parts_with(split))

    def has(self, split: str) -> bool:
        """Return whether a part has a sample of a split."""
        return split in self.splits and self.count(split) > 0

    def find(self, split: str, number: int) -> tuple[Index, SampleRef]:
        """Return the index and the place of a sample of a split."""
        for part, samples in self._parts_with(split):
            if number < len(samples):
                return part, samples[number]
            number -= len(samples)
        raise IndexError(number)

    def meta(self, split: str, number: int) -> dict[str, Any]:
        """Read what is known of a sample besides its arrays (its meta.json).

        It is {} where others wrote the shards and there is none.
        """
        index, ref = self.find(split, number)
        member = index.raw["meta"]["member"]
        if not member:
            return {}
        offset, size, _ = ref.members[member]
        with open(index.shard_path(ref.number), "rb", buffering=0) as file:
            content = parse_json(read_at(file.fileno(), size, offset))
        return content if isinstance(content, dict) else {}

    def groove_label(self, split: str, number: int) -> np.ndarray | None:
        """Return a sample's groove label (H, W) uint16, 0 where no groove is, None without one."""
        from depthdist.shards.decoding import decode_label  # imports torch

        text = self.meta(split, number).get("grooves")
        if not isinstance(text, str):
            return None
        try:
            return decode_label(text, self.depth_size)
        except ValueError as err:
            index, ref = self.find(split, number)
            if index.raw.get("foreign"):  # others mean something else by that name
                return None
            raise ValueError(f"{ref.shard}: sample {ref.key}: groove label: {err}") from err

    def full_image(self, split: str, number: int, raw: Path) -> np.ndarray:
        """Return the image (H, W, 3) uint8 that a sample was made of, at the size of the depth.

        raw  the folder of captures that was sharded
        raises ValueError: the image is not there, is another one, or the depth is not at the
        camera's size
        """
        from depthdist.captures.readers import read_image  # imports Pillow
        from depthdist.geometry.image_resizing import resize_rgb

        meta = self.meta(split, number)
        source = meta.get("rgb")
        if not isinstance(source, dict) or not isinstance(source.get("path"), str):
            raise ValueError(
                "--refine needs shards that record which images they were made from; sample"
                f" {number} of {split} does not"
            )
        path = raw / source["path"]
        if not path.is_file():
            raise ValueError(
                f"--raw {raw}: it has no {source['path']}, from which sample {number} of {split}"
                " was made"
            )
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != source["sha256"]:
            raise ValueError(
                f"{path}: is not the image from which sample {number} of {split} was made"
                " (its sha256 differs)"
            )
        height, width = self.depth_size
        image = read_image(path, content, (height, width))
        size = (image.height, image.width)
        if size == self.depth_size:
            return np.array(image)
        if meta.get("size") != list(self.depth_size):
            raise ValueError(
                f"{path}: is {size}, the ground truth {tuple(self.depth_size)}; --refine needs"
                " shards with depth at the camera's size"
            )
        return resize_rgb(image, self.depth_size)  # the points have another size

    def _parts_with(self, split: str) -> list[tuple[Index, Samples]]:
        """Return the parts that have a split, and its samples in each."""
        if split not in self._found:
            having = [part for part in self.parts if split in part.raw["splits"]]
            if not having:
                self.parts[0].samples(split)  # raises ValueError that names the existing splits
            self._found[split] = [(part, part.samples(split)) for part in having]
        return self._found[split]

    @cached_property
    def _found(self) -> dict[str, list[tuple[Index, Samples]]]:
        return {}

    def stats(self, split: str) -> dict[str, float]:
        """Return statistics over all parts' samples of a split, each counted once.

        They are min_mm, max_mm, mean_mm, std_mm and valid_pixels.
        """
        parts = [part.stats[split] for part, _ in self._parts_with(split)]
        pixels = np.array([part["valid_pixels"] for part in parts], np.float64)
        means = np.array([part["mean_mm"] for part in parts])
        stds = np.array([part["std_mm"] for part in parts])
        mean = float((pixels * means).sum() / pixels.sum())
        std = math.sqrt((pixels * (stds**2 + (means - mean) ** 2)).sum() / pixels.sum())
        return {
            "min_mm": min(part["min_mm"] for part in parts),
            "max_mm": max(part["max_mm"] for part in parts),
            "mean_mm": mean,
            "std_mm": std,
            "valid_pixels": int(pixels.sum()),
        }

    def order(self, seed: int) -> Order:
        """Return the order in which an epoch shows the training samples."""
        parts = self._parts_with("train")
        weights = [
            weight
            for part, weight in zip(self.parts, self.weights)
            if "train" in part.raw["splits"]
        ]
        return Order(
            seed=seed,
            counts=tuple(len(samples) for _, samples in parts),
            weights=tuple(weights),
            block=self.block,
            shards=self._shard_numbers(parts) if self.block else None,
        )

    @staticmethod
    def _shard_numbers(parts: list[tuple[Index, Samples]]) -> np.ndarray:
        """Return (N,) the shard of each sample, counted through all parts."""
        numbers = []
        num_before = 0
        for part, samples in parts:
            numbers.append(num_before + samples.rows["shard"].astype(np.int64))
            num_before += len(part.shards)
        return np.concatenate(numbers)

    def check_shards(self) -> None:
        """Raise ValueError unless this rank's share of its machine's local shards is whole."""
        for part in self.parts:
            part.check_shards(local_rank(), local_world_size())

    def arrays(self, *batch: int) -> Arrays:
        """Return buffers for a sample, or for (B,) of them."""
        return empty_arrays(self.parts[0], *batch)


def open_dataset(settings: DataSettings) -> Dataset:
    """Open the dataset that the settings name.

    Where damage stops the run, also check that every local shard is there and has its size; of
    several ranks each checks its share once they have met (Dataset.check_shards).

    raises ValueError: a part cannot be opened, parts of different sizes, a cache that cannot hold
    what is shuffled
    """
    cache = Cache(settings) if any(map(is_remote, settings.data)) else None
    check_shards = settings.damaged == "stop" and world_size() == 1
    parts = tuple(
        read_index(place, cache if is_remote(place) else None, check_shards, EXPECTED).with_size(
            settings.size
        )
        for place in settings.data
    )
    if not parts:
        raise ValueError(f"is empty; expected {EXPECTED}")
    _check_same_sizes(parts)
    if len({part.sha256 for part in parts}) < len(parts):
        raise ValueError(
            f"{','.join(settings.data)}: the same data twice; --weights 2 shows it twice"
        )
    weights = () if all(weight == 1 for weight in settings.weights) else settings.weights
    dataset = Dataset(parts, weights, settings.shuffle_shards)
    _check_cache_size(dataset, settings)
    return dataset


def _check_same_sizes(parts: tuple[Index, ...]) -> None:
    """Raise ValueError if parts differ in the size of their images or depths."""
    first = parts[0]
    for part in parts[1:]:
        for what, ours, theirs, flag in (
            ("size", part.size, first.size, "--size"),
            (
                "depth size",
                part.depth_size,
                first.depth_size,
                "--depth-size train, or --depth-size",
            ),
        ):
            if ours != theirs:
                raise ValueError(
                    f"{part.place}: {what} is {ours}, that of {first.place} {theirs}; what is mixed"
                    f" must have one size: shard again with {flag}"
                )


def _check_cache_size(dataset: Dataset, settings: DataSettings) -> None:
    """Raise ValueError if the cache would have to fetch a shard for every sample."""
    sizes = sorted(
        (shard["bytes"] for part in dataset.parts if part.cache for shard in part.shards),
        reverse=True,
    )
    if settings.shuffle_shards:
        needed = sum(sizes[: 2 * settings.shuffle_shards])
        which = f"two times {settings.shuffle_shards} shards"
    else:
        needed = sum(sizes)
        which = "they are shuffled over all shards, so all"
    if needed > settings.cache_gb * 1e9:
        raise ValueError(
            f"{dataset.place}: samples need {which} at hand, {needed / 1e9:.3g} GB; --cache-gb is"
            f" {settings.cache_gb:g}: give more, or shuffle fewer at a time with --shuffle-shards"
        )
