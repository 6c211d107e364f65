"""Images and depth of samples at the camera's size, whole or as crops of it.

    reader = FullSizeReader(dataset, raw=None, memory_mb=2000)
    rgb, depth_mm, mask = reader.crop("train", 17, top=300, left=640, height=256, width=256)

Images come from shards that keep them at the camera's size (depthdist shard --rgb-size camera),
else from the captures that the shards were made of. What is decoded stays in memory while there is
room, so a small dataset is decoded once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from depthdist.data.dataset import Dataset
from depthdist.data.sample_reader import damage_advice, read_shard
from depthdist.geometry.image_resizing import resize_rgb
from depthdist.shards.decoding import (
    read_stored_depth,
    read_stored_rgb,
    read_stored_rows,
    unpack_mask,
)
from depthdist.shards.index import Damaged, Index, SampleRef

BYTES_PER_PIXEL = 3 + 2 + 1  # decoded: RGB, depth in steps, mask

Arrays = tuple[np.ndarray, ...]
T = TypeVar("T")


class FullSizeReader:
    """Reads images, depth and crops of a dataset's samples at the size of the depth.

    dataset    its depth must be at the camera's size
    raw        folder of the captures that were sharded; used where the shards hold small images
    memory_mb  MB that decoded samples may take; the least recently used are dropped

    Threads may share a reader. Images that the camera made at another size than its points are
    resized to the size of the depth. Whole arrays are verified by the CRC-32 of their members,
    images of captures by their sha256. Where the decoded dataset does not fit into memory_mb, crops
    of `--rgb raw` images and `.npy` depth are read from their rows alone, and these are not
    verified: `depthdist shard --verify` and --verify-first verify all bytes.

    raises ValueError: small images and no raw, or depth at another size than the camera's
    """

    def __init__(self, dataset: Dataset, raw: Path | None, memory_mb: int):
        self.dataset = dataset
        self.raw = raw
        for part in dataset.parts:
            _check_part(part, raw)
        self._decoded = _RecentlyUsed(memory_mb * 10**6)
        height, width = dataset.depth_size
        num_samples = sum(dataset.count(split) for split in dataset.splits)
        self._fits = num_samples * height * width * BYTES_PER_PIXEL <= memory_mb * 10**6

    def image(self, split: str, number: int) -> np.ndarray:
        """Return a sample's image (H, W, 3) uint8 at the size of its depth.

        raises ValueError where the sample is damaged, or its capture is missing or another one
        """
        return self._whole_image(split, number).copy()

    def depth(self, split: str, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a sample's depth (H, W) float32 mm, 0 where invalid, and mask (H, W) bool.

        raises ValueError where the sample is damaged
        """
        steps, mask = self._whole_depth(split, number)
        return self._to_mm(split, number, steps), mask.copy()

    def crop(
        self, split: str, number: int, top: int, left: int, height: int, width: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return a rectangle of image, depth and mask, as `image` and `depth` have it.

        top, left      row and column of its first pixel
        height, width  pixels; it lies within the depth

        raises ValueError where it does not, and as `image` and `depth` do
        """
        rows, columns = slice(top, top + height), slice(left, left + width)
        size = self.dataset.depth_size
        inside = 0 <= top < rows.stop <= size.height and 0 <= left < columns.stop <= size.width
        if not inside:
            raise ValueError(
                f"crop of {height}x{width} at row {top}, column {left}: expected at least 1x1"
                f" within {size}"
            )
        rgb = self._image_rows(split, number, rows)[:, columns].copy()
        steps, mask = self._depth_rows(split, number, rows)
        return rgb, self._to_mm(split, number, steps[:, columns]), mask[:, columns].copy()

    def _to_mm(self, split: str, number: int, steps: np.ndarray) -> np.ndarray:
        """Return float32 mm of steps, as a batch has them."""
        step_mm = self.dataset.find(split, number)[0].step_mm
        return steps.astype(np.float32) * np.float32(step_mm)

    # -------------------------------------------------------------------------------- whole arrays

    def _whole_image(self, split: str, number: int) -> np.ndarray:
        key = (split, number, "image")
        found = self._decoded.find(key)
        if found is None:
            found = (self._decode_image(split, number),)
            self._decoded.keep(key, found)
        return found[0]

    def _decode_image(self, split: str, number: int) -> np.ndarray:
        index, ref = self.dataset.find(split, number)
        size = self.dataset.depth_size
        if not _holds_full_size(index):
            assert self.raw is not None, "checked for each part"
            return self.dataset.full_image(split, number, self.raw)
        rgb = _read(index, ref, partial(read_stored_rgb, ref=ref, index=index))
        return rgb if rgb.shape[:2] == size else resize_rgb(rgb, size)

    def _whole_depth(self, split: str, number: int) -> Arrays:
        key = (split, number, "depth")
        found = self._decoded.find(key)
        if found is None:
            index, ref = self.dataset.find(split, number)
            found = _read(index, ref, partial(read_stored_depth, ref=ref, index=index))
            self._decoded.keep(key, found)
        return found

    # -------------------------------------------------------------------------------- rows of them

    def _image_rows(self, split: str, number: int, rows: slice) -> np.ndarray:
        index, ref = self.dataset.find(split, number)
        stored_raw = index.raw["rgb"]["codec"] == "raw" and _holds_full_size(index)
        if stored_raw and not self._fits and self._decoded.find((split, number, "image")) is None:
            member, shape = index.raw["rgb"]["member"], (*index.depth_size, 3)
            found = _read(
                index,
                ref,
                partial(
                    read_stored_rows, ref=ref, name=member, dtype="|u1", shape=shape, rows=rows
                ),
            )
            if found is not None:  # else the image has another size than its points
                return found
        return self._whole_image(split, number)[rows]

    def _depth_rows(self, split: str, number: int, rows: slice) -> Arrays:
        index, ref = self.dataset.find(split, number)
        depth, mask = index.raw["depth"], index.raw["mask"]
        by_rows = depth["codec"] == "npy" and depth["steps"] and not self._fits
        if by_rows and self._decoded.find((split, number, "depth")) is None:
            height, width = index.depth_size
            packed_shape = (height, -(-width // 8))

            def read(fd: int) -> tuple[np.ndarray | None, np.ndarray | None]:
                steps = read_stored_rows(fd, ref, depth["member"], "<u2", (height, width), rows)
                packed = read_stored_rows(fd, ref, mask["member"], "|u1", packed_shape, rows)
                return steps, packed

            steps, packed = _read(index, ref, read)
            if steps is not None and packed is not None:
                return steps, unpack_mask(packed, width)
        return tuple(array[rows] for array in self._whole_depth(split, number))


class _RecentlyUsed:
    """Arrays by key, `most` bytes in all; the least recently used are dropped first."""

    def __init__(self, most: int):
        self._most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int, str], Arrays] = OrderedDict()
        self._bytes = 0

    def find(self, key: tuple[str, int, str]) -> Arrays | None:
        """Return the arrays of that key, None where they are not kept."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def keep(self, key: tuple[str, int, str], arrays: Arrays) -> None:
        """Keep arrays that nobody will change."""
        with self._lock:
            if key in self._kept:  # another thread has decoded it as well
                return
            self._kept[key] = arrays
            self._bytes += _num_bytes(arrays)
            while self._bytes > self._most:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= _num_bytes(dropped)


def _num_bytes(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays)


def _holds_full_size(index: Index) -> bool:
    """Return whether the shards hold images at their own size, or at that of depth like it."""
    return index.resizes or index.raw["size"] == list(index.depth_size)


def _check_part(index: Index, raw: Path | None) -> None:
    """Raise ValueError where images at the size of the depth cannot be had."""
    foreign = index.raw.get("foreign", False)
    shrunk = index.raw["depth"].get("resize", False) if foreign else _depth_is_small(index)
    if shrunk:
        raise ValueError(
            f"{index.place}: holds depth at {index.depth_size}, not at the camera's size; shard"
            " again with --depth-size camera"
        )
    if not _holds_full_size(index) and raw is None:
        raise ValueError(
            f"{index.place}: hold images at {index.size}; shard again with --rgb-size camera, or"
            " give --raw DIR, the folder of captures"
        )


def _depth_is_small(index: Index) -> bool:
    return index.raw.get("settings", {}).get("depth_size") == "train"


def _read(index: Index, ref: SampleRef, read: Callable[[int], T]) -> T:
    """Return what `read` returns; raise ValueError where the sample is damaged, as the loader."""
    try:
        return read_shard(index, ref, read)
    except Damaged as err:
        raise ValueError(damage_advice(err, index)) from err
