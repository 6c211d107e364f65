"""The compiled loop of dropout on a CPU, in a module of its own because numba takes long."""

from __future__ import annotations

import numpy as np
from numba import njit

from depthdist.core.kernel import kernel
from depthdist.models.dropout_hash import M1, M2

u32 = np.uint32


@njit(nogil=True, error_model="numpy")
def _mix_uint32(x: np.uint32) -> np.uint32:
    """Return what `_mix` of sample_dropout.py does, of a uint32."""
    x = u32(x * u32(M1))
    return u32(u32(x ^ u32(x >> u32(15))) * u32(M2))


@kernel
def zero_dropped(bits: np.ndarray, keys: np.ndarray, threshold: np.uint32) -> None:
    """Set what is dropped in bits (B, N), of any integer type, to zero.

    One pass in registers: a fifth of nn.Dropout's time.
    """
    for sample in range(bits.shape[0]):
        row = bits[sample]
        key = u32(keys[sample])
        for place in range(bits.shape[1]):  # the compiler vectorizes this loop
            x = u32(place)
            x = _mix_uint32(u32(x ^ u32(x >> u32(16))))
            x = _mix_uint32(u32(x ^ u32(x >> u32(15)) ^ key))
            row[place] = row[place] if x >= threshold else 0
