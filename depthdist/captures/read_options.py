"""What the user says about the numbers in files of points and depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple


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


def reading_problems(options: ReadOptions) -> list[str]:
    """Return what is wrong with the values, also with their types, a line each."""
    unit, snr = options.unit_mm, options.min_snr
    found = []
    if unit is not None and not (_is_number(unit) and 0 < unit < math.inf):
        found.append(f"--unit is {unit!r}: expected more than 0 mm")
    if not (_is_number(snr) and 0 <= snr < math.inf):
        found.append(f"--min-snr is {snr!r}: expected 0 or more")
    return found + camera_problems(options.intrinsics, options.fov)


def camera_problems(intrinsics: Sequence[float], fov: float | None) -> list[str]:
    """Return what is wrong with a camera given by intrinsics or by its field of view, a line each.

    intrinsics  empty where they are not given
    """
    found = []
    if fov is not None and not (_is_number(fov) and 0 < fov < 180):
        found.append(f"--fov is {_shown(fov)}: expected degrees above 0 and below 180")
    is_valid = (
        len(intrinsics) == 4
        and all(_is_number(value) and math.isfinite(value) for value in intrinsics)
        and min(intrinsics[:2]) > 0
    )
    if len(intrinsics) and not is_valid:
        found.append(
            f"--intrinsics is {','.join(map(_shown, intrinsics))}: expected"
            " fx,fy,cx,cy in pixels, fx and fy above 0"
        )
    if len(intrinsics) and fov is not None:
        found.append("--intrinsics and --fov: expected one of them")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return f"{value:g}" if _is_number(value) else repr(value)
