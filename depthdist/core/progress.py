"""How far long work is: a bar on stderr, on a terminal; elsewhere a line every ten seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")
DELAY_S = 2.0  # work that takes less shows nothing


def with_progress(items: Iterable[T], text: str, unit: str, shown: bool = True) -> Iterator[T]:
    """Yield the items, and show how many were taken once that has taken two seconds.

    text   what is going on
    unit   plural of what the items are
    shown  whether at all: of several ranks one is enough
    """
    if not shown:
        yield from items
        return
    begin_at = time.monotonic() + DELAY_S
    bar = None
    for number, item in enumerate(items):
        if bar is None and time.monotonic() > begin_at:
            from tqdm import tqdm  # quick work does without it

            bar = tqdm(
                desc=text,
                total=len(items) if isinstance(items, Sized) else None,
                initial=number,
                unit=f" {unit}",
                leave=False,
                mininterval=0.2 if sys.stderr.isatty() else 10,
            )
        yield item
        if bar is not None:
            bar.update()
    if bar is not None:
        bar.close()
