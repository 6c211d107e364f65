"""Cast rays into a room with objects: exact depth, normals and shadows.

All shapes are solved in closed form except tires, which are marched. World frame: x, y along the
floor, z up, mm. Each object has a frame of its own with its middle at 0 and z its axis. Shapes:

    BOX        half sides a, b, c
    BALL       half axes a, b, c of an ellipsoid
    CYLINDER   radius a, half length c, closed
    ROOM       half sides a, b, c of a box seen from inside
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from depthdist.core.kernel import kernel
from depthdist.synthetic.raytracing.intersections import hull_interval, march
from depthdist.synthetic.raytracing.tire_shape import groove_at, surface_normal
from depthdist.synthetic.raytracing.transforms import rotate_back, transform

BOX, BALL, CYLINDER, ROOM, TIRE = range(5)


class RoomScene(NamedTuple):
    """Everything that can be seen. S objects, T tires, G rows of grooves."""

    kind: np.ndarray  # (S,) int64
    half: np.ndarray  # (S, 3) mm
    to_object: np.ndarray  # (S, 3, 4) world frame to the object's
    tires: np.ndarray  # (T,) TIRE
    grooves: np.ndarray  # (G,) GROOVE
    to_tire: np.ndarray  # (T, 3, 4) world frame to the tire's
    camera: np.ndarray  # (3, 4) world frame to the camera's: X right, Y down, Z forward
    light: np.ndarray  # (3,) the lamp, world frame


class RoomHits(NamedTuple):
    """What the rays hit; (H, W) unless stated."""

    z: np.ndarray  # float64 mm along the camera's Z
    item: np.ndarray  # int64: an object, S + a tire, or -1
    place: np.ndarray  # (H, W, 3) float32: the point, world frame
    normal: np.ndarray  # (H, W, 3) float32, towards the camera, world frame
    local: np.ndarray  # (H, W, 3) float32: the point in the object's own frame
    groove: np.ndarray  # uint16, 0 none
    lit: np.ndarray  # bool: the lamp's light arrives


@kernel
def intersect_object(kind, half, o, d):
    """Return where o + t d enters an object (leaves it, for ROOM), in its own frame.

    Infinite where it misses or starts inside.
    """
    if kind == BALL:
        ox, oy, oz = o[0] / half[0], o[1] / half[1], o[2] / half[2]
        dx, dy, dz = d[0] / half[0], d[1] / half[1], d[2] / half[2]
        a, b, c = (
            dx * dx + dy * dy + dz * dz,
            ox * dx + oy * dy + oz * dz,
            ox * ox + oy * oy + oz * oz - 1.0,
        )
        under = b * b - a * c
        return (-b - math.sqrt(under)) / a if under >= 0.0 and c > 0.0 and b < 0.0 else math.inf
    t0, t1 = -math.inf, math.inf
    for i in range(2 if kind == CYLINDER else 0, 3):
        if abs(d[i]) < 1e-12:
            if abs(o[i]) > half[i]:
                return math.inf
            continue
        ta, tb = (-half[i] - o[i]) / d[i], (half[i] - o[i]) / d[i]
        t0, t1 = max(t0, min(ta, tb)), min(t1, max(ta, tb))
    if kind == CYLINDER:
        a, b, c = (
            d[0] * d[0] + d[1] * d[1],
            o[0] * d[0] + o[1] * d[1],
            o[0] * o[0] + o[1] * o[1] - half[0] * half[0],
        )
        if a > 1e-18:
            under = b * b - a * c
            if under < 0.0:
                return math.inf
            root = math.sqrt(under)
            t0, t1 = max(t0, (-b - root) / a), min(t1, (-b + root) / a)
        elif c > 0.0:
            return math.inf
    if kind == ROOM:
        return t1 if t1 > 0.0 else math.inf
    return t0 if 0.0 < t0 <= t1 else math.inf


@kernel
def object_normal(kind, half, p):
    """Return an object's outward normal at a surface point, its own frame, not of unit length."""
    if kind == BALL:
        return p[0] / (half[0] * half[0]), p[1] / (half[1] * half[1]), p[2] / (half[2] * half[2])
    if kind == CYLINDER:
        return (0.0, 0.0, p[2]) if abs(p[2]) > half[2] * (1.0 - 1e-9) - 1e-6 else (p[0], p[1], 0.0)
    x, y, z = abs(p[0]) - half[0], abs(p[1]) - half[1], abs(p[2]) - half[2]
    if x > y and x > z:
        return p[0], 0.0, 0.0
    return (0.0, p[1], 0.0) if y > z else (0.0, 0.0, p[2])


@kernel
def nearest_hit(scene, o, d, floor_mm):
    """Return (t, item) of the first hit on a ray; item is an object, S + a tire, or -1 for none."""
    best, item = math.inf, -1
    for s in range(len(scene.kind)):
        m = scene.to_object[s]
        t = intersect_object(
            scene.kind[s], scene.half[s], transform(m, o, 1.0), transform(m, d, 0.0)
        )
        if t < best:
            best, item = t, s
    for k in range(len(scene.tires)):
        m = scene.to_tire[k]
        to, td = transform(m, o, 1.0), transform(m, d, 0.0)
        start, end = hull_interval(scene.tires[k], to, td, 0.0)
        start, end = max(start, 0.0), min(end, best)
        if start < end:
            t = march(scene.tires[k], scene.grooves, to, td, start, end, floor_mm)
            if t < best:
                best, item = t, len(scene.kind) + k
    return best, item


@kernel
def is_shadowed(scene, o, d):
    """Return whether something stands between the lamp `o` and the point o + d.

    The room itself never does.
    """
    for s in range(len(scene.kind)):
        m = scene.to_object[s]
        if (
            scene.kind[s] != ROOM
            and intersect_object(
                scene.kind[s], scene.half[s], transform(m, o, 1.0), transform(m, d, 0.0)
            )
            < 1.0
        ):
            return True
    for k in range(len(scene.tires)):
        m = scene.to_tire[k]
        to, td = transform(m, o, 1.0), transform(m, d, 0.0)
        start, end = hull_interval(scene.tires[k], to, td, 0.0)
        start, end = max(start, 0.0), min(end, 1.0)
        if start < end and march(scene.tires[k], scene.grooves, to, td, start, end, 0.25) < 1.0:
            return True
    return False


@kernel
def camera_position(scene):
    """Return where the camera is, world frame."""
    c = scene.camera
    return rotate_back(c, (-c[0, 3], -c[1, 3], -c[2, 3]))


@kernel
def _cast(scene, fx, fy, cx, cy, hits):
    height, width = hits.z.shape
    c = scene.camera
    o = camera_position(scene)
    for v in range(height):
        for u in range(width):
            d = rotate_back(c, ((u + 0.5 - cx) / fx, (v + 0.5 - cy) / fy, 1.0))
            t, item = nearest_hit(scene, o, d, 0.02)
            hits.z[v, u], hits.item[v, u] = t, item
            if item < 0:
                continue
            x, y, z = o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2]
            if item < len(scene.kind):
                m = scene.to_object[item]
                p = transform(m, (x, y, z), 1.0)
                n = rotate_back(m, object_normal(scene.kind[item], scene.half[item], p))
            else:
                k = item - len(scene.kind)
                m = scene.to_tire[k]
                p = transform(m, (x, y, z), 1.0)
                row, repeat, cut = groove_at(scene.tires[k], scene.grooves, p[0], p[1], p[2])
                hits.groove[v, u] = scene.grooves[row].line + repeat if row >= 0 else 0
                n = rotate_back(
                    m, surface_normal(scene.tires[k], scene.grooves, p[0], p[1], p[2], cut)
                )
            size = math.sqrt(n[0] * n[0] + n[1] * n[1] + n[2] * n[2]) + 1e-30
            size = -size if n[0] * d[0] + n[1] * d[1] + n[2] * d[2] > 0.0 else size
            n = (n[0] / size, n[1] / size, n[2] / size)
            lx, ly, lz = (
                x + 0.3 * n[0] - scene.light[0],
                y + 0.3 * n[1] - scene.light[1],
                z + 0.3 * n[2] - scene.light[2],
            )
            facing = lx * n[0] + ly * n[1] + lz * n[2] < 0.0
            hits.lit[v, u] = facing and not is_shadowed(
                scene, (scene.light[0], scene.light[1], scene.light[2]), (lx, ly, lz)
            )
            for a in range(3):
                hits.place[v, u, a] = (x, y, z)[a]
                hits.normal[v, u, a] = n[a]
                hits.local[v, u, a] = p[a]


def raycast_room(scene: RoomScene, k: np.ndarray, height: int, width: int) -> RoomHits:
    """Return what each pixel of a (height, width) image with intrinsics `k` (3, 3) sees."""
    hits = RoomHits(
        z=np.zeros((height, width)),
        item=np.zeros((height, width), np.int64),
        place=np.zeros((height, width, 3), np.float32),
        normal=np.zeros((height, width, 3), np.float32),
        local=np.zeros((height, width, 3), np.float32),
        groove=np.zeros((height, width), np.uint16),
        lit=np.zeros((height, width), np.bool_),
    )
    _cast(scene, k[0, 0], k[1, 1], k[0, 2], k[1, 2], hits)
    return hits
