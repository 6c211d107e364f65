"""What index.json must hold before anything else of it is used."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from depthdist.core.files import parse_json
from depthdist.core.settings import Size
from depthdist.shards import SCHEMA, VERSION

MAX_PIXELS = 2**28  # of an image: 16384 x 16384
CODECS = {"rgb": ("jpeg", "png", "raw"), "depth": ("npy", "png")}
SHARD_NAME = re.compile(r"(?!/)(?!.*(^|/)\.\.(/|$))[^\0\n\\]+\.tar")  # below the folder
TABLE_NAME = re.compile(r"(samples-[0-9a-f]{16}\.npy|names-[0-9a-f]{16}\.txt)")


def parse_index(path: Path | str, content: bytes) -> dict[str, Any]:
    """Return the content of index.json, raise ValueError if a part is missing or of a wrong type.

    path  where it comes from, for the message
    """
    try:
        raw = parse_json(content)
    except ValueError as err:
        raise ValueError(f"{path}: not JSON ({err}); run depthdist shard again") from err
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        raise ValueError(f"{path}: not an index of shards; expected schema {SCHEMA!r}")
    if raw.get("version") != VERSION:
        raise ValueError(
            f"{path}: version is {raw.get('version')!r}; this code reads {VERSION}: shard the"
            " captures again"
        )
    try:
        _access_every_part(raw)
        wrong = _wrong_names(raw)
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as err:
        raise ValueError(
            f"{path}: broken ({type(err).__name__}: {err}); run depthdist shard again"
        ) from err
    if wrong:
        raise ValueError(f"{path}: names {wrong[0]!r}, which depthdist shard never writes")
    return raw


def _access_every_part(raw: dict[str, Any]) -> None:
    """Access every part that is used later, so that what is missing raises an error now."""
    depth = raw["depth"]
    splits = raw["splits"]
    _positive(depth["step_mm"])
    if not 0 <= _number(depth["near_mm"]) < _number(depth["far_mm"]):
        raise ValueError(f"near_mm is {depth['near_mm']}, far_mm is {depth['far_mm']}")
    for size in (raw["size"], depth["size"]):
        _check_size(size)
    for split in splits.values():
        _check_statistics(split["stats"])
    files = [{"count": 0, **raw[part]} for part in ("table", "names")]
    for entry in (*raw["shards"], *files):
        _count(entry["count"])
        _count(entry["bytes"])
        _text(entry["sha256"])
    if sum(_count(split["count"]) for split in splits.values()) != sum(
        shard["count"] for shard in raw["shards"]
    ):
        raise ValueError("the counts of splits and shards differ")
    _check_members(raw)
    for name in ("settings", "groups"):  # read by --append
        if not isinstance(raw.get(name, {}), dict):
            raise TypeError(f"{name} is {raw[name]!r:.40}, expected an object")


def _check_statistics(stats: dict[str, Any]) -> None:
    for name in ("min_mm", "mean_mm", "std_mm", "max_mm", "valid_pixels"):
        _number(stats[name])
    if not 0 < stats["min_mm"] <= stats["max_mm"]:
        raise ValueError(f"min_mm is {stats['min_mm']}, max_mm is {stats['max_mm']}")


def _check_size(size: Any) -> None:
    """Raise ValueError unless it is a height and a width of an image that memory can hold."""
    height, width = map(_count, Size(*size))
    if not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"{height}x{width} is not the size of an image")


def _check_members(raw: dict[str, Any]) -> None:
    """Raise an error unless each member has a name, and a kind that can be decoded."""
    depth, rgb = raw["depth"], raw["rgb"]
    used = [depth["member"], rgb["member"]]
    used += [raw[part]["member"] for part in ("mask", "meta") if raw[part]["member"] is not None]
    if not set(map(_text, used)) <= set(map(_text, raw["members"])):
        raise ValueError("members and their kinds disagree")
    if len({*raw["members"]}) < len(raw["members"]) or len({*used}) < len(used):
        raise ValueError("a member is listed twice")
    if "size" in rgb:
        _check_size(rgb["size"])
    if rgb["codec"] not in CODECS["rgb"] or depth["codec"] not in CODECS["depth"]:
        raise ValueError(f"codecs are {rgb['codec']!r} and {depth['codec']!r}")
    if raw.get("foreign"):
        _text(depth["dtype"])
        _positive(depth["unit_mm"])
        _ = depth["resize"]
    elif not depth["steps"] or not raw["mask"]["packed"] or raw["mask"]["member"] is None:
        raise ValueError("depth is not in steps, or the mask not packed")


def _number(value: Any) -> float:
    """Return `value`, raise TypeError if it is not a finite number."""
    if isinstance(value, bool) or not math.isfinite(value):
        raise TypeError(f"found {value!r}, expected a number")
    return float(value)


def _positive(value: Any) -> float:
    """Return `value`, raise TypeError if it is not a number > 0."""
    if not _number(value) > 0:
        raise TypeError(f"found {value!r}, expected a number > 0")
    return float(value)


def _count(value: Any) -> int:
    """Return `value`, raise TypeError if it is not a whole number that a file can have."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise TypeError(f"found {value!r:.40}, expected a whole number")
    return value


def _text(value: Any) -> str:
    """Return `value`, raise TypeError if it is not a string."""
    if not isinstance(value, str):
        raise TypeError(f"found {value!r:.40}, expected text")
    return value


def _wrong_names(raw: dict[str, Any]) -> list[str]:
    """Return the names of files that would lie outside the folder or that we never write."""
    shards = [shard["name"] for shard in raw["shards"]]
    tables = [raw[part]["name"] for part in ("table", "names")]
    return [name for name in shards if not SHARD_NAME.fullmatch(name)] + [
        name for name in tables if not TABLE_NAME.fullmatch(name)
    ]
