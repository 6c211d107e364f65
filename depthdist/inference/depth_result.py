"""What `LoadedModel.predict` returns for an image: depth in mm, points, colors, files.

result = depthdist.load("runs/mine").predict("a.png")
result.depth_mm, result.points_mm, result.colored
result.save("a.ply")
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from depthdist.captures.layouts import find_captures_with
from depthdist.geometry.camera import points_from_depth
from depthdist.geometry.depth_range import DepthRange
from depthdist.geometry.measured import is_measured
from depthdist.inference.result_files import colorize_depth, encode_ply, write_png

NO_CAMERA = (
    "the camera of this image is not known: expected intrinsics=(fx, fy, cx, cy) or fov=DEGREES in"
    " predict() or load(), or an image with its point map beside it"
)


@dataclass(frozen=True, eq=False, repr=False)
class DepthResult:
    """The depth of one image, at the image's own size.

    depth_mm      (H, W) float32 mm, NaN where it was refused
    rgb           (H, W, 3) uint8, upright
    rays          (H, W, 2) float64 X / Z and Y / Z of each pixel; None where the camera is unknown
    truth_mm      (H, W) float32 mm of the points beside the image, NaN or 0 where nothing was
                  measured; of another size they are brought to the image's (nearest neighbor).
                  None without any
    depth_range   nearest and farthest depth that the model can predict
    source        the image's file, None where it came from memory
    sigma_mm      (H, W) float32, standard deviation of the error of each pixel, 0 where it was
                  measured; None where it was not asked for
    """

    depth_mm: np.ndarray
    rgb: np.ndarray
    rays: np.ndarray | None
    truth_mm: np.ndarray | None
    depth_range: DepthRange
    source: Path | None = None
    sigma_mm: np.ndarray | None = None

    def __repr__(self) -> str:
        height, width = self.depth_mm.shape
        known = self.depth_mm[np.isfinite(self.depth_mm)]
        depths = f"{known.min():.0f} .. {known.max():.0f} mm" if len(known) else "all refused"
        return f"DepthResult({height} x {width}, {depths})"

    @property
    def measured(self) -> np.ndarray:
        """(H, W) bool: where `truth_mm` was measured, nowhere without it."""
        if self.truth_mm is None:
            return np.zeros(self.depth_mm.shape, bool)
        return is_measured(self.truth_mm)

    @property
    def points_mm(self) -> np.ndarray:
        """(H, W, 3) float32 X, Y, Z in mm, camera frame; ValueError where the camera is unknown."""
        if self.rays is None:
            raise ValueError(NO_CAMERA)
        return points_from_depth(self.depth_mm, self.rays).astype(np.float32)

    @property
    def colored(self) -> np.ndarray:
        """(H, W, 3) uint8: near red, far blue, over the model's depth range.

        The same depth has the same color in every image; `PIL.Image.fromarray` shows it.
        """
        return colorize_depth(self.depth_mm, self.depth_range)

    def save(self, path: str | Path) -> Path:
        """Write the depth as the suffix of `path` says, and return the path.

        .npy  (H, W) float32 mm
        .png  16 bits, one unit is 0.1 mm (1 mm where the model's range ends beyond 6.5 m, and so
              on); the text chunk `unit_mm` of the file says which
        .ply  colored points in mm; ValueError where the camera is unknown

        ValueError for any other suffix, and for the file of the image itself. A warning where a
        .npy would be read as what the camera measured of an image beside it.
        """
        path = Path(path).expanduser()
        writers: dict[str, Callable[[BinaryIO], object]] = {
            ".npy": lambda file: np.save(file, self.depth_mm),
            ".png": lambda file: write_png(file, self.depth_mm, self.depth_range),
            ".ply": lambda file: file.write(cloud),
        }
        kind = path.suffix.lower()
        if kind not in writers:
            raise ValueError(f"{path}: suffix is {kind!r}; expected one of {', '.join(writers)}")
        if self.source and path.exists() and path.samefile(self.source):
            raise ValueError(f"{path}: is the image itself; expected another name for its depth")
        cloud = encode_ply(self.points_mm, self.rgb) if kind == ".ply" else b""
        with open(path, "wb") as file:
            writers[kind](file)
        if kind == ".npy" and (pairs := find_captures_with(path)):
            warnings.warn(
                f"{path}: {pairs[0].rgb.name} lies beside it and would be read with this depth as"
                " measured; expected another folder, or another name",
                stacklevel=2,
            )
        return path
