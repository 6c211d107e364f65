"""What a shard holds: names, versions, and the records that describe it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from isal import isal_zlib

from depthdist.captures.layouts import CapturePair
from depthdist.core.settings import Size


class Encoding(NamedTuple):
    """How a capture becomes a sample: what of the settings the bytes depend on."""

    size: Size
    depth_size: Size
    near_mm: float
    far_mm: float
    codec: str  # of RGB_MEMBERS
    quality: int
    subsampling: str
    depth_codec: str  # npy or png

    @property
    def step_mm(self) -> float:
        return self.far_mm / LEVELS

    @property
    def members(self) -> list[str]:
        """Of a sample, in the order that they stand in the tar."""
        return [f"depth.{self.depth_codec}", "mask.npy", "meta.json", RGB_MEMBERS[self.codec]]


class Item(NamedTuple):
    """A pair in the plan. `key` names its sample in the whole dataset."""

    key: str
    pair: CapturePair
    session: int


class Job(NamedTuple):
    """One shard to write: `name` (train/shard-000000.tar) under `folder`.

    Captures lie under `root`.
    """

    name: str
    items: list[Item]
    hash: str
    root: Path
    folder: Path
    encoding: Encoding


def as_json(value: Any, indent: int | None = None) -> bytes:
    """`value` as JSON bytes that are the same for the same value."""
    return (
        json.dumps(
            value, sort_keys=True, indent=indent, separators=(",", ": " if indent else ":")
        ).encode()
        + b"\n"
    )


LEVELS = 65535  # of uint16 depth; 0 is kept for invalid


crc32 = isal_zlib.crc32  # zlib's, three times as fast


RGB_MEMBERS = {"jpeg": "rgb.jpg", "png": "rgb.png", "raw": "rgb.npy"}  # by codec
