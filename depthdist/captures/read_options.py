"""What the user says about the numbers in files of points and depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def camera_problems(intrinsics: Sequence[float], fov: float | None) -> list[str]:
    """Return what is wrong with a camera given by intrinsics or by its field of view, a line each.

    intrinsics  empty where they are not given
    """
    found = []
    if fov is not None and not 0 < fov < 180:
        found.append(f"--fov is {fov:g}: expected degrees above 0 and below 180")
    is_valid = (
        len(intrinsics) == 4 and all(map(math.isfinite, intrinsics)) and min(intrinsics[:2]) > 0
    )
    if len(intrinsics) and not is_valid:
        found.append(
            f"--intrinsics is {','.join(f'{v:g}' for v in intrinsics)}: expected"
            " fx,fy,cx,cy in pixels, fx and fy above 0"
        )
    if len(intrinsics) and fov is not None:
        found.append("--intrinsics and --fov: expected one of them")
    return found
