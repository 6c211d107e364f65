"""What the user says about the numbers in files of points and depth."""

from __future__ import annotations

from typing import NamedTuple


class ReadOptions(NamedTuple):
    """How the numbers of a file become points in mm, and which of them count.

    unit_mm     millimetres per unit; None: as the file or its layout says, else 1
    intrinsics  fx, fy, cx, cy in pixels of depth without X and Y; column + 0.5 = fx X / Z + cx
    fov         the same as a horizontal field of view, degrees
    min_snr     points with a lower signal-to-noise ratio or confidence do not count
    registered  image and points see the same field, also where their sizes are no multiples
    """

    unit_mm: float | None = None
    intrinsics: tuple[float, ...] = ()
    fov: float | None = None
    min_snr: float = 0.0
    registered: bool = False


NO_OPTIONS = ReadOptions()
