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
from depthdist.captures.layouts import EXPECTED, CapturePair, find_point_maps, is_image
from depthdist.core.errors import BadFile

IMAGE_FOLDERS = ("images", "rgb", "color")  # beside a folder of point maps


@dataclass(frozen=True)
class CaptureArrays:
    """A capture as arrays.

    rgb        (H, W, 3) uint8
    points_mm  (H, W, 3) float32 X, Y, Z in mm, +Z away from the lens; NaN where nothing was
               measured
    mask       (H, W) bool, True where a point was measured
    """

    rgb: np.ndarray
    points_mm: np.ndarray
    mask: np.ndarray


def read_capture(path: str | Path, points: str | Path | None = None) -> CaptureArrays:
    """Read one capture, raise BadFile (a ValueError) if it is not one.

    path    its image or its point map: the other file is found as in a folder of raw captures
            (images/X_color.png + depth/X_rawDepth.npy, or name.png + name.npy)
    points  the point map, where `path` is the image and the two lie elsewhere
    """
    path = Path(path).expanduser()
    pair = _find_pair(path) if points is None else (path, Path(points).expanduser())
    capture = readers.read_capture(CapturePair(path.stem, *pair))
    mask = np.isfinite(capture.xyz).all(axis=2) & (capture.xyz[..., 2] > 0)
    points_mm = np.where(mask[..., None], capture.xyz, np.float32("nan"))
    return CaptureArrays(np.array(capture.image), points_mm, mask)


def _find_pair(path: Path) -> tuple[Path, Path]:
    """Return image and point map of the capture that one file belongs to."""
    if not path.is_file():
        raise BadFile(path, "no such file; expected a capture's image or point map")
    if is_image(path):
        points = find_point_maps([path]).get(path)
        if points is None:
            raise BadFile(path, f"found no single point map of this image; {EXPECTED}")
        return path, points
    parent = path.absolute().parent
    folders = [parent, *(parent.parent / name for name in IMAGE_FOLDERS)]
    images = [p for f in folders if f.is_dir() for p in sorted(f.iterdir()) if is_image(p)]
    found = [image for image, cloud in find_point_maps(images).items() if cloud.samefile(path)]
    if len(found) != 1:
        names = f" ({', '.join(str(image) for image in found)})" if found else ""
        raise BadFile(path, f"{len(found)} images are of this point map{names}; {EXPECTED}")
    return found[0], path
