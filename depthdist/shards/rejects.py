"""Read rejects.jsonl: what no sample was made of, and why, a line of JSON each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from depthdist.core.errors import printable_path
from depthdist.core.files import parse_json


def read_rejects(path: Path) -> list[dict[str, str]]:
    """Return the lines of rejects.jsonl, [] where there is none, raise ValueError if one is not."""
    rejects = []
    for number, text in enumerate(path.read_bytes().splitlines() if path.exists() else [], 1):
        try:
            rejects.append(_checked(parse_json(text)))
        except ValueError:
            raise ValueError(
                f"{printable_path(path)}: line {number} is not what depthdist shard writes; shard"
                " the captures again"
            ) from None
    return rejects


def _checked(line: Any) -> dict[str, str]:
    """Return a line of rejects.jsonl, raise ValueError unless all its values are text."""
    if not isinstance(line, dict) or not all(isinstance(value, str) for value in line.values()):
        raise ValueError(line)
    return line
