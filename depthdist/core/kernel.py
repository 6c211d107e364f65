"""`@kernel`: compile a function with numba and keep the result on disk for the next process.

A module that imports this one imports numba, which takes long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function`: float64 as written (no fast math), division by zero as in NumPy.

    Where numba finds no folder that it may write, it compiles again in each process.
    """
    options: Any = {"nogil": True, "error_model": "numpy"}
    try:
        compiled: Callable[..., Any] = njit(cache=True, **options)(function)
    except RuntimeError:  # "cannot cache function ...: no locator available"
        compiled = njit(**options)(function)
    return compiled
