"""Read rejects.jsonl: what no sample was made of, and why, a line of JSON each."""

from __future__ import annotations

from pathlib import Path

from depthdist.core.errors import printable_path
from depthdist.core.files import parse_json


def read_rejects(path: Path) -> list[dict[str, str]]:
    """Return the lines of rejects.jsonl, [] where there is none, raise ValueError if one is not."""
    rejects = []
    for number, text in enumerate(path.read_bytes().splitlines() if path.exists() else [], 1):
        try:
            line = parse_json(text)
        except ValueError as err:
            line = err
        if not isinstance(line, dict) or not all(isinstance(one, str) for one in line.values()):
            raise ValueError(
                f"{printable_path(path)}: line {number} is not what tools/shard.py writes; shard"
                " the captures again"
            )
        rejects.append(line)
    return rejects
