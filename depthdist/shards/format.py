"""The shard format: member names, depth levels, and the records that describe what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from isal import isal_zlib

from depthdist.captures.layouts import CapturePair
from depthdist.captures.read_options import ReadOptions
from depthdist.core.settings import Size

LEVELS = 65535  # of uint16 depth; 0 means invalid
RGB_MEMBERS = {"jpeg": "rgb.jpg", "png": "rgb.png", "raw": "rgb.npy"}  # by codec
crc32 = isal_zlib.crc32  # zlib's, three times as fast


class Encoding(NamedTuple):
    """How a capture becomes a sample: the settings that its bytes depend on.

    rgb_size  of the images; None: each keeps its own
    """

    rgb_size: Size | None
    depth_size: Size
    near_mm: float
    far_mm: float
    codec: str  # of RGB_MEMBERS
    quality: int
    subsampling: str
    depth_codec: str  # npy or png
    check_view: bool  # whether captures that are no camera's view are rejected

    @property
    def step_mm(self) -> float:
        """Return the depth that one level stands for."""
        return self.far_mm / LEVELS

    @property
    def members(self) -> list[str]:
        """Return the names of a sample's members, in the order of the tar."""
        return [f"depth.{self.depth_codec}", "mask.npy", "meta.json", RGB_MEMBERS[self.codec]]


class Item(NamedTuple):
    """A capture in the plan; `key` names its sample in the whole dataset."""

    key: str
    pair: CapturePair
    session: int


class Job(NamedTuple):
    """One shard to write: `name` (train/shard-000000.tar) under `folder`, captures under `root`.

    options  how the captures' files are read
    """

    name: str
    items: list[Item]
    hash: str
    root: Path
    folder: Path
    encoding: Encoding
    options: ReadOptions


def as_json(value: Any, indent: int | None = None) -> bytes:
    """Return `value` as JSON with a line end; equal values give equal bytes."""
    separators = (",", ": " if indent else ":")
    text = json.dumps(value, sort_keys=True, indent=indent, separators=separators)
    return text.encode() + b"\n"
