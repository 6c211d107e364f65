"""Rotations and camera axes."""

from __future__ import annotations

import math

import numpy as np

from depthdist.synthetic.raytracing.kernel import kernel


@kernel
def rotate(m, p, w):
    """A point (w = 1) or direction (w = 0) through a (3, 4) transform."""
    return (
        m[0, 0] * p[0] + m[0, 1] * p[1] + m[0, 2] * p[2] + m[0, 3] * w,
        m[1, 0] * p[0] + m[1, 1] * p[1] + m[1, 2] * p[2] + m[1, 3] * w,
        m[2, 0] * p[0] + m[2, 1] * p[1] + m[2, 2] * p[2] + m[2, 3] * w,
    )


@kernel
def rotate_back(m, d):
    """A direction back through a (3, 4) transform."""
    return (
        m[0, 0] * d[0] + m[1, 0] * d[1] + m[2, 0] * d[2],
        m[0, 1] * d[0] + m[1, 1] * d[1] + m[2, 1] * d[2],
        m[0, 2] * d[0] + m[1, 2] * d[1] + m[2, 2] * d[2],
    )


def upright(axis: np.ndarray, turn: float) -> np.ndarray:
    """The rotation (3, 3), tire to crate, that lays a tire's axis along `axis` and turns it about
    it by `turn` radians.
    """
    z = axis / np.linalg.norm(axis)
    x = np.cross((0.0, 1.0, 0.0) if abs(z[1]) < 0.9 else (1.0, 0.0, 0.0), z)
    x /= np.linalg.norm(x)
    y = np.cross(z, x)
    c, s = math.cos(turn), math.sin(turn)
    return np.stack([c * x + s * y, c * y - s * x, z], axis=1)


def camera_axes(forward: np.ndarray, roll: float) -> np.ndarray:
    """The camera's axes as columns, looking along `forward`, rolled by `roll` radians."""
    z = forward / np.linalg.norm(forward)
    x = np.cross(z, (0.0, 0.0, 1.0))
    x /= np.linalg.norm(x)
    y = np.cross(z, x)
    c, s = math.cos(roll), math.sin(roll)
    return np.stack([c * x + s * y, c * y - s * x, z], axis=1)
