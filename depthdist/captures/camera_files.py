"""Read a camera's intrinsics from the file that lies beside its depth images.

    meta = read_camera(Path("intrinsics.json"), (480, 640))  # for geometry.camera.pixel_rays

Understood are fx, fy, cx, cy in a JSON object, also under `intrinsics` or `camera`. As everywhere
but here, such files count from the middle of pixel (0, 0): column = fx X / Z + cx.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from depthdist.core.errors import BadFile
from depthdist.core.files import parse_json
from depthdist.geometry.camera import pinhole

NAMES = ("intrinsics.json", "camera_intrinsic.json", "camera_intrinsics.json", "camera.json")
KEYS = ("fx", "fy", "cx", "cy")


def read_camera(path: Path, size: tuple[int, int]) -> dict[str, Any]:
    """Return the pinhole of a depth image of `size` (H, W) as a sample's meta; raise BadFile."""
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as err:
        raise BadFile(path, f"cannot be read as JSON ({err})") from err
    values = [content.get(key) for key in KEYS] if isinstance(content, dict) else []
    numbers = [v for v in values if isinstance(v, (int, float)) and math.isfinite(v)]
    if len(numbers) != len(KEYS) or min(numbers[:2]) <= 0:
        raise BadFile(path, f"expected the numbers {', '.join(KEYS)} in pixels")
    fx, fy, cx, cy = numbers
    return pinhole(size, fx, fy, cx + 0.5, cy + 0.5)
