"""`@kernel`: compile a function with numba and keep the result on disk for the next process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function`: float64 as written (no fast math), division by zero as in NumPy."""
    return njit(cache=True, nogil=True, error_model="numpy")(function)
