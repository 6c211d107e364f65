"""One capture by the name of one of its files.

capture = read_capture("depth/a_rawDepth.npy")  # its image is found as the layouts have it
capture = read_capture("a.png", "somewhere/points.npy")
capture.rgb, capture.points_mm, capture.mask
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from depthdist.captures import readers
from depthdist.captures.layouts import (
    EXPECTED,
    CapturePair,
    find_captures,
    find_captures_with,
    is_image,
)
from depthdist.captures.read_options import ReadOptions
from depthdist.core.errors import BadFile


@dataclass(frozen=True)
class CaptureArrays:
    """A capture as arrays.

    rgb        (h, w, 3) uint8: of the points' size, or 2, 3, 4 ... times as large or small
    points_mm  (H, W, 3) float32 X, Y, Z in mm, +Z away from the lens; NaN where nothing was
               measured
    mask       (H, W) bool, True where a point was measured
    """

    rgb: np.ndarray
    points_mm: np.ndarray
    mask: np.ndarray


def read_capture(
    path: str | Path,
    points: str | Path | None = None,
    *,
    unit_mm: float | None = None,
    intrinsics: tuple[float, ...] = (),
    fov: float | None = None,
) -> CaptureArrays:
    """Read one capture, raise BadFile (a ValueError) if it is not one.

    path        its image or its point map: the other file is found as in a folder of raw captures
                (images/X_color.png + depth/X_rawDepth.npy, or name.png + name.npy)
    points      the point map, where `path` is the image and the two lie elsewhere
    unit_mm     millimetres per unit; None: as the file or its layout says, else 1
    intrinsics  fx, fy, cx, cy of depth without X and Y, where no file beside it has them
    fov         the same by the horizontal field of view, degrees
    """
    path = Path(path).expanduser()
    if points is None:
        pair = _find_pair(path)
    else:
        pair = CapturePair(path.stem, path, Path(points).expanduser())
    capture = readers.read_capture(pair, options=ReadOptions(unit_mm, intrinsics, fov))
    # depth of which the camera is not known has Z alone
    mask = np.isfinite(capture.xyz[..., 2]) & (capture.xyz[..., 2] > 0)
    points_mm = np.where(mask[..., None], capture.xyz, np.float32("nan"))
    return CaptureArrays(np.array(capture.image), points_mm, mask)


def _find_pair(path: Path) -> CapturePair:
    """Return the capture that one file belongs to."""
    if not path.is_file():
        raise BadFile(path, "no such file; expected a capture's image or point map")
    if is_image(path):
        pair = find_captures([path]).get(path)
        if pair is None:
            raise BadFile(path, f"found no single point map of this image; {EXPECTED}")
        return pair
    found = find_captures_with(path)
    if len(found) != 1:
        names = f" ({', '.join(str(pair.rgb) for pair in found)})" if found else ""
        raise BadFile(path, f"{len(found)} images are of this point map{names}; {EXPECTED}")
    return found[0]
