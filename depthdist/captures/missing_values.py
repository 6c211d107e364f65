"""Find what stands for "no value" in a point map: NaN, 0, and constants such as -1 or 65535.

    counts = count_missing(xyz[..., 2])  # {"NaN": 4, "0": 17}
    constants = missing_constants(xyz)  # Constant(z=-1.0, point=None) ...
    counts |= mask_constants(xyz, constants)  # {"-1": 12392}, and NaN there

A constant gives itself away by repetition: two pixels of a camera never see the same point, and no
surface lies at one and the same depth behind the lens, or ten times as far as everything else.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

NUM_SAMPLES = 20000  # pixels of a grid that are looked at
MIN_REPEATED = 8  # of the samples, and MIN_SHARE of them
MIN_SHARE = 1e-3
FAR_FACTOR = 10.0  # times the median depth: nothing that one camera measures
MOST = 0.9  # share of the values behind the lens, or that far, which the constant must be

Array = np.ndarray[Any, Any]


class Constant(NamedTuple):
    """A depth that stands for "no value": wherever it is, or at this X and Y (also NaN) alone."""

    z: float
    across: tuple[float, float] | None


def missing_constants(xyz: Array) -> list[Constant]:
    """Return the constants that stand for "no value", rising by Z.

    xyz  (H, W, 3) float32

    A repeated point in which every number is the same, or a repeated Z that is negative or
    FAR_FACTOR times as far as the others. 0 and NaN are not among them: these are never valid.
    """
    stride = max(1, int(np.sqrt(xyz.shape[0] * xyz.shape[1] / NUM_SAMPLES)))
    points = xyz[::stride, ::stride].reshape(-1, 3)
    z = points[:, 2]
    points = points[np.isfinite(z) & (z != 0)]
    needed = max(MIN_REPEATED, MIN_SHARE * z.size)
    found = _repeated_points(points, needed)
    rest = points[~np.isin(points[:, 2], [constant.z for constant in found]), 2]
    found += [Constant(value, None) for value in _repeated_outliers(rest, needed)]
    return sorted(found, key=lambda constant: constant.z)


def _repeated_points(points: Array, needed: float) -> list[Constant]:
    """Return the points that repeat with all their numbers; none where X and Y are constant."""
    if len(points) < needed:
        return []
    bits = np.ascontiguousarray(points, np.float32).view(np.uint32).astype(np.uint64)
    primes = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
    mixed = np.bitwise_xor.reduce(bits * primes, axis=1)
    _, first, counts = np.unique(mixed, return_index=True, return_counts=True)
    repeated = first[counts >= needed]
    across = points[:, :2]
    others = ~np.isin(mixed, mixed[repeated])
    if len(across) and not _varies(across[others]):
        return []  # a depth map with nothing in X and Y, or only such points
    return [Constant(float(z), (float(x), float(y))) for x, y, z in points[repeated]]


def _varies(across: Array) -> bool:
    """Return whether X or Y (N, 2) takes more than one value."""
    finite = across[np.isfinite(across).all(axis=1)]
    return len(finite) > 1 and bool(np.ptp(finite, axis=0).max() > 0)


def _repeated_outliers(z: Array, needed: float) -> list[float]:
    """Return the Z of most points behind the lens, and that of most points far beyond the rest."""
    ahead = z[z > 0]
    usual = float(np.median(ahead)) if len(ahead) else 0.0
    if len(ahead) and np.mean(ahead == ahead.max()) > 0.5:  # the constant is the median itself
        others = ahead[ahead < ahead.max()]
        usual = float(np.median(others)) if len(others) else usual
    found = []
    for part in (z[z < 0], ahead[ahead > FAR_FACTOR * usual]):
        if len(part) < needed:
            continue
        values, counts = np.unique(part, return_counts=True)
        if counts.max() >= MOST * len(part):
            found.append(float(values[counts.argmax()]))
    return found


def mask_constants(xyz: Array, constants: list[Constant]) -> dict[str, int]:
    """Set the points that stand for "no value" to NaN in place; return how many, by their Z.

    xyz  (H, W, 3) float32, writable
    """
    counts: dict[str, int] = {}
    for z, across in constants:
        same = xyz[..., 2] == np.float32(z)
        for axis, value in enumerate(across or ()):
            found = xyz[..., axis]
            same &= np.isnan(found) if np.isnan(value) else found == np.float32(value)
        xyz[same] = np.nan
        name = f"{z:g}"
        counts[name] = counts.get(name, 0) + int(np.count_nonzero(same))
    return counts


def count_missing(z: Array) -> dict[str, int]:
    """Return how many pixels of z (H, W) are NaN, infinite and 0, where any are."""
    counts = {
        "NaN": np.count_nonzero(np.isnan(z)),
        "inf": np.count_nonzero(np.isinf(z)),
        "0": np.count_nonzero(z == 0),
    }
    return {name: int(count) for name, count in counts.items() if count}
