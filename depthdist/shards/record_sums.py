"""Add up the commit records of all shards, one after the other, for the index.

    with RecordSums(out) as sums:
        for name in index_order(names):
            sums.add(record)

A record is let go as soon as it is added: those of a million captures would take 4 GB.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from depthdist.captures.near_duplicates import FINGERPRINT
from depthdist.shards.index import as_rows
from depthdist.shards.statistics import MergedStats

Record = dict[str, Any]  # the commit record of one shard


def index_order(names: Iterable[str]) -> list[str]:
    """Return shards in the order of the index: splits in the order of JSON's keys, by number."""
    return sorted(names, key=lambda name: (name.split("/")[0], len(name), name))


class SplitSums:
    """The shards of one split, whose first sample is number `first` of the dataset.

    has_prints  whether all of them have fingerprints, which older versions did not write
    """

    def __init__(self, first: int) -> None:
        self.first = first
        self.shards: list[dict[str, Any]] = []
        self.stats = MergedStats()
        self.has_prints = True

    @property
    def count(self) -> int:
        """The number of samples."""
        return sum(shard["count"] for shard in self.shards)

    def add(self, record: Record) -> None:
        """Add a shard."""
        self.shards.append({part: record[part] for part in ("name", "bytes", "sha256", "count")})
        self.stats.add(record["stats"])


class StoredPrints:
    """(N,) FINGERPRINT in a file: those of a million images have 1 GB."""

    def __init__(self, file: IO[bytes], first: int, num_prints: int) -> None:
        self._file = file
        self._first = first
        self._num_prints = num_prints

    def __len__(self) -> int:
        return self._num_prints

    def __getitem__(self, part: slice | np.ndarray) -> np.ndarray:
        if isinstance(part, slice):
            first, end, _ = part.indices(len(self))
            return self._read(first, end - first)
        return np.array([self._read(number, 1)[0] for number in part], FINGERPRINT)

    def _read(self, first: int, count: int) -> np.ndarray:
        self._file.seek((self._first + first) * FINGERPRINT.itemsize)
        return np.frombuffer(self._file.read(count * FINGERPRINT.itemsize), FINGERPRINT)


class RecordSums:
    """What the index needs of all records, which are added in `index_order`.

    splits    by name
    stems     of all samples, in the order of the table
    warnings  how many there are of captures
    """

    def __init__(self, folder: Path) -> None:
        self.splits: dict[str, SplitSums] = {}
        self.stems: list[str] = []
        self.warnings = 0
        self._num_shards = 0
        self._rows: list[np.ndarray] = []
        self._text: list[bytes] = []
        self._text_bytes = 0
        self._edges: list[np.ndarray] = []
        self._prints = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (stays open)

    def __enter__(self) -> RecordSums:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._prints.close()

    def add(self, record: Record) -> None:
        """Add the record of the next shard."""
        split = record["name"].split("/")[0]
        sums = self.splits.setdefault(split, SplitSums(len(self.stems)))
        sums.add(record)
        samples = record["samples"]
        if samples:
            rows, text = as_rows([(self._num_shards, *sample) for sample in samples])
            rows["name"] += self._text_bytes
            self._rows.append(rows)
            self._text.append(text)
            self._text_bytes += len(text)
        prints = b"".join(map(base64.b64decode, record.get("fingerprints", ())))
        num_bytes = len(samples) * FINGERPRINT.itemsize
        sums.has_prints &= len(prints) == num_bytes
        self._prints.write(prints if sums.has_prints else bytes(num_bytes))
        edges = [scores[0] for scores in record.get("edges", ()) if scores]  # EdgeScores.turned
        if edges:
            self._edges.append(np.array(edges, np.float64))
        self.stems += [stem for _, stem, *_ in samples]
        self.warnings += len(record.get("warnings", ()))
        self._num_shards += 1

    def rows(self) -> np.ndarray:
        """Return (N,) of `table_dtype`."""
        return np.concatenate(self._rows)

    def text(self) -> bytes:
        """Return the text of names."""
        return b"".join(self._text)

    def edges(self) -> np.ndarray:
        """Return (M, 4) float64, the edge scores of the captures that have some."""
        return np.concatenate([np.empty((0, 4)), *self._edges])

    def prints(self, split: str) -> StoredPrints:
        """Return the fingerprints of a split."""
        return StoredPrints(self._prints, self.splits[split].first, self.splits[split].count)

    def stems_of(self, split: str) -> list[str]:
        """Return the stems of a split's captures."""
        first = self.splits[split].first
        return self.stems[first : first + self.splits[split].count]
