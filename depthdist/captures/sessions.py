"""Capture times and sessions, read from the names of captures."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from pathlib import PurePosixPath


def capture_time(stem: str) -> datetime | None:
    """When the capture was taken, read out of `[20]YY-MM-DD-hh-mm-ss...`, or None."""
    match = re.match(r"(?:20)?(\d\d)" + r"-(\d\d)" * 5 + r"(?!\d)", PurePosixPath(stem).name)
    try:
        return datetime(2000 + int(match[1]), *map(int, match.groups()[1:])) if match else None
    except ValueError:  # month 13
        return None


def number_sessions(stems: list[str], gap_minutes: float = 10.0) -> list[int]:
    """The session's number for each stem, from 0: captures less than `gap_minutes` after one
    another share one.

    Time decides across folders: two cameras over one crate see one scene. Stems without a time
    share their folder's session.
    """
    times = {stem: capture_time(stem) for stem in stems}
    number: dict[str, int] = {}
    count, last = 0, None
    for stem in sorted((s for s in times if times[s]), key=lambda s: (times[s], s)):
        count += last is None or times[stem] - last > timedelta(minutes=gap_minutes)
        number[stem], last = count - 1, times[stem]
    folders = sorted({PurePosixPath(s).parent for s in times if not times[s]})
    number.update(
        {s: count + folders.index(PurePosixPath(s).parent) for s in times if not times[s]}
    )
    return [number[stem] for stem in stems]
