"""How far long work is: a bar on stderr, on a terminal; elsewhere a line every ten seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")
DELAY_S = 2.0  # work that takes less shows nothing


def with_progress(items: Iterable[T], text: str, unit: str, shown: bool = True) -> Iterable[T]:
    """Return the items, showing how many were taken once that has taken two seconds.

    text   what is going on
    unit   plural of what the items are
    shown  whether at all: of several ranks one is enough
    """
    if not shown:
        return items
    from tqdm import tqdm  # after the errors that are found at once

    return tqdm(
        items,
        text,
        unit=f" {unit}",
        leave=False,
        delay=DELAY_S,
        mininterval=0.2 if sys.stderr.isatty() else 10,
    )
