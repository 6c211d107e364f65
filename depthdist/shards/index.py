"""The index of a dataset: where the bytes of every sample are.

    index = read_index("data/tires")                  # a folder, or a URL with a cache
    ref = index.samples("train")[3]  # key, stem, shard, and each member's place and CRC-32
    path = index.shard_path(ref.number)               # the tar on this machine

Opening takes little time and memory, whatever the number of samples: index.json is small, and what
grows with the samples is a NumPy table and a text file that stay on the disk. A row is read when
its sample is.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, overload

import numpy as np

from depthdist.core.files import read_at
from depthdist.core.settings import Size
from depthdist.shards.index_schema import parse_index
from depthdist.shards.remote_cache import Cache, CacheSettings, is_remote, join

EXPECTED = "a folder written by depthdist shard"
MAX_NAME_BYTES = 4352  # of a sample's line in the text of names: a path and a key


class Damaged(ValueError):
    """Bytes that are not what the index says: which shard, sample, member, and where in the tar."""

    def __init__(
        self, shard: Path | str, key: str, stem: str, member: str, offset: int, reason: str
    ):
        super().__init__(shard, key, stem, member, offset, reason)
        self.facts: dict[str, Any] = {
            "shard": str(shard),
            "key": key,
            "stem": stem,
            "member": member,
            "offset": offset,
            "reason": reason,
        }

    def __str__(self) -> str:
        shard, key, stem, member, offset, reason = self.facts.values()
        sample = key if stem == key else f"{key} ({stem})"
        part = f"member {member}" if "." in member else member  # else the shard, or a tar header
        return f"{shard}: sample {sample}: {part} at byte {offset}: {reason}"


class SampleRef(NamedTuple):
    """Where one sample is.

    key, stem       its name in the tar, the capture's name
    shard, number   the tar (path or URL), and its number in the index
    session         number of the session it was captured in
    start, length   the bytes of the tar that hold it, headers included, and their CRC-32
    members         (offset in the tar, size, CRC-32) by name: "depth.npy", "rgb.jpg" ...
    """

    key: str
    stem: str
    shard: Path | str
    number: int
    session: int
    start: int
    length: int
    crc: int
    members: dict[str, tuple[int, int, int]]


def table_dtype(num_members: int) -> np.dtype:
    """Return the dtype of a row of the sample table.

    `at` counts from `start`; `name` is the offset of the sample's line in the text of names.
    """
    per_member = (num_members,)
    return np.dtype(
        [
            ("shard", "<u4"),
            ("session", "<u4"),
            ("start", "<u8"),
            ("length", "<u4"),
            ("crc", "<u4"),
            ("name", "<u8"),
            ("at", "<u4", per_member),
            ("size", "<u4", per_member),
            ("member_crc", "<u4", per_member),
        ]
    )


@dataclass(frozen=True)
class Index:
    """A dataset's index. `size` is the RGB's height and width, `depth_size` that of depth and mask.

    size           of images as they are read; their own is another where `resizes` is true
    place          the folder, or the URL
    stats[split]   min_mm, max_mm, mean_mm, std_mm over the valid pixels, their number valid_pixels,
                   valid_fraction, percentiles_mm, and histogram {bin_mm, counts}
    sha256         that of index.json, which holds those of all other files: it names the content
    """

    place: str
    size: Size
    depth_size: Size
    step_mm: float
    near_mm: float
    far_mm: float
    stats: dict[str, dict[str, Any]]
    sha256: str
    raw: dict[str, Any] = field(repr=False)
    cache: Cache | None = field(repr=False, default=None)

    def __reduce__(self) -> tuple[Any, ...]:
        # another process opens its own files
        return _reopen, (self.place, self.cache and self.cache.settings, self.sha256, self.size)

    @property
    def resizes(self) -> bool:
        """Whether images are stored at other sizes than `size`, and resized as they are read."""
        return bool(self.raw["rgb"].get("resize"))

    def with_size(self, size: Size | None) -> Index:
        """Return the index with images that are resized to `size` where they are as they are read.

        Where they are stored at one size, or None is given, it stays as it is.
        """
        return self if size is None or not self.resizes else replace(self, size=Size(*size))

    @property
    def members(self) -> list[str]:
        """A sample's members, in the order of the table's columns."""
        return self.raw["members"]

    @property
    def shards(self) -> list[dict[str, Any]]:
        """{name, bytes, sha256, count} of each."""
        return self.raw["shards"]

    @property
    def num_samples(self) -> int:
        """The number of samples of all splits."""
        return sum(split["count"] for split in self.raw["splits"].values())

    @cached_property
    def _table(self) -> tuple[BinaryIO, int]:
        """The open table, and the byte its rows begin at."""
        file = open(self.file("table"), "rb", buffering=0)  # noqa: SIM115  (stays open)
        try:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        except Exception as err:  # NumPy raises TokenError, RecursionError ... on what is none
            raise ValueError(
                f"{file.name}: not a table of samples ({err}); run depthdist shard again"
            ) from err
        expected = table_dtype(len(self.members))
        if dtype != expected or shape != (self.num_samples,):
            raise ValueError(
                f"{file.name}: {shape} rows of {dtype.itemsize} bytes; expected"
                f" ({self.num_samples},) of {expected.itemsize}"
            )
        return file, file.tell()

    @cached_property
    def _names(self) -> BinaryIO:
        return open(self.file("names"), "rb", buffering=0)

    def open_files(self) -> tuple[BinaryIO, BinaryIO]:
        """Open the table and the names, raise ValueError if they cannot be used."""
        return self._table[0], self._names

    def table(self) -> np.ndarray:
        """Read (num_samples,) of `table_dtype` from the disk: all samples, split by split."""
        return np.load(self.file("table"), allow_pickle=False)

    def file(self, part: str) -> Path:
        """Return the path of the "table" or the "names" on this machine."""
        entry = self.raw[part]
        if self.cache:
            url = join(self.place, entry["name"])
            path = self.cache.fetch(url, entry["sha256"], entry["bytes"])
        else:
            path = Path(self.place) / entry["name"]
        _check_size(path, entry["bytes"], "file")
        return path

    def shard_path(self, number: int) -> Path:
        """Return the path of the tar on this machine; a remote one is fetched if it is missing."""
        shard = self.shards[number]
        if self.cache is None:
            return Path(self.place) / shard["name"]
        return self.cache.fetch(self.url(number), shard["sha256"], shard["bytes"])

    def is_here(self, number: int) -> bool:
        """Return whether the tar can be read without fetching it."""
        shard = self.shards[number]
        return self.cache is None or self.cache.has(shard["sha256"], shard["bytes"])

    def check_shards(self, part: int = 0, of: int = 1) -> None:
        """Raise ValueError unless each local shard is there and has its size.

        part, of  look at every `of`-th shard from number `part` on: several processes share them
        """
        for shard in self.shards[part::of] if self.cache is None else []:
            path = Path(self.place) / shard["name"]
            _check_size(path, shard["bytes"], f"shard of {shard['count']} samples")

    def url(self, number: int) -> str:
        """Return the URL of the tar, or its path if the dataset is not remote."""
        name = self.shards[number]["name"]
        return join(self.place, name) if self.cache else str(Path(self.place) / name)

    def samples(self, split: str) -> Samples:
        """Return every sample of a split, in the order of the tars."""
        splits = self.raw["splits"]
        if split not in splits:
            raise ValueError(f"{self.place}: has no split {split!r}; it has {', '.join(splits)}")
        first_row = 0
        for name in itertools.takewhile(lambda name: name != split, splits):
            first_row += splits[name]["count"]
        return Samples(self, first_row, splits[split]["count"])

    def row(self, number: int) -> SampleRef:
        """Return the sample of a row of the table, raise ValueError if it is outside its shard."""
        file, first = self._table
        dtype = table_dtype(len(self.members))
        content = read_at(file.fileno(), dtype.itemsize, first + number * dtype.itemsize)
        complete = len(content) == dtype.itemsize
        row = np.frombuffer(content, dtype)[0] if complete else np.zeros(1, dtype)[0]
        start, length, shard = int(row["start"]), int(row["length"]), int(row["shard"])
        outside = shard >= len(self.shards) or start + length > self.shards[shard]["bytes"]
        if length == 0 or outside or row["name"] >= self.raw["names"]["bytes"]:
            raise ValueError(
                f"{file.name}: row {number} is no sample of a shard; `depthdist shard --verify`"
                " lists all damage"
            )
        if not (row["at"].astype(np.int64) + row["size"] <= length).all():
            raise ValueError(
                f"{file.name}: row {number} has a member outside its sample; `depthdist shard"
                " --verify` lists all damage"
            )
        key, stem = self._key_and_stem(int(row["name"]))
        columns = zip(row["at"].tolist(), row["size"].tolist(), row["member_crc"].tolist())
        return SampleRef(
            key=key,
            stem=stem,
            shard=self.url(shard) if self.cache else self.shard_path(shard),
            number=shard,
            session=int(row["session"]),
            start=start,
            length=length,
            crc=int(row["crc"]),
            members={
                name: (start + offset, size, crc)
                for name, (offset, size, crc) in zip(self.members, columns)
            },
        )

    def _key_and_stem(self, offset: int) -> tuple[str, str]:
        """Read the line that begins at that byte of the text of names."""
        text = read_at(self._names.fileno(), MAX_NAME_BYTES, offset)
        line = text.partition(b"\n")[0].decode(errors="replace")
        key, _, stem = line.partition(" ")
        return key, stem


class Samples(Sequence[SampleRef]):
    """The samples of a split; each is looked up when it is asked for."""

    def __init__(self, index: Index, first_row: int, num_samples: int):
        self._index = index
        self._first_row = first_row
        self._num_samples = num_samples

    def __len__(self) -> int:
        return self._num_samples

    @overload
    def __getitem__(self, i: int) -> SampleRef: ...

    @overload
    def __getitem__(self, i: slice) -> list[SampleRef]: ...

    def __getitem__(self, i: int | slice) -> SampleRef | list[SampleRef]:
        if isinstance(i, slice):
            return [self[number] for number in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        return self._index.row(self._first_row + i % len(self))

    @property
    def rows(self) -> np.ndarray:
        """(N,) of `table_dtype`, all rows of the split."""
        return self._index.table()[self._first_row : self._first_row + len(self)]


# ------------------------------------------------------------------------------------------ opening


def read_index(
    place: Path | str, cache: Cache | None = None, whole: bool = True, expected: str = EXPECTED
) -> Index:
    """Open the index of a dataset in a folder, or behind a URL through `cache`.

    whole     also check that every local shard is there and has its size
    expected  what an error says that the place should be
    raises ValueError: no folder, no or a broken index.json, another version, a file missing or of
    another size
    """
    index = load_index(place, cache, expected)
    if index.cache is None:
        for part in ("table", "names"):
            index.file(part)
    if whole:
        index.check_shards()
    index.open_files()
    return index


def _reopen(place: str, settings: CacheSettings | None, sha256: str, size: Size) -> Index:
    """Open an index in another process, raise ValueError if it is not the same any more."""
    index = read_index(place, Cache(settings) if settings else None, whole=False)
    if index.sha256 != sha256:
        raise ValueError(f"{place}: the data changed while it was read")
    return index.with_size(size)


def _check_size(path: Path, expected: int, what: str) -> None:
    try:
        found = path.stat().st_size
    except OSError:
        raise ValueError(f"{path}: the {what} is missing; the index lists it") from None
    if found != expected:
        raise ValueError(
            f"{path}: {found:,} bytes; the index says {expected:,} (cut off, or of another run)"
        )


def load_index(place: Path | str, cache: Cache | None = None, expected: str = EXPECTED) -> Index:
    """Read index.json without looking at the other files."""
    place = str(place)
    if is_remote(place):
        if cache is None:
            raise ValueError(f"{place}: is remote; it needs a cache")
        url = join(place, "index.json")
        return _from_json(place, url, cache.small(url), cache)
    folder = Path(place.removeprefix("file://"))
    path = folder / "index.json"
    if not folder.is_dir():
        if folder.exists() and folder.suffix in (".yaml", ".yml"):
            expected = "the folder of captures that its `path` names"
        problem = "is a file" if folder.exists() else "no such folder"
        raise ValueError(f"{folder}: {problem}; expected {expected}")
    try:
        return _from_json(str(folder), path, path.read_bytes(), None)
    except FileNotFoundError:
        raise ValueError(f"{folder}: has no index.json; {_advice_for(folder, expected)}") from None
    except OSError as err:
        raise ValueError(f"{path}: cannot be read ({err.strerror})") from err


def _advice_for(folder: Path, expected: str) -> str:
    """Return what to do about a folder without an index.json."""
    if (folder / ".build").exists():
        return "the sharding did not finish; run depthdist shard again"
    advice = f"expected {expected}"
    if next(folder.rglob("*.tar"), None) is not None:
        advice += "; `depthdist shard --index` makes one for tars of others"
    return advice


def _from_json(place: str, path: Path | str, content: bytes, cache: Cache | None) -> Index:
    raw = parse_index(path, content)
    depth = raw["depth"]
    return Index(
        place=place,
        size=Size(*raw["size"]),
        depth_size=Size(*depth["size"]),
        step_mm=depth["step_mm"] + 0.0,
        near_mm=depth["near_mm"] + 0.0,
        far_mm=depth["far_mm"] + 0.0,
        stats={name: split["stats"] for name, split in raw["splits"].items()},
        sha256=hashlib.sha256(content).hexdigest(),
        raw=raw,
        cache=cache,
    )


# ------------------------------------------------------------------------------------------ writing


def as_rows(samples: list[tuple[Any, ...]]) -> tuple[np.ndarray, bytes]:
    """Return the table's rows and the text of names.

    samples  at least one; of each: shard, key, stem, session, start, length, CRC-32, and
             [[offset, size, CRC-32], ...] of its members
    """
    shards, keys, stems, sessions, starts, lengths, crcs, members = zip(*samples)
    lines = [f"{key} {stem}\n".encode() for key, stem in zip(keys, stems)]
    rows = np.zeros(len(samples), table_dtype(len(members[0])))
    rows["shard"] = shards
    rows["session"] = sessions
    rows["start"] = starts
    rows["length"] = lengths
    rows["crc"] = crcs
    rows["name"] = np.cumsum([0, *map(len, lines[:-1])])
    places = np.array(members, np.int64)  # (N, M, 3)
    rows["at"] = places[:, :, 0] - rows["start"][:, None].astype(np.int64)
    rows["size"] = places[:, :, 1]
    rows["member_crc"] = places[:, :, 2]
    return rows, b"".join(lines)


def named_by_content(kind: str, suffix: str, content: bytes) -> dict[str, Any]:
    """Return {name, bytes, sha256} of a file whose name no other content has."""
    sha256 = hashlib.sha256(content).hexdigest()
    return {"name": f"{kind}-{sha256[:16]}{suffix}", "bytes": len(content), "sha256": sha256}
