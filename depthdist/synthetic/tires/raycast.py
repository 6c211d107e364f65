"""Cast a ray per pixel: exact depth, what was hit, its normal, and whether the projector lights it.

Camera frame: X right, Y down, Z forward, mm. A ray is ((u + 0.5 - cx) / fx, (v + 0.5 - cy) / fy, 1)
* t, so t is Z, in every object's frame as well. Boxes, cylinders and planes are solved in closed
form. A tire is marched along its signed distance until the sign changes within MIN_STEP_MM, and
the crossing is interpolated: the error is far below 0.01 mm.

Pixels are processed in tiles. For each tile a cone that covers all of its rays determines which
objects they can meet and from where on: most of a pixel's march is done once for its tile, and
nothing is missed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from depthdist.core.kernel import kernel
from depthdist.synthetic.raytracing.intersections import (
    hull_interval,
    intersect_box,
    intersect_cylinder,
    march,
    march_cone,
)
from depthdist.synthetic.raytracing.openness import openness_at
from depthdist.synthetic.raytracing.tire_shape import groove_at, painted_at, surface_normal
from depthdist.synthetic.raytracing.transforms import rotate_back, transform

NONE, TIRE_HIT, WALL, WOOD, FLOOR, CHROME, ROOM = range(7)
MIN_STEP_MM = 8e-3  # of a march
TILE = 8  # pixels a side
REACH_MM = 4500.0  # beyond every object
LENS = (0.0, 0.0, 0.0)
CONE = (0.486, 0.304)  # half width and height of the projector's light at Z = 1
AIM_MM = 1450.0  # Z where the axes of projector and lens cross


class CrateScene(NamedTuple):
    """Everything the rays can meet, as arrays. T tires, G groove rows, B boxes, C cylinders."""

    tires: np.ndarray  # (T,) TIRE
    to_tire: np.ndarray  # (T, 3, 4) camera frame to the tire's frame
    grooves: np.ndarray  # (G,) GROOVE
    boxes: np.ndarray  # (B, 6) crate frame: low corner, high corner
    box_kind: np.ndarray  # (B,) uint8
    to_crate: np.ndarray  # (3, 4) camera frame to the crate's frame
    # (C, 8) camera frame, the chrome gripper: middle, unit axis, radius, half length
    cylinders: np.ndarray
    room: np.ndarray  # (P, 4) planes n . p = d in the camera frame: the room's walls and floor
    projector: np.ndarray  # (3,) camera frame


class CrateHits(NamedTuple):
    """What the rays hit; (H, W) unless stated."""

    z: np.ndarray  # float64 mm, NaN where nothing was hit
    kind: np.ndarray  # uint8, NONE .. ROOM
    item: np.ndarray  # uint8: the row of the tire or box
    groove: np.ndarray  # uint16: groove id, 0 none
    painted: np.ndarray  # uint16: id of a groove that is only painted on, 0 none
    openness: np.ndarray  # float32: what a groove leaves of the view of the surroundings, else 1
    normal: np.ndarray  # (H, W, 3) float32, towards the camera
    lit: np.ndarray  # bool: the projector's light arrives


@kernel
def projector_light(x, y, z, baseline):
    """Return the share of the projector's light at a point: 1 inside its cone, 0 outside.

    The edge between is soft.
    """
    across, down = (x - baseline) / z + baseline / AIM_MM, y / z
    edge = ((across / CONE[0]) ** 2) ** 2.5 + ((down / CONE[1]) ** 2) ** 2.5
    return min(max((1.12 - edge) / 0.24, 0.0), 1.0) * (1.0 - 0.25 * min(edge, 1.0))


@kernel
def _candidates(scene, o, d, spread, reach, tires, starts, boxes):
    """Write what a cone can meet before `reach` into the last three arrays, return the two counts.

    Tires come nearest first, with the t from which each can be met.
    """
    num_tires, num_boxes = 0, 0
    for k in range(len(scene.tires)):
        to, td = transform(scene.to_tire[k], o, 1.0), transform(scene.to_tire[k], d, 0.0)
        start = march_cone(scene.tires[k], scene.grooves, to, td, spread, reach)
        if start < math.inf:
            at = num_tires
            while at > 0 and starts[at - 1] > start:
                tires[at], starts[at] = tires[at - 1], starts[at - 1]
                at -= 1
            tires[at], starts[at] = k, start
            num_tires += 1
    co, cd = transform(scene.to_crate, o, 1.0), transform(scene.to_crate, d, 0.0)
    for b in range(len(scene.boxes)):
        if intersect_box(scene.boxes[b], co, cd, spread * reach)[0] < reach:
            boxes[num_boxes] = b
            num_boxes += 1
    return num_tires, num_boxes


@kernel
def _cast_ray(scene, d, tires, starts, boxes):
    """Return (t, kind, item, face) of the nearest of a tile's candidates on a ray from the lens."""
    best, kind, item, axis = math.inf, NONE, 0, 0
    for p in range(len(scene.room)):
        n = scene.room[p]
        t = n[3] / (n[0] * d[0] + n[1] * d[1] + n[2])
        if 0.0 < t < best:
            best, kind, item = t, ROOM, p
    for c in range(len(scene.cylinders)):
        t = intersect_cylinder(scene.cylinders[c], LENS, d)
        if 0.0 < t < best:
            best, kind, item = t, CHROME, c
    o, cd = transform(scene.to_crate, LENS, 1.0), transform(scene.to_crate, d, 0.0)
    for b in boxes:
        t, face = intersect_box(scene.boxes[b], o, cd, 0.0)
        if 0.0 < t < best:
            best, kind, item, axis = t, scene.box_kind[b], b, face
    for i in range(len(tires)):
        if starts[i] < best:
            k = tires[i]
            to, td = transform(scene.to_tire[k], LENS, 1.0), transform(scene.to_tire[k], d, 0.0)
            start, end = hull_interval(scene.tires[k], to, td, 0.0)
            t = march(
                scene.tires[k],
                scene.grooves,
                to,
                td,
                max(start, starts[i]),
                min(end, best),
                MIN_STEP_MM,
            )
            if t < best:
                best, kind, item = t, TIRE_HIT, k
    return best, kind, item, axis


@kernel
def _is_shadowed(scene, o, d, tires, starts, boxes):
    """Return whether a candidate stands between the projector `o` and the point o + d."""
    for c in range(len(scene.cylinders)):
        if 0.0 < intersect_cylinder(scene.cylinders[c], o, d) < 1.0:
            return True
    co, cd = transform(scene.to_crate, o, 1.0), transform(scene.to_crate, d, 0.0)
    for b in boxes:
        if 0.0 < intersect_box(scene.boxes[b], co, cd, 0.0)[0] < 1.0:
            return True
    for i in range(len(tires)):
        k = tires[i]
        to, td = transform(scene.to_tire[k], o, 1.0), transform(scene.to_tire[k], d, 0.0)
        start, end = hull_interval(scene.tires[k], to, td, 0.0)
        start, end = max(start, starts[i]), min(end, 1.0)
        if start < end and march(scene.tires[k], scene.grooves, to, td, start, end, 0.25) < 1.0:
            return True
    return False


@kernel
def _cylinder_normal(c, x, y, z):
    """Return the outward normal of a closed cylinder at a surface point, not of unit length."""
    px, py, pz = x - c[0], y - c[1], z - c[2]
    along = px * c[3] + py * c[4] + pz * c[5]
    if abs(along) > c[7] - 1e-6:
        return c[3] * along, c[4] * along, c[5] * along
    return px - along * c[3], py - along * c[4], pz - along * c[5]


@kernel
def _surface_at(scene, kind, item, axis, point):
    """Return what is known of the surface at a hit.

    That is the ids of its groove and of its painted-on groove (0 none), its openness, and its unit
    normal towards the lens in the camera's frame.
    """
    groove, painted, openness, n = 0, 0, 1.0, (0.0, 0.0, 0.0)
    if kind == TIRE_HIT:
        m, tire = scene.to_tire[item], scene.tires[item]
        x, y, axial = transform(m, point, 1.0)
        row, repeat, cut = groove_at(tire, scene.grooves, x, y, axial)
        groove = scene.grooves[row].line + repeat if row >= 0 else 0
        row, repeat = painted_at(tire, scene.grooves, x, y, axial)
        painted = scene.grooves[row].line + repeat if row >= 0 else 0
        n = surface_normal(tire, scene.grooves, x, y, axial, cut)
        if cut:
            openness = openness_at(tire, scene.grooves, x, y, axial, n)
        n = rotate_back(m, n)
    elif kind == ROOM:
        n = (scene.room[item, 0], scene.room[item, 1], scene.room[item, 2])
    elif kind == CHROME:
        n = _cylinder_normal(scene.cylinders[item], point[0], point[1], point[2])
    else:
        n = (scene.to_crate[axis, 0], scene.to_crate[axis, 1], scene.to_crate[axis, 2])
    size = math.sqrt(n[0] * n[0] + n[1] * n[1] + n[2] * n[2]) + 1e-30
    size = -size if n[0] * point[0] + n[1] * point[1] + n[2] * point[2] > 0.0 else size
    return groove, painted, openness, (n[0] / size, n[1] / size, n[2] / size)


@kernel
def _cast_tile(scene, rays, corner, tires, starts, boxes, hits):
    """Cast the rays of one tile."""
    fx, fy, cx, cy = rays
    height, width = hits.z.shape
    for v in range(corner[0], min(corner[0] + TILE, height)):
        for u in range(corner[1], min(corner[1] + TILE, width)):
            d = ((u + 0.5 - cx) / fx, (v + 0.5 - cy) / fy, 1.0)
            t, kind, item, axis = _cast_ray(scene, d, tires, starts, boxes)
            hits.kind[v, u] = kind
            hits.item[v, u] = item
            hits.z[v, u] = t if kind != NONE else math.nan
            if kind != NONE:
                groove, painted, openness, n = _surface_at(
                    scene, kind, item, axis, (d[0] * t, d[1] * t, t)
                )
                hits.groove[v, u] = groove
                hits.painted[v, u] = painted
                hits.openness[v, u] = openness
                hits.normal[v, u, 0], hits.normal[v, u, 1], hits.normal[v, u, 2] = n


@kernel
def _light_tile(scene, rays, corner, tires, starts, boxes, hits):
    """Find which points of one tile the projector lights; one cone selects the candidates."""
    fx, fy, cx, cy = rays
    height, width = hits.z.shape
    px, py, pz = scene.projector
    aims, pixels, num = np.empty((TILE * TILE, 3)), np.empty((TILE * TILE, 2), np.int64), 0
    for v in range(corner[0], min(corner[0] + TILE, height)):
        for u in range(corner[1], min(corner[1] + TILE, width)):
            z = hits.z[v, u]
            x, y, n = (u + 0.5 - cx) / fx * z, (v + 0.5 - cy) / fy * z, hits.normal[v, u]
            if hits.kind[v, u] == NONE or projector_light(x, y, z, px) == 0.0:
                continue
            if (px - x) * n[0] + (py - y) * n[1] + (pz - z) * n[2] > 0.0:
                aims[num, 0], aims[num, 1], aims[num, 2] = (
                    x + 0.3 * n[0] - px,
                    y + 0.3 * n[1] - py,
                    z + 0.3 * n[2] - pz,
                )
                pixels[num, 0], pixels[num, 1] = v, u
                num += 1
    if num == 0:
        return
    low, high = np.empty(3), np.empty(3)
    for a in range(3):
        low[a], high[a] = aims[0, a], aims[0, a]
        for i in range(1, num):
            low[a], high[a] = min(low[a], aims[i, a]), max(high[a], aims[i, a])
    middle = (0.5 * (low[0] + high[0]), 0.5 * (low[1] + high[1]), 0.5 * (low[2] + high[2]))
    spread = 0.5 * math.sqrt(
        (high[0] - low[0]) ** 2 + (high[1] - low[1]) ** 2 + (high[2] - low[2]) ** 2
    )
    o = (px, py, pz)
    num_tires, num_boxes = _candidates(scene, o, middle, spread + 1e-6, 1.0, tires, starts, boxes)
    for i in range(num):
        d = (aims[i, 0], aims[i, 1], aims[i, 2])
        hits.lit[pixels[i, 0], pixels[i, 1]] = not _is_shadowed(
            scene, o, d, tires[:num_tires], starts[:num_tires], boxes[:num_boxes]
        )


@kernel
def _cast(scene, rays, hits):
    fx, fy, cx, cy = rays
    tires = np.empty(len(scene.tires), np.int64)
    starts = np.empty(len(scene.tires))
    boxes = np.empty(len(scene.boxes), np.int64)
    spread = 0.5 * math.hypot(TILE / fx, TILE / fy)
    for v in range(0, hits.z.shape[0], TILE):
        for u in range(0, hits.z.shape[1], TILE):
            d = ((u + 0.5 * TILE - cx) / fx, (v + 0.5 * TILE - cy) / fy, 1.0)
            num_tires, num_boxes = _candidates(
                scene, LENS, d, spread, REACH_MM, tires, starts, boxes
            )
            _cast_tile(
                scene, rays, (v, u), tires[:num_tires], starts[:num_tires], boxes[:num_boxes], hits
            )
            _light_tile(scene, rays, (v, u), tires, starts, boxes, hits)


def raycast_crate(scene: CrateScene, k: np.ndarray, height: int, width: int) -> CrateHits:
    """Return what each pixel of a (height, width) image with intrinsics `k` (3, 3) sees."""
    hits = CrateHits(
        z=np.zeros((height, width)),
        kind=np.zeros((height, width), np.uint8),
        item=np.zeros((height, width), np.uint8),
        groove=np.zeros((height, width), np.uint16),
        painted=np.zeros((height, width), np.uint16),
        openness=np.ones((height, width), np.float32),
        normal=np.zeros((height, width, 3), np.float32),
        lit=np.zeros((height, width), np.bool_),
    )
    _cast(scene, (k[0, 0], k[1, 1], k[0, 2], k[1, 2]), hits)
    return hits
