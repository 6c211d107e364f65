"""Importing large libraries in about two thirds of the time: garbage is not looked for meanwhile.

with importing():
from depthdist.training.train import train
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

FEW = 1000  # objects that are made where all was imported before


@contextmanager
def importing() -> Iterator[None]:
    """Import what a command needs in this block, once its settings are known to be good.

    torch, peft and transformers make some hundred thousand objects that stay to the end. Python
    would look through all of them for garbage again and again: while they are made, whenever the
    command itself has made enough, and at the end. After this block they are never looked at.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    before = gc.get_count()[0]
    try:
        yield
    finally:
        if gc.get_count()[0] - before > FEW:  # else it would only keep the garbage there is
            gc.freeze()
        if was_enabled:
            gc.enable()
