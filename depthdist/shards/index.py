"""Where the bytes of every sample are: opened in no time and little memory, whatever the number of
samples.

    index = read_index("data/tires")                  # a folder, or a URL with a cache (remote.py)
    ref = index.samples("train")[3]  # key, stem, shard, and each member's place and CRC-32
    path = index.shard_path(ref.number)               # the tar on this machine

index.json is small. What grows with the samples is a NumPy table and a text file that stay on the
disk: a row is read when its sample is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, overload

import numpy as np

from depthdist.core.settings import Size
from depthdist.shards import SCHEMA, VERSION
from depthdist.shards.remote_cache import Cache, CacheSettings, is_remote, join

SHARD_NAME = re.compile(r"(?!/)(?!.*(^|/)\.\.(/|$))[^\0\n\\]+\.tar")  # below the folder
NAME_MOST = 4352  # bytes of a sample's line in the text of names, at most: a path and a key
TABLE_NAME = re.compile(r"(samples-[0-9a-f]{16}\.npy|names-[0-9a-f]{16}\.txt)")


class Damaged(ValueError):
    """Bytes that are not what the index says: which shard, sample, member, and where in the tar."""

    def __init__(
        self, shard: Path | str, key: str, stem: str, member: str, offset: int, reason: str
    ):
        super().__init__(shard, key, stem, member, offset, reason)
        self.facts = {
            "shard": str(shard),
            "key": key,
            "stem": stem,
            "member": member,
            "offset": offset,
            "reason": reason,
        }

    def __str__(self) -> str:
        named = "{key}" if self.facts["stem"] == self.facts["key"] else "{key} ({stem})"
        what = (
            "member {member}" if "." in self.facts["member"] else "{member}"
        )  # else the shard, or a tar header
        return ("{shard}: sample " + named + ": " + what + " at byte {offset}: {reason}").format(
            **self.facts
        )


class SampleRef(NamedTuple):
    """Where one sample is.

    key, stem       its name in the tar, the capture's name
    shard, number   the tar (path or URL), and its place in the index
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
    """A row of the sample table.

    `at` counts from `start`; `name` is the offset of the sample's line in the text of names.
    """
    each = (num_members,)
    return np.dtype(
        [
            ("shard", "<u4"),
            ("session", "<u4"),
            ("start", "<u8"),
            ("length", "<u4"),
            ("crc", "<u4"),
            ("name", "<u8"),
        ]
        + [("at", "<u4", each), ("size", "<u4", each), ("member_crc", "<u4", each)]
    )


@dataclass(frozen=True)
class Index:
    """A dataset's index. `size` is the RGB's height and width, `depth_size` that of depth and mask.

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

    def __reduce__(self):  # another process opens its own files
        return _reopened, (self.place, self.cache and self.cache.settings, self.sha256)

    @property
    def members(self) -> list[str]:
        """Of a sample, in the order of the table's columns."""
        return self.raw["members"]

    @property
    def shards(self) -> list[dict[str, Any]]:
        """{name, bytes, sha256, count} of each."""
        return self.raw["shards"]

    @property
    def num_samples(self) -> int:
        """Of all splits."""
        return sum(split["count"] for split in self.raw["splits"].values())

    @cached_property
    def _table(self) -> tuple[BinaryIO, int]:
        """The table, open for good, and the byte its rows begin at."""
        file = open(self.file("table"), "rb", buffering=0)
        try:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        except ValueError as err:
            raise ValueError(
                f"{file.name}: not a table of samples ({err}); run tools/shard.py again"
            ) from err
        if dtype != table_dtype(len(self.members)) or shape != (self.num_samples,):
            raise ValueError(
                f"{file.name}: {shape} rows of {dtype.itemsize} bytes; expected"
                f" ({self.num_samples},) of {table_dtype(len(self.members)).itemsize}"
            )
        return file, file.tell()

    @cached_property
    def _names(self) -> BinaryIO:
        return open(self.file("names"), "rb", buffering=0)

    def table(self) -> np.ndarray:
        """(num_samples,) of `table_dtype`, read anew each time: all samples, split by split."""
        return np.load(self.file("table"), allow_pickle=False)

    def file(self, what: str) -> Path:
        """The table or the names, on this machine."""
        entry = self.raw[what]
        path = (
            self.cache.fetch(join(self.place, entry["name"]), entry["sha256"], entry["bytes"])
            if self.cache
            else Path(self.place) / entry["name"]
        )
        _same_bytes(path, entry["bytes"], "file")
        return path

    def shard_path(self, number: int) -> Path:
        """The tar on this machine; a remote one is fetched where it is not there yet."""
        shard = self.shards[number]
        if self.cache is None:
            return Path(self.place) / shard["name"]
        return self.cache.fetch(self.url(number), shard["sha256"], shard["bytes"])

    def url(self, number: int) -> str:
        return (
            join(self.place, self.shards[number]["name"])
            if self.cache
            else str(Path(self.place) / self.shards[number]["name"])
        )

    def samples(self, split: str) -> Samples:
        """Every sample of a split, in the order of the tars."""
        if split not in self.raw["splits"]:
            raise ValueError(
                f"{self.place}: has no split {split!r}; it has {', '.join(self.raw['splits'])}"
            )
        before = 0
        for name, content in self.raw["splits"].items():
            if name == split:
                return Samples(self, before, content["count"])
            before += content["count"]

    def row(self, number: int) -> SampleRef:
        """The sample of that row of the table. raises ValueError when the row points outside its
        shard
        """
        file, first = self._table
        dtype = table_dtype(len(self.members))
        content = os.pread(file.fileno(), dtype.itemsize, first + number * dtype.itemsize)
        row = (
            np.frombuffer(content, dtype)[0]
            if len(content) == dtype.itemsize
            else np.zeros(1, dtype)[0]
        )
        start, length, shard = int(row["start"]), int(row["length"]), int(row["shard"])
        if length == 0 or shard >= len(self.shards) or start + length > self.shards[shard]["bytes"]:
            raise ValueError(
                f"{file.name}: row {number} is no sample of a shard; `tools/shard.py --verify`"
                " lists all damage"
            )
        if not (row["at"].astype(np.int64) + row["size"] <= length).all():
            raise ValueError(
                f"{file.name}: row {number} has a member outside its sample; `tools/shard.py"
                " --verify` lists all damage"
            )
        key, _, stem = (
            os.pread(self._names.fileno(), NAME_MOST, int(row["name"]))
            .partition(b"\n")[0]
            .decode(errors="replace")
            .partition(" ")
        )
        columns = zip(row["at"].tolist(), row["size"].tolist(), row["member_crc"].tolist())
        members = {
            name: (start + offset, size, crc)
            for name, (offset, size, crc) in zip(self.members, columns)
        }
        place = self.url(shard) if self.cache else Path(self.place) / self.shards[shard]["name"]
        return SampleRef(
            key, stem, place, shard, int(row["session"]), start, length, int(row["crc"]), members
        )


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
    def shard_numbers(self) -> np.ndarray:
        """(N,) the shard that each sample is in."""
        rows = self._index.table()[self._first_row : self._first_row + len(self)]
        return rows["shard"]


# ------------------------------------------------------------------------------------------ opening


def read_index(place: Path | str, cache: Cache | None = None, whole: bool = True) -> Index:
    """The index of a dataset in a folder, or behind a URL through `cache`.

    whole   also see that every local shard is there and has its size
    raises ValueError: no folder, no or a broken index.json, another version, a file missing or of
    another size
    """
    index = load_index(place, cache)
    if index.cache is None:
        for what in ("table", "names"):
            index.file(what)
        for shard in index.shards if whole else []:
            _same_bytes(
                Path(index.place) / shard["name"],
                shard["bytes"],
                f"shard of {shard['count']} samples",
            )
    index._table, index._names
    return index


def _reopened(place: str, settings: CacheSettings | None, sha256: str) -> Index:
    index = read_index(place, settings and Cache(settings), whole=False)
    if index.sha256 != sha256:
        raise ValueError(f"{place}: the data changed while it was read")
    return index


def _same_bytes(path: Path, wanted: int, what: str) -> None:
    try:
        found = path.stat().st_size
    except OSError:
        raise ValueError(f"{path}: the {what} is missing; the index lists it") from None
    if found != wanted:
        raise ValueError(
            f"{path}: {found:,} bytes; the index says {wanted:,} (cut off, or of another run)"
        )


def load_index(place: Path | str, cache: Cache | None = None) -> Index:
    """What index.json says, without a look at the other files."""
    place = str(place)
    if is_remote(place):
        if cache is None:
            raise ValueError(f"{place}: is remote; it needs a cache")
        return _parsed(
            place, join(place, "index.json"), cache.small(join(place, "index.json")), cache
        )
    folder = Path(place.removeprefix("file://"))
    path = folder / "index.json"
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: {'is a file' if folder.exists() else 'no such folder'}; expected a folder"
            " written by tools/shard.py"
        )
    try:
        return _parsed(str(folder), path, path.read_bytes(), None)
    except FileNotFoundError:
        unfinished = (folder / ".build").exists()
        hint = (
            "the sharding did not finish; run tools/shard.py again"
            if unfinished
            else "expected a folder written by tools/shard.py"
        )
        tars = next(folder.rglob("*.tar"), None) is not None and not unfinished
        raise ValueError(
            f"{folder}: has no index.json;"
            f" {hint}{'; `tools/shard.py --index` makes one for tars of others' if tars else ''}"
        ) from None
    except OSError as err:
        raise ValueError(f"{path}: cannot be read ({err.strerror})") from err


def _parsed(place: str, path: Path | str, content: bytes, cache: Cache | None) -> Index:
    try:
        raw = json.loads(content)
    except ValueError as err:
        raise ValueError(f"{path}: not JSON ({err}); run tools/shard.py again") from err
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        raise ValueError(f"{path}: not an index of shards; expected schema {SCHEMA!r}")
    if raw.get("version") != VERSION:
        raise ValueError(
            f"{path}: version is {raw.get('version')!r}; this code reads {VERSION}: shard the"
            " captures again"
        )
    try:
        depth, splits = raw["depth"], raw["splits"]
        stats = {split: content["stats"] for split, content in splits.items()}
        numbers = [depth[name] + 0.0 for name in ("step_mm", "near_mm", "far_mm")]
        index = Index(
            place,
            Size(*raw["size"]),
            Size(*depth["size"]),
            *numbers,
            stats,
            hashlib.sha256(content).hexdigest(),
            raw,
            cache,
        )
        [
            stats[split][name] + 0.0
            for split in stats
            for name in ("min_mm", "mean_mm", "std_mm", "max_mm", "valid_pixels")
        ]
        [
            (s["count"] + s["bytes"], s["sha256"] + "")
            for s in (*index.shards, *({"count": 0, **raw[part]} for part in ("table", "names")))
        ]
        if sum(s["count"] + 0 for s in splits.values()) != sum(s["count"] for s in index.shards):
            raise ValueError("the counts of splits and shards differ")
        known = {depth["member"], raw["rgb"]["member"]} | {
            m for m in (raw["mask"]["member"], raw["meta"]["member"]) if m
        }
        if not known <= set(index.members):
            raise ValueError("members and their kinds disagree")
        wrong = [s["name"] for s in index.shards if not SHARD_NAME.fullmatch(s["name"])]
        wrong += [
            raw[part]["name"]
            for part in ("table", "names")
            if not TABLE_NAME.fullmatch(raw[part]["name"])
        ]
    except (
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
    ) as err:  # every part that is used later was touched above
        raise ValueError(
            f"{path}: broken ({type(err).__name__}: {err}); run tools/shard.py again"
        ) from err
    if wrong:
        raise ValueError(f"{path}: names {wrong[0]!r}, which tools/shard.py never writes")
    return index


# ------------------------------------------------------------------------------------------ writing


def as_rows(samples: list[tuple], first_name: int = 0) -> tuple[np.ndarray, bytes]:
    """The table's rows and the text of names for samples (shard, key, stem, session, start, length,
    crc, [[offset, size, crc], ...]).

    first_name  where in the whole text these names begin
    """
    lines = [f"{key} {stem}\n".encode() for _, key, stem, *_ in samples]
    rows = np.zeros(len(samples), table_dtype(len(samples[0][-1]) if samples else 0))
    for name, values in zip(
        ("shard", "session", "start", "length", "crc"), zip(*((s[0], *s[3:7]) for s in samples))
    ):
        rows[name] = values
    rows["name"] = first_name + np.cumsum([0, *map(len, lines[:-1])]) if samples else 0
    places = np.array([s[7] for s in samples], np.int64)  # (N, M, 3)
    rows["at"], rows["size"], rows["member_crc"] = (
        places[:, :, 0] - rows["start"][:, None].astype(np.int64),
        places[:, :, 1],
        places[:, :, 2],
    )
    return rows, b"".join(lines)


def named_by_content(kind: str, suffix: str, content: bytes) -> dict[str, Any]:
    """{name, bytes, sha256}: files of two datasets never share a name."""
    sha256 = hashlib.sha256(content).hexdigest()
    return {"name": f"{kind}-{sha256[:16]}{suffix}", "bytes": len(content), "sha256": sha256}
