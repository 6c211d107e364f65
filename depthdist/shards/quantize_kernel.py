"""The compiled loop of `quantize`, in a module of its own because numba takes long to import."""

from __future__ import annotations

import numpy as np

from depthdist.core.kernel import kernel


@kernel
def fill_steps(z, near_mm, far_mm, steps_a_mm, value, histogram):
    """Fill value and histogram; return how many pixels were measured, how many beyond far_mm."""
    measured, farther = 0, 0
    for row in range(z.shape[0]):  # a loop that the compiler vectorizes
        for column in range(z.shape[1]):
            mm = z[row, column]
            measured += mm > 0 and mm < np.inf
            farther += mm > far_mm and mm < np.inf
            value[row, column] = (
                np.int64(mm * steps_a_mm + 0.5) if mm > near_mm and mm <= far_mm else 0
            )
    for row in range(z.shape[0]):
        for column in range(z.shape[1]):
            histogram[value[row, column]] += 1
    return measured, farther
