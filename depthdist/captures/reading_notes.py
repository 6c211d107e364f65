"""Say in a line each what is taken for granted of captures: the unit, and the camera."""

from __future__ import annotations

from collections import Counter

from depthdist.captures.formats.depth_image import DEPTH_IMAGE
from depthdist.captures.formats.registry import BY_SUFFIX
from depthdist.captures.layouts import CapturePair
from depthdist.captures.path_text import suffix_of
from depthdist.captures.read_options import ReadOptions


def reading_notes(pairs: list[CapturePair], options: ReadOptions) -> list[str]:
    """Return what a person must know of how depth images become points."""
    depth = [pair for pair in pairs if BY_SUFFIX[suffix_of(pair.xyz_name).lower()] is DEPTH_IMAGE]
    if not depth:
        return []
    notes = []
    guessed = sum(pair.unit_mm is None for pair in depth) if options.unit_mm is None else 0
    if guessed:
        notes.append(
            f"unit: not known of {_depth_images(guessed)}, so a value is taken as 1 mm (another:"
            " --unit 0.1, --unit 1000 for metres)"
        )
    known = Counter(pair.unit_mm for pair in pairs if pair.unit_mm is not None)
    if options.unit_mm is None:
        notes += [
            f"unit: {u:g} mm a value in {known[u]} captures, as their layout says" for u in known
        ]
    if options.intrinsics or options.fov is not None:
        return notes
    cameras = Counter(pair.camera for pair in depth)
    alone = cameras.pop(None, 0)
    if cameras:
        first = next(camera for camera in cameras if camera)
        more = f" and {len(cameras) - 1} more" if len(cameras) > 1 else ""
        notes.append(f"camera: {first}{more}, of {_depth_images(cameras.total())}")
    if alone:
        notes.append(
            f"camera: not known of {_depth_images(alone)}, so that there are no clouds"
            " (intrinsics.json beside them, --intrinsics or --fov); depth trains without"
        )
    return notes


def _depth_images(count: int) -> str:
    return f"{count} depth image{'s' * (count != 1)}"
