"""Transforms, rotations, directions and camera axes."""

from __future__ import annotations

import math

import numpy as np

from depthdist.core.kernel import kernel


@kernel
def transform(m, p, w):
    """Apply a (3, 4) transform to a point (w = 1) or a direction (w = 0)."""
    return (
        m[0, 0] * p[0] + m[0, 1] * p[1] + m[0, 2] * p[2] + m[0, 3] * w,
        m[1, 0] * p[0] + m[1, 1] * p[1] + m[1, 2] * p[2] + m[1, 3] * w,
        m[2, 0] * p[0] + m[2, 1] * p[1] + m[2, 2] * p[2] + m[2, 3] * w,
    )


@kernel
def rotate_back(m, d):
    """Apply the inverse rotation of a (3, 4) transform to a direction."""
    return (
        m[0, 0] * d[0] + m[1, 0] * d[1] + m[2, 0] * d[2],
        m[0, 1] * d[0] + m[1, 1] * d[1] + m[2, 1] * d[2],
        m[0, 2] * d[0] + m[1, 2] * d[1] + m[2, 2] * d[2],
    )


def leaning_axis(lean: float, heading: float) -> np.ndarray:
    """Return the unit vector (3,) that leans `lean` radians off the vertical towards `heading`."""
    return np.array(
        [math.sin(lean) * math.cos(heading), math.sin(lean) * math.sin(heading), math.cos(lean)]
    )


def view_direction(below: float, heading: float) -> np.ndarray:
    """Return the unit vector (3,) that points `below` radians under the horizon along `heading`."""
    return np.array(
        [math.cos(below) * math.sin(heading), math.cos(below) * math.cos(heading), -math.sin(below)]
    )


def rotation_to_axis(axis: np.ndarray, turn: float) -> np.ndarray:
    """Return a rotation (3, 3) that lays an object's z axis along `axis`.

    The object is turned about that axis by `turn` radians.
    """
    z = axis / np.linalg.norm(axis)
    x = np.cross((0.0, 1.0, 0.0) if abs(z[1]) < 0.9 else (1.0, 0.0, 0.0), z)
    return _turned_axes(x, z, turn)


def camera_axes(forward: np.ndarray, roll: float) -> np.ndarray:
    """Return a camera's axes as columns (3, 3); it looks along `forward`, rolled by `roll` rad."""
    z = forward / np.linalg.norm(forward)
    return _turned_axes(np.cross(z, (0.0, 0.0, 1.0)), z, roll)


def _turned_axes(x: np.ndarray, z: np.ndarray, angle: float) -> np.ndarray:
    """Return the axes (x, z cross x, z) as columns, turned about z by `angle` radians."""
    x = x / np.linalg.norm(x)
    y = np.cross(z, x)
    c, s = math.cos(angle), math.sin(angle)
    return np.stack([c * x + s * y, c * y - s * x, z], axis=1)
