"""Data of captures: folders of raw captures take part as their shards, made once in the cache.

data = shard_captures(DataSettings(data=("RAW",)), FolderSettings(split="session"))  # .data: shards
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from depthdist.core.settings import flag_name, range_problems
from depthdist.data.dataset import DataSettings
from depthdist.shards.cached_datasets import cached_shards
from depthdist.shards.settings import CaptureSettings, ShardSettings, SplitSettings


@dataclass(frozen=True)
class FolderSettings(CaptureSettings, SplitSettings):
    """Captures (where --data is a folder of them, not of shards)."""

    split_seed: int = 42
    "Seed of the split."
    rgb_size: Literal["camera", "train"] = "train"
    """Keep images at --size in the shards, or as the camera has them, for crops of full size."""

    def problems(self) -> list[str]:
        """Return what is wrong with the values, a line each."""
        return [
            *SplitSettings.problems(self),
            *CaptureSettings.problems(self),
            *range_problems(self, ("split_seed", 0 <= self.split_seed < 2**64, "0 or more")),
        ]

    def problems_with_shards(self, place: str) -> list[str]:
        """Return which settings were given although the data are shards already, a line each."""
        return [
            f"{flag_name(field.name)} is {getattr(self, field.name)}, and --data {place} holds"
            " shards already: leave it out, or name the folder of captures (depthdist shard takes"
            " it too)"
            for field in fields(self)
            if getattr(self, field.name) != field.default
        ]


def shard_settings(raw: str, data: DataSettings, folder: FolderSettings) -> ShardSettings:
    """Return how the captures in `raw` are sharded: otherwise as depthdist shard does.

    Shards with images as they are serve every --size, which is then chosen as they are opened.
    """
    given = {field.name: getattr(folder, field.name) for field in fields(folder)}
    seed = given.pop("split_seed")
    size = data.size if folder.rgb_size == "train" else None
    return ShardSettings(raw=raw, seed=seed, size=size, **given)


def shard_captures(data: DataSettings, folder: FolderSettings) -> DataSettings:
    """Return the settings with shards in the place of folders of captures.

    They are made where they are not there yet: see cached_shards, also for what it raises.
    """
    places = [
        str(cached_shards(shard_settings(place, data, folder), data.cache))
        if place in data.captures
        else place
        for place in data.data
    ]
    return replace(data, data=tuple(places))


def real_places(data: DataSettings) -> list[str]:
    """Return the places of data with the real paths of folders of captures."""
    return [
        str(Path(place.removeprefix("file://")).resolve()) if place in data.captures else place
        for place in data.data
    ]
