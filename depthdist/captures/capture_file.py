"""One capture by the name of one of its files.

capture = read_capture("depth/a_rawDepth.npy")  # its image is found as the layouts have it
capture = read_capture("a.png", "somewhere/points.npy")
capture.rgb, capture.points_mm, capture.mask
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from depthdist.captures import readers
from depthdist.captures.formats.registry import BY_SUFFIX
from depthdist.captures.found_files import DEPTH_FOLDERS, IMAGE_FOLDERS, kind_of, plain
from depthdist.captures.layouts import (
    EXPECTED,
    CapturePair,
    find_captures,
    find_captures_with,
    is_image,
    search_folder,
)
from depthdist.captures.read_options import ReadOptions, reading_problems
from depthdist.core.errors import BadFile, naming_arguments
from depthdist.geometry.measured import is_measured


@dataclass(frozen=True, eq=False, repr=False)
class CaptureArrays:
    """A capture as arrays.

    rgb        (H, W, 3) uint8
    points_mm  (h, w, 3) float32 X, Y, Z in mm, +Z away from the lens; NaN where nothing was
               measured. X and Y are NaN everywhere where there is depth alone and no camera known
    mask       (h, w) bool, True where depth was measured

    Both sizes are the same, or one is 2, 3, 4 ... times the other.
    """

    rgb: np.ndarray
    points_mm: np.ndarray
    mask: np.ndarray

    def __repr__(self) -> str:
        sizes = ["{} x {}".format(*array.shape[:2]) for array in (self.rgb, self.mask)]
        points = "" if sizes[0] == sizes[1] else f"points {sizes[1]}, "
        return f"CaptureArrays({sizes[0]}, {points}{self.mask.mean():.0%} measured)"


def read_capture(
    path: str | Path,
    points: str | Path | None = None,
    *,
    unit: float | None = None,
    intrinsics: Sequence[float] | None = None,
    fov: float | None = None,
    min_snr: float = 0.0,
    registered: bool = False,
) -> CaptureArrays:
    """Read one capture.

    path        its image or its points: the other file is found as in a folder of captures (see
                `depthdist shard --help`); or the one file that holds both
    points      the points, where `path` is the image and the two lie elsewhere
    unit        mm per unit of the points, 1000 for metres; by default as the file says, else 1
    intrinsics  fx, fy, cx, cy in pixels of depth without X and Y: column + 0.5 = fx X / Z + cx
    fov         the same by the horizontal field of view, degrees
    min_snr     points with a lower signal-to-noise ratio or confidence do not count
    registered  take image and points of any two sizes: both see the same field

    ValueError says what is missing or wrong, in one line.
    """
    options = ReadOptions(unit, flat_numbers(intrinsics), fov, min_snr, registered)
    with naming_arguments():
        problems = reading_problems(options)
        if problems:
            raise ValueError("\n".join(problems))
        path = Path(path).expanduser()
        pair = _find_pair(path) if points is None else _named_files(path, points)
        capture = readers.read_capture(pair, options=options)
    depth_mm = capture.xyz[..., 2]
    mask = is_measured(depth_mm)
    points_mm = np.where(mask[..., None], capture.xyz, np.float32("nan"))
    return CaptureArrays(np.array(capture.image), points_mm, mask)


def flat_numbers(values: Any) -> tuple[Any, ...]:
    """Return the numbers of a sequence or an array as floats, () for None; what is none stays."""
    flat = () if values is None else np.asarray(values, object).ravel().tolist()
    return tuple(float(value) if isinstance(value, Real) else value for value in flat)


def _named_files(path: Path, points: str | Path) -> CapturePair:
    return CapturePair(path.stem, "", str(path), str(Path(points).expanduser()))


def _find_pair(path: Path) -> CapturePair:
    """Return the capture that one file belongs to."""
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "no such file"
        raise BadFile(path, f"{problem}; expected a capture's image or points")
    if is_image(path):
        pair = find_captures([path]).get(path)
        if pair is None:
            raise BadFile(path, _why_unpaired(path, "a picture without its point cloud"))
        return pair
    if kind_of(path.parent, path.name) == "grooves":
        raise BadFile(path, "is a groove label; expected its capture's image or points")
    if path.suffix.lower() not in BY_SUFFIX:
        raise BadFile(path, f"is no part of one capture; {EXPECTED}")
    found = find_captures_with(path)
    if not found:
        raise BadFile(path, _why_unpaired(path, "a point cloud without its picture"))
    if len(found) > 1:
        names = ", ".join(pair.rgb.name for pair in found)
        raise BadFile(path, f"is no part of one capture: {names} share it; {EXPECTED}")
    return found[0]


def _why_unpaired(path: Path, otherwise: str) -> str:
    """Return why a file is in no capture: what shares its name, as its folder's search says."""
    path = path.absolute()
    of_kind = plain(path.parent.name) in IMAGE_FOLDERS | DEPTH_FOLDERS
    rejects = search_folder(path.parents[1] if of_kind else path.parent).rejects
    reasons = (reject.reason for reject in rejects if path in reject.files)
    return next(reasons, f"{otherwise}; {EXPECTED}")
