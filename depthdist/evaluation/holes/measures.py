"""Errors of filled depth in one capture's holes: by kind of hole, its size, distance from its rim.

sums = measure_filled(filled_mm, truth_mm, measured)        # {"all": Sums, "interior": ...}
ways = fill_in_ways(pred_mm, shown_mm)                      # what a fill is compared with
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from depthdist.captures.flying_pixels import find_flying
from depthdist.models.completion import SILHOUETTE_MM, fill_depth
from depthdist.models.harmonic_fill import fill_harmonic

WITHIN_MM = (5.0, 10.0, 20.0)
# upper limits, in pixels of an image 1944 wide
SIZES = {"up to 20 px": 20.0, "20 .. 80 px": 80.0, "80 .. 320 px": 320.0, "above 320 px": np.inf}
DISTANCES = {"up to 8 px": 8.0, "8 .. 32 px": 32.0, "32 .. 128 px": 128.0, "above 128 px": np.inf}
FULL_WIDTH = 1944
BEYOND = 0.1  # share of its depth by which truth lies nearer or farther than all that was measured
SMALL = 20.0  # pixels across, in an image 1944 wide: holes that a camera's own repair closes
INPAINT_RADIUS = 3.0


class Sums(NamedTuple):
    """Sums over pixels of holes that were filled.

    pixels   of the holes, filled or not
    filled   of these
    error    sum of |filled - truth|, mm
    square   sum of its square
    within   number of filled pixels within each of WITHIN_MM
    flying   filled pixels that no neighbor is near in depth
    rims     pairs of neighbors of which one is filled and one was shown, on one surface: their true
             depths differ by less than SILHOUETTE_MM
    step     sum of the filled depth's differences in these pairs, mm
    slope    sum of the true ones
    """

    pixels: float
    filled: float
    error: float
    square: float
    within: tuple[float, ...]
    flying: float
    rims: float = 0.0
    step: float = 0.0
    slope: float = 0.0

    def plus(self, other: Sums) -> Sums:
        """Return the sums over the pixels of both."""
        within = tuple(a + b for a, b in zip(self.within, other.within))
        numbers = (
            getattr(self, name) + getattr(other, name) for name in self._fields if name != "within"
        )
        pixels, filled, error, square, *others = numbers
        return Sums(pixels, filled, error, square, within, *others)

    def means(self) -> dict[str, float]:
        """Return MAE and RMSE in mm, and shares; NaN where nothing was filled."""
        count = self.filled or float("nan")
        found = {
            "pixels": self.pixels,
            "filled": self.filled / (self.pixels or float("nan")),
            "mae_mm": self.error / count,
            "rmse_mm": (self.square / count) ** 0.5,
        }
        for limit, number in zip(WITHIN_MM, self.within):
            found[f"within_{limit:g}_mm"] = number / count
        rims = self.rims or float("nan")
        found |= {"flying": self.flying / count}
        return {**found, "rim_step_mm": self.step / rims, "rim_slope_mm": self.slope / rims}


def measure_filled(
    filled_mm: np.ndarray, truth_mm: np.ndarray, measured: np.ndarray, wanted: np.ndarray
) -> dict[str, Sums]:
    """Return the sums of each part of the holes by its name.

    filled_mm  (H, W) mm, NaN where it was left open
    truth_mm   (H, W) mm, NaN where it is not known
    measured   (H, W) bool, what was shown
    wanted     (H, W) bool, what counts; only where nothing was shown and truth is known
    """
    wanted = wanted & ~measured & np.isfinite(truth_mm)
    is_filled = np.isfinite(filled_mm)
    flying = find_flying(np.where(is_filled, filled_mm, 0.0)) & ~measured
    error = np.abs(np.where(is_filled, filled_mm, 0.0) - np.where(wanted, truth_mm, 0.0))
    found = {
        name: _sums(part & wanted, is_filled, error, flying)
        for name, part in parts_of_holes(truth_mm, measured).items()
    }
    rims, step, slope = _steps_at_rims(filled_mm, truth_mm, measured, wanted & is_filled)
    return {**found, "all": found["all"]._replace(rims=rims, step=step, slope=slope)}


def _steps_at_rims(
    filled_mm: np.ndarray, truth_mm: np.ndarray, measured: np.ndarray, wanted: np.ndarray
) -> list[float]:
    """Return the number of pairs at rims on one surface, and the sums of their differences."""
    sums = np.zeros(3)
    for axis in (0, 1):
        w, m = (np.swapaxes(array, 0, axis) for array in (wanted, measured))
        pairs = (w[1:] & m[:-1]) | (m[1:] & w[:-1])
        step, slope = (
            np.abs(np.diff(np.swapaxes(depth, 0, axis).astype(np.float64), axis=0))[pairs]
            for depth in (filled_mm, truth_mm)
        )
        on_surface = slope < SILHOUETTE_MM  # False where truth is not known
        sums += on_surface.sum(), step[on_surface].sum(), slope[on_surface].sum()
    return list(sums.tolist())


def _sums(part: np.ndarray, is_filled: np.ndarray, error: np.ndarray, flying: np.ndarray) -> Sums:
    filled = part & is_filled
    errors = error[filled].astype(np.float64)
    within = tuple(float((errors <= limit).sum()) for limit in WITHIN_MM)
    return Sums(
        float(part.sum()),
        float(filled.sum()),
        float(errors.sum()),
        float((errors**2).sum()),
        within,
        float((flying & filled).sum()),
    )


def parts_of_holes(truth_mm: np.ndarray, measured: np.ndarray) -> dict[str, np.ndarray]:
    """Return which pixels (H, W) bool belong to each part.

    all, interior (of holes that the image's rim does not touch), beyond (truth is nearer or farther
    than anything that was measured: an object that the camera never sees), and those of SIZES (the
    width of a square of a hole's area) and of DISTANCES (from the nearest measured pixel)
    """
    hole = ~measured
    per_pixel = measured.shape[1] / FULL_WIDTH
    labels, _ = ndimage.label(hole)
    rim = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    across = np.sqrt(np.bincount(labels.ravel()))[labels] / per_pixel
    away = ndimage.distance_transform_edt(hole) / per_pixel if measured.any() else hole * np.inf
    known = truth_mm[measured & np.isfinite(truth_mm)]
    low, high = (known.min(), known.max()) if len(known) else (0.0, np.inf)
    with np.errstate(invalid="ignore"):  # NaN where truth is not known
        beyond = (truth_mm < (1 - BEYOND) * low) | (truth_mm > (1 + BEYOND) * high)
    parts = {"all": hole, "interior": hole & ~np.isin(labels, rim), "beyond": hole & beyond}
    for limits, value in ((SIZES, across), (DISTANCES, away)):
        kind = "hole" if limits is SIZES else "rim"
        lowest = 0.0
        for name, limit in limits.items():
            parts[f"{kind} {name}"] = hole & (value > lowest) & (value <= limit)
            lowest = limit
    return parts


def fill_in_ways(pred_mm: np.ndarray, shown_mm: np.ndarray) -> dict[str, np.ndarray]:
    """Return the depth (H, W) float32 mm that simpler ways make of a capture, by name.

    pred_mm   (H, W) mm, the run's prediction
    shown_mm  (H, W) mm, measured, 0 where nothing was

    OpenCV's inpainting only where OpenCV is installed. "small holes alone" is what cameras' own
    repairs do: it closes holes of up to SMALL pixels and leaves the others open.
    """
    measured = shown_mm > 0
    inverse = np.where(measured, 1 / np.where(measured, shown_mm, 1.0), 0.0)
    harmonic = (1 / fill_harmonic(inverse, measured)).astype(np.float32)
    ways = {
        "prediction": pred_mm,
        "harmonic": harmonic,
        "prediction moved": fill_depth(pred_mm, shown_mm),
    }
    inpainted = inpaint(shown_mm, measured)
    if inpainted is not None:
        ways["OpenCV inpainting"] = inpainted
    labels, _ = ndimage.label(~measured)
    across = np.sqrt(np.bincount(labels.ravel()))[labels] * FULL_WIDTH / measured.shape[1]
    small = ~measured & (across <= SMALL)
    ways["small holes alone"] = np.where(small | measured, harmonic, np.float32(np.nan))
    return ways


def inpaint(shown_mm: np.ndarray, measured: np.ndarray) -> np.ndarray | None:
    """Return depth inpainted by OpenCV (Telea 2004), None where it is not installed."""
    try:
        import cv2
    except ImportError:
        return None
    holes = (~measured).astype(np.uint8)
    filled: np.ndarray = cv2.inpaint(
        np.ascontiguousarray(shown_mm, np.float32), holes, INPAINT_RADIUS, cv2.INPAINT_TELEA
    )
    return filled
