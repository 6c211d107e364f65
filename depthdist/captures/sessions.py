"""Read capture times from the names of captures, and group captures into sessions."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from depthdist.captures.path_text import as_written, folder_of, name_of, sort_paths

TIME = re.compile(r"(?:20)?(\d\d)" + r"-(\d\d)" * 5 + r"(?!\d)")


def capture_time(stem: str) -> datetime | None:
    """Return when a capture was taken, from a name `[20]YY-MM-DD-hh-mm-ss...`, or None."""
    match = TIME.match(name_of(stem))
    if not match:
        return None
    year, month, day, hour, minute, second = map(int, match.groups())
    try:
        return datetime(2000 + year, month, day, hour, minute, second)
    except ValueError:  # month 13
        return None


def number_sessions(stems: list[str], gap_minutes: float = 10.0) -> list[int]:
    """Return the session's number, from 0, of each stem.

    Captures less than `gap_minutes` after one another share a session, also across folders: two
    cameras over one crate see one scene. Stems without a time share their folder's session.
    """
    numbers: dict[str, int] = {}
    timed = []
    untimed = []
    for stem in set(stems):
        time = capture_time(stem)
        if time:
            timed.append((time, stem))
        else:
            untimed.append(stem)
    count = 0
    last = None
    for time, stem in sorted(timed):
        if last is None or time - last > timedelta(minutes=gap_minutes):
            count += 1
        numbers[stem] = count - 1
        last = time
    folders = {stem: folder_of(as_written(stem)) for stem in untimed}
    number_of = {folder: i for i, folder in enumerate(sort_paths(set(folders.values())), count)}
    for stem, folder in folders.items():
        numbers[stem] = number_of[folder]
    return [numbers[stem] for stem in stems]
