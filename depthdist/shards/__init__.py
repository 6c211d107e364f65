"""Shards: what a dataset folder made by `tools/shard.py` looks like, and how it is read and checked.

    OUT/index.json                     written last: sizes, depth step, statistics, and every member's place and CRC-32
    OUT/{train,val}/shard-000000.tar   plain USTAR; a sample is KEY.depth.npy KEY.mask.npy KEY.meta.json KEY.rgb.jpg
    OUT/{train,val}/shard-000000.json  the same facts of one shard, its commit record
    OUT/rejects.jsonl                  the raw files that no sample was made of, and why

    depth.npy   uint16 (H, W): depth_mm = value * step_mm, 0 where invalid; off by step_mm / 2 at most
    mask.npy    uint8 (H, ceil(W / 8)): the valid pixels, np.packbits along W
    rgb.jpg     or rgb.png: uint8 (h, w, 3) at the network's size
    meta.json   the capture's name, session, files with their sha256, valid fraction, bounds, intrinsics

`read_index` gives an `Index`, which says where the bytes of every sample are; `decode_sample` makes arrays of those bytes.
Nothing pickled is ever loaded. `python tools/shard.py --verify OUT` is `verify`.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from depthdist.config import Size

SCHEMA, VERSION = "depthdist-shards", 1
MEMBERS = ("depth.npy", "mask.npy", "meta.json")  # and rgb.jpg or rgb.png, in this order in the tar
SHARD_NAME = re.compile(r"[a-z]+/shard-\d{6,}\.tar")
SAMPLE_KEY = re.compile(r"\d{8,}")


class SampleRef(NamedTuple):
    """Where one sample is. `members` holds (offset in the tar, size, CRC-32) by member name: "depth.npy", "rgb.jpg" ..."""

    key: str
    stem: str
    shard: Path
    members: dict[str, tuple[int, int, int]]


@dataclass(frozen=True)
class Index:
    """A dataset folder's index. `size` is the RGB's height and width, `depth_size` that of depth and mask.

    `stats[split]` has min_mm, max_mm, mean_mm, std_mm over the valid pixels, valid_fraction, and histogram
    {bin_mm, counts}; `sha256` is that of index.json and so names the dataset.
    """

    folder: Path
    size: Size
    depth_size: Size
    step_mm: float
    near_mm: float
    far_mm: float
    stats: dict[str, dict[str, Any]]
    sha256: str
    raw: dict[str, Any]

    @property
    def rgb_member(self) -> str:
        return "rgb.jpg" if self.raw["rgb"]["codec"] == "jpeg" else "rgb.png"

    def samples(self, split: str) -> list[SampleRef]:
        """Every sample of a split, in the order of the tars."""
        if split not in self.raw["splits"]:
            raise ValueError(f"{self.folder}: has no split {split!r}; it has {', '.join(self.raw['splits'])}")
        return [
            SampleRef(key, stem, self.folder / shard["name"], {m: tuple(place) for m, place in members.items()})
            for shard in self.raw["splits"][split]["shards"]
            for key, stem, members in shard["samples"]
        ]


def read_index(folder: Path | str) -> Index:
    """The index of a dataset folder, once every shard is there and has its size.

    raises ValueError: no folder, no or a broken index.json, another version, a shard missing or of another size
    """
    index = _load_index(Path(folder))
    for shard in _shards(index):
        path = index.folder / shard["name"]
        found = path.stat().st_size if path.is_file() else None
        if found is None:
            raise ValueError(f"{path}: the shard is missing; the index lists it with {shard['count']} samples")
        if found != shard["bytes"]:
            raise ValueError(f"{path}: {found:,} bytes; the index says {shard['bytes']:,} (cut off, or of another run)")
    return index


def _shards(index: Index) -> list[dict[str, Any]]:
    return [shard for split in index.raw["splits"].values() for shard in split["shards"]]


def _load_index(folder: Path) -> Index:
    path = folder / "index.json"
    if not folder.is_dir():
        raise ValueError(f"{folder}: {'is a file' if folder.exists() else 'no such folder'}; expected a folder written by tools/shard.py")
    try:
        content = path.read_bytes()
        raw = json.loads(content)
    except FileNotFoundError:
        unfinished = (folder / ".build").exists()
        hint = "the sharding did not finish; run tools/shard.py again" if unfinished else "expected a folder written by tools/shard.py"
        raise ValueError(f"{folder}: has no index.json; {hint}") from None
    except OSError as err:
        raise ValueError(f"{path}: cannot be read ({err.strerror})") from err
    except ValueError as err:
        raise ValueError(f"{path}: not JSON ({err}); run tools/shard.py again") from err
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        raise ValueError(f"{path}: not an index of shards; expected schema {SCHEMA!r}")
    if raw.get("version") != VERSION:
        raise ValueError(f"{path}: version is {raw.get('version')!r}; this code reads {VERSION}: shard the captures again")
    try:
        depth = raw["depth"]
        stats = {split: content["stats"] for split, content in raw["splits"].items()}
        sha256 = hashlib.sha256(content).hexdigest()
        index = Index(folder, Size(*raw["size"]), Size(*depth["size"]), depth["step_mm"], depth["near_mm"], depth["far_mm"], stats, sha256, raw)
        index.rgb_member, [stats[split][name] + 0.0 for split in stats for name in ("min_mm", "mean_mm", "max_mm")]
        [(s["count"] + s["bytes"], s["sha256"] + "") for s in _shards(index)], [split["count"] + 0 for split in raw["splits"].values()]
        wrong = [s["name"] for s in _shards(index) if not SHARD_NAME.fullmatch(s["name"])]
        wrong += [key for s in _shards(index) for key, _, _ in s["samples"] if not SAMPLE_KEY.fullmatch(key)]
    except (AttributeError, KeyError, TypeError, ValueError) as err:  # every part that is used later was touched above
        raise ValueError(f"{path}: broken ({type(err).__name__}: {err}); run tools/shard.py again") from err
    if wrong:
        raise ValueError(f"{path}: names {wrong[0]!r}, which tools/shard.py never writes")
    return index


# ------------------------------------------------------------------------------------------------------- decoding


def decode_sample(members: dict[str, bytes], index: Index) -> dict[str, Any]:
    """The arrays of one sample from its members' bytes.

    returns   rgb (h, w, 3) uint8; depth (H, W) uint16, in steps of index.step_mm, 0 where invalid, read-only;
              mask (H, W) bool; meta, a dict
    raises ValueError: a member missing or unknown, another shape or dtype than the index says, bytes that cannot be decoded
    """
    wanted = {*MEMBERS, index.rgb_member}
    if set(members) != wanted:
        raise ValueError(f"members are {', '.join(sorted(members))}; expected {', '.join(sorted(wanted))}")
    height, width = index.depth_size
    packed = _read_npy("mask.npy", members["mask.npy"], (height, -(-width // 8)), np.dtype(np.uint8))
    return {
        "rgb": _read_rgb(index.rgb_member, members[index.rgb_member], index.size),
        "depth": _read_npy("depth.npy", members["depth.npy"], (height, width), np.dtype("<u2")),
        "mask": np.unpackbits(packed, axis=1, count=width).view(bool),
        "meta": json.loads(members["meta.json"]),
    }


def _read_npy(name: str, content: bytes, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """A view of a `.npy`'s numbers, once its header says what was expected: nothing is allocated, copied or unpickled."""
    file = BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError(f"{name}: not a .npy of format 1.0")
    found_shape, fortran, found = np.lib.format.read_array_header_1_0(file)
    if (found_shape, found, fortran) != (shape, dtype, False):
        raise ValueError(f"{name}: {found} {found_shape}; expected {dtype} {shape}")
    if len(content) != file.tell() + shape[0] * shape[1] * dtype.itemsize:
        raise ValueError(f"{name}: {len(content)} bytes do not fit {dtype} {shape}")
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape)


def _read_rgb(name: str, content: bytes, size: Size) -> np.ndarray:
    try:
        if name == "rgb.jpg":
            found = simplejpeg.decode_jpeg_header(content)[:2]
        else:
            image = Image.open(BytesIO(content), formats=["PNG"])
            found = image.size[::-1]
        if found == size:  # before anything of that size is allocated
            return simplejpeg.decode_jpeg(content, colorspace="RGB") if name == "rgb.jpg" else np.array(image.convert("RGB"))
    except Exception as err:  # Pillow raises much besides OSError
        raise ValueError(f"{name}: cannot be decoded ({' '.join(str(err).split())})") from err
    raise ValueError(f"{name}: {found[0]}x{found[1]}; expected {size}")


# ------------------------------------------------------------------------------------------------------- verifying


def verify(folder: Path | str, workers: int = 1, progress: Callable[[int], Any] = lambda samples: None) -> list[str]:
    """What is wrong with a dataset folder, one line each naming shard, key and member; empty when all is well.

    Every byte is read: sizes, sha256 of each tar, tar headers against the index, CRC-32 and decoding of every member, depth
    against mask, commit records, keys used twice, files that do not belong. `progress` is told of samples done.
    """
    try:
        index = _load_index(Path(folder))
    except ValueError as err:
        return [str(err)]
    problems = []
    seen: dict[str, str] = {}
    for name, split in index.raw["splits"].items():
        if split["count"] != (listed := sum(len(s["samples"]) for s in split["shards"])):
            problems.append(f"index.json: {name} has count {split['count']}, but lists {listed} samples")
        for shard in split["shards"]:
            if shard["count"] != len(shard["samples"]):
                problems.append(f"{shard['name']}: count is {shard['count']}, but {len(shard['samples'])} samples are listed")
            for key, _, _ in shard["samples"]:
                if seen.setdefault(key, shard["name"]) != shard["name"]:
                    problems.append(f"{shard['name']}: {key}: the key is also in {seen[key]}")
    known = {s["name"] for s in _shards(index)}
    for path in sorted(p for split in ("train", "val") for p in (index.folder / split).glob("*")):
        name = path.relative_to(index.folder).as_posix()
        if name not in known and str(Path(name).with_suffix(".tar")) not in known:
            problems.append(f"{name}: does not belong here; the index does not list it")
    with ThreadPoolExecutor(max(1, workers)) as pool:  # hashing and decoding release the GIL
        for found in pool.map(lambda shard: _verify_shard(index, shard, progress), _shards(index)):
            problems += found
    return problems


def _verify_shard(index: Index, shard: dict[str, Any], progress: Callable[[int], Any]) -> list[str]:
    name, path, problems = shard["name"], index.folder / shard["name"], []
    try:
        record = json.loads(path.with_suffix(".json").read_bytes())
        if any(record.get(part) != shard[part] for part in ("count", "bytes", "sha256", "samples")):
            problems.append(f"{name}: its commit record {path.with_suffix('.json').name} and index.json disagree")
    except (OSError, ValueError, AttributeError) as err:
        problems.append(f"{name}: its commit record {path.with_suffix('.json').name} cannot be read ({err})")
    try:
        with open(path, "rb") as file:
            sha256, size = hashlib.sha256(), 0
            while block := file.read(1 << 20):
                sha256.update(block)
                size += len(block)
            if size != shard["bytes"]:
                problems.append(f"{name}: {size:,} bytes; expected {shard['bytes']:,}")
            if sha256.hexdigest() != shard["sha256"]:
                problems.append(f"{name}: sha256 is {sha256.hexdigest()[:16]}..., expected {shard['sha256'][:16]}...")
            file.seek(0)
            problems += [f"{name}: {p}" for p in _verify_headers(file, shard)]
            for key, _, places in shard["samples"]:
                problems += [f"{name}: {key}: {p}" for p in _verify_sample(index, file, places)]
                progress(1)
    except OSError as err:
        problems.append(f"{name}: {'the shard is missing' if isinstance(err, FileNotFoundError) else err.strerror}")
    return problems


def _verify_headers(file, shard: dict[str, Any]) -> list[str]:
    """What tarfile finds, which any plain tool will see, against what the index lists."""
    listed = [(f"{key}.{m}", *places[m][:2]) for key, _, places in shard["samples"] for m in places]
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            found = [(m.name, m.offset_data, m.size) for m in tar]
    except tarfile.TarError as err:
        return [f"not a tar that can be read ({err})"]
    for number, (there, wanted) in enumerate(zip(found, listed)):
        if there != wanted:
            return [f"tar member {number} is {there[0]} at {there[1]} with {there[2]} bytes; expected {wanted[0]} at {wanted[1]} with {wanted[2]}"]
    return [f"the tar shows {len(found)} members; expected {len(listed)}"] if len(found) != len(listed) else []


def _verify_sample(index: Index, file, places: dict[str, list[int]]) -> list[str]:
    problems, members = [], {}
    for member, (offset, size, crc) in places.items():
        file.seek(offset)
        members[member] = file.read(size)
        if len(members[member]) != size:
            problems.append(f"{member}: {len(members[member]):,} bytes; expected {size:,}")
        elif (found := zlib.crc32(members[member])) != crc:
            problems.append(f"{member}: crc32 is {found:08x}, expected {crc:08x} (offset {offset:,})")
    if problems:
        return problems
    try:
        sample = decode_sample(members, index)
    except Exception as err:  # whatever the decoders raise on bytes that cannot be right
        return [f"cannot be decoded: {' '.join(str(err).split())}"]
    differ = int(((sample["depth"] > 0) != sample["mask"]).sum())
    return [f"mask.npy: {differ} pixels differ from depth.npy > 0"] if differ else []
