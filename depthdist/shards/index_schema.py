"""What index.json must hold before anything else of it is used."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from depthdist.core.settings import Size
from depthdist.shards import SCHEMA, VERSION

SHARD_NAME = re.compile(r"(?!/)(?!.*(^|/)\.\.(/|$))[^\0\n\\]+\.tar")  # below the folder
TABLE_NAME = re.compile(r"(samples-[0-9a-f]{16}\.npy|names-[0-9a-f]{16}\.txt)")


def parse_index(path: Path | str, content: bytes) -> dict[str, Any]:
    """Return the content of index.json, raise ValueError if a part is missing or of a wrong type.

    path  where it comes from, for the message
    """
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
        _access_every_part(raw)
        wrong = _wrong_names(raw)
    except (AttributeError, KeyError, TypeError, ValueError) as err:
        raise ValueError(
            f"{path}: broken ({type(err).__name__}: {err}); run tools/shard.py again"
        ) from err
    if wrong:
        raise ValueError(f"{path}: names {wrong[0]!r}, which tools/shard.py never writes")
    return raw


def _access_every_part(raw: dict[str, Any]) -> None:
    """Access every part that is used later, so that what is missing raises an error now."""
    depth = raw["depth"]
    splits = raw["splits"]
    stats = [split["stats"] for split in splits.values()]
    for name in ("step_mm", "near_mm", "far_mm"):
        _number(depth[name])
    Size(*raw["size"])
    Size(*depth["size"])
    for one in stats:
        for name in ("min_mm", "mean_mm", "std_mm", "max_mm", "valid_pixels"):
            _number(one[name])
    files = [{"count": 0, **raw[part]} for part in ("table", "names")]
    for entry in (*raw["shards"], *files):
        _number(entry["count"] + entry["bytes"])
        _text(entry["sha256"])
    if sum(split["count"] + 0 for split in splits.values()) != sum(
        shard["count"] for shard in raw["shards"]
    ):
        raise ValueError("the counts of splits and shards differ")
    used = {depth["member"], raw["rgb"]["member"]}
    used |= {member for member in (raw["mask"]["member"], raw["meta"]["member"]) if member}
    if not used <= set(raw["members"]):
        raise ValueError("members and their kinds disagree")


def _number(value: Any) -> float:
    """Return `value`, raise TypeError if it is not a number."""
    return value + 0.0


def _text(value: Any) -> str:
    """Return `value`, raise TypeError if it is not a string."""
    return value + ""


def _wrong_names(raw: dict[str, Any]) -> list[str]:
    """Return the names of files that would lie outside the folder or that we never write."""
    shards = [shard["name"] for shard in raw["shards"]]
    tables = [raw[part]["name"] for part in ("table", "names")]
    return [name for name in shards if not SHARD_NAME.fullmatch(name)] + [
        name for name in tables if not TABLE_NAME.fullmatch(name)
    ]
