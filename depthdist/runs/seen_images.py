"""Which images a run has learned from, and which chose its best epoch: RUN/seen.npy.

    write_seen(run.folder, images_of(dataset), base)  # as training begins
    seen = read_seen(run, other)                      # None where nobody can know
    shared_images(hashes_of(other, "test"), seen.train)

A hash says what an image is (shards.image_hashes), so that it is recognised in shards that were
made again with another seed, another split or other settings.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from depthdist.core.files import write_atomic
from depthdist.data.dataset import Dataset, open_dataset
from depthdist.runs.run_folder import RUN_FILE, Run
from depthdist.shards.image_hashes import KINDS, image_hashes, source_hash

SEEN_FILE = "seen.npy"
ROW = np.dtype([("validation", "?"), ("hashes", "<u8", (len(KINDS),))])


class SeenImages(NamedTuple):
    """Hashes (N, 4) uint64 of the images that a run learned from, and of those that it validated.

    The latter chose the best epoch.
    """

    train: np.ndarray
    val: np.ndarray


def hashes_of(dataset: Dataset, split: str, rank: int = 0, num_ranks: int = 1) -> np.ndarray:
    """Return (N, 4) uint64 of a split's samples, in the order of their numbers.

    Of several ranks each reads its share, and the largest of what they find is known.
    """
    parts = [part for part in dataset.parts if split in part.raw["splits"]]
    found = [image_hashes(part, split, rank, num_ranks) for part in parts]
    return np.concatenate([np.zeros((0, len(KINDS)), np.uint64), *found])


def hashes_by_ranks(
    dataset: Dataset, split: str, rank: int, num_ranks: int, gather: Callable[[Any], list[Any]]
) -> np.ndarray:
    """Return `hashes_of` on every rank; of the many small reads each rank does its share.

    gather  returns every rank's value, given this one's
    """
    hashes = hashes_of(dataset, split, rank, num_ranks)
    read = np.flatnonzero(hashes[:, :2].any(1)).astype(np.uint32)
    for numbers, found in gather((read, hashes[read, :2])) if num_ranks > 1 else []:
        hashes[numbers, :2] = found
    return hashes


def images_of(dataset: Dataset) -> SeenImages:
    """Return what a run on this dataset sees."""
    return SeenImages(hashes_of(dataset, "train"), hashes_of(dataset, "val"))


def write_seen(run: Path, seen: SeenImages, base: Path) -> None:
    """Write RUN/seen.npy, with what another run saw if training began from its model.

    base  what --model names: another run's best/, or what was exported of it
    """
    path = seen_file(base)
    before = _read(path) if path else None
    parts = [seen, before] if before else [seen]
    rows = []
    for name, is_validation in (("train", False), ("val", True)):
        hashes = np.unique(np.concatenate([getattr(part, name) for part in parts]), axis=0)
        rows.append(np.zeros(len(hashes), ROW))
        rows[-1]["validation"] = is_validation
        rows[-1]["hashes"] = hashes
    file = io.BytesIO()
    np.save(file, np.concatenate(rows))
    write_atomic(run / SEEN_FILE, file.getvalue())


def seen_file(model: Path) -> Path | None:
    """Return the record that belongs to the model in a folder, None where there is none."""
    if not model.is_dir():
        return None
    places = [model, *([model.parent] if (model.parent / RUN_FILE).exists() else [])]
    return next((p / SEEN_FILE for p in places if (p / SEEN_FILE).is_file()), None)


def _read(path: Path) -> SeenImages | None:
    """Return the content of a seen.npy; None where there is none that can be read."""
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if rows.dtype != ROW:
        return None
    is_validation = rows["validation"]
    return SeenImages(rows["hashes"][~is_validation], rows["hashes"][is_validation])


def learned_from(run: Path, images: Sequence[Path]) -> list[Path]:
    """Return which image files a run learned from, by their sha256; [] where it has no record."""
    seen = _read(run / SEEN_FILE)
    if seen is None:
        return []
    known = set(seen.train[:, 0].tolist())
    return [path for path in images if source_hash(path.read_bytes()) in known]


def read_seen(run: Run, other: Dataset) -> SeenImages | None:
    """Return what a run has seen: on record, or of its data where that is unchanged.

    other  a dataset that may be the run's own at another place
    None where there is neither: a run from before there was a record, whose data changed.
    """
    seen = _read(run.folder / SEEN_FILE)
    if seen is not None:
        return seen
    sha256 = run.record["derived"].get("data_sha256")
    if other.sha256 == sha256:
        return images_of(other)
    try:
        dataset = open_dataset(replace(run.data, damaged="quarantine"))  # its index is enough
    except ValueError:
        return None
    return images_of(dataset) if dataset.sha256 == sha256 else None
