"""SplitMix64, a counter-based generator of 64 random bits (Steele et al., 2014, figure 17).

    state = key + np.uint64(n) * INCREMENT  # n = 1, 2, ...: the generator's n-th output
    bits = mix(state)

All arithmetic is modulo 2**64. Adding two of NumPy's uint64 scalars prints a warning where the sum
wraps around; arrays and compiled code (`numba.njit(mix)`) wrap around silently.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np

UInt64 = TypeVar("UInt64", np.uint64, np.ndarray)

INCREMENT = np.uint64(0x9E3779B97F4A7C15)
FACTOR_1 = np.uint64(0xBF58476D1CE4E5B9)
FACTOR_2 = np.uint64(0x94D049BB133111EB)
SHIFT_1 = np.uint64(30)
SHIFT_2 = np.uint64(27)
SHIFT_3 = np.uint64(31)


def mix(state: UInt64) -> UInt64:
    """Return the 64 random bits that belong to a state, of a uint64 scalar or array."""
    bits = (state ^ (state >> SHIFT_1)) * FACTOR_1
    bits = (bits ^ (bits >> SHIFT_2)) * FACTOR_2
    return bits ^ (bits >> SHIFT_3)
