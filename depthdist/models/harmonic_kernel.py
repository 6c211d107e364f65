"""The compiled loops of `fill_harmonic`, in a module of their own: numba takes long to import.

Arrays are float64 (H, W); `rows` and `columns` (N,) int32 list the unknown pixels in row order.
"""

from __future__ import annotations

from depthdist.core.kernel import kernel


@kernel
def relax(x, rhs, rows, columns, sweeps):
    """Gauss-Seidel on the unknown pixels of x: forwards, backwards, and so on."""
    height, width = x.shape
    num = len(rows)
    for sweep in range(sweeps):
        for i in range(num):
            at = i if sweep % 2 == 0 else num - 1 - i
            row, column = rows[at], columns[at]
            total, neighbors = rhs[row, column], 0
            if row > 0:
                total += x[row - 1, column]
                neighbors += 1
            if row < height - 1:
                total += x[row + 1, column]
                neighbors += 1
            if column > 0:
                total += x[row, column - 1]
                neighbors += 1
            if column < width - 1:
                total += x[row, column + 1]
                neighbors += 1
            x[row, column] = total / neighbors


@kernel
def restrict_residual(x, rhs, rows, columns, coarse_unknown, coarse_rhs):
    """Fill coarse_rhs, half the size: the sum of the residuals of each 2 x 2 unknown pixels."""
    height, width = x.shape
    coarse_rhs[:] = 0.0
    for i in range(len(rows)):
        row, column = rows[i], columns[i]
        if not coarse_unknown[row // 2, column // 2]:
            continue
        total = rhs[row, column]
        here = x[row, column]
        if row > 0:
            total += x[row - 1, column] - here
        if row < height - 1:
            total += x[row + 1, column] - here
        if column > 0:
            total += x[row, column - 1] - here
        if column < width - 1:
            total += x[row, column + 1] - here
        coarse_rhs[row // 2, column // 2] += total


@kernel
def add_upsampled(x, coarse, rows, columns):
    """Add a map of half the size, bilinear between its pixels' centers, to the unknown pixels."""
    height, width = coarse.shape
    for i in range(len(rows)):
        row, column = rows[i], columns[i]
        near_row, near_column = row // 2, column // 2
        far_row = min(height - 1, max(0, near_row + (1 if row % 2 else -1)))
        far_column = min(width - 1, max(0, near_column + (1 if column % 2 else -1)))
        x[row, column] += (
            9 * coarse[near_row, near_column]
            + 3 * coarse[far_row, near_column]
            + 3 * coarse[near_row, far_column]
            + coarse[far_row, far_column]
        ) / 16
