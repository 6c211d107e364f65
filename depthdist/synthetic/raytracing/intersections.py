"""Intersections of a ray o + t d (tuples, mm) with one shape.

Boxes and cylinders are solved in closed form, a tire is marched along its signed distance.
"""

from __future__ import annotations

import math

from depthdist.core.kernel import kernel
from depthdist.synthetic.raytracing.tire_shape import signed_distance


@kernel
def hull_interval(tire, o, d, grow):
    """Return where a ray enters and leaves the cylinder around a tire, widened by `grow` mm.

    The entry t0 is larger than the exit t1 where the ray misses.
    """
    half, radius = tire.half_mm + grow, tire.radius_mm + grow
    t0, t1 = -math.inf, math.inf
    if abs(d[2]) > 1e-12:
        ta, tb = (-half - o[2]) / d[2], (half - o[2]) / d[2]
        t0, t1 = min(ta, tb), max(ta, tb)
    elif abs(o[2]) > half:
        return 1.0, 0.0
    a, b, c = (
        d[0] * d[0] + d[1] * d[1],
        o[0] * d[0] + o[1] * d[1],
        o[0] * o[0] + o[1] * o[1] - radius * radius,
    )
    if a > 1e-18:
        under = b * b - a * c
        if under < 0.0:
            return 1.0, 0.0
        root = math.sqrt(under)
        return max(t0, (-b - root) / a), min(t1, (-b + root) / a)
    return (t0, t1) if c <= 0.0 else (1.0, 0.0)


@kernel
def march(tire, grooves, o, d, t, end, floor_mm):
    """Return the first t where the ray o + t d enters the tire, inf if it does not before `end`.

    The start must be outside. Over-relaxed sphere tracing (Keinert et al. 2014, Enhanced sphere
    tracing): a step is longer than the distance allows, by what a flat surface at this slope
    permits, and is taken back where the free balls around its two ends do not overlap. Nothing is
    skipped.
    """
    speed = math.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
    before, stride, longer = 0.0, 0.0, False
    while t < end:
        now = signed_distance(tire, grooves, o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2])
        if longer and now + before < stride:
            t, stride, longer = t - (stride - before) / speed, before, False
            continue
        if now <= 0.0:
            return t - stride / speed * now / (now - before) if before > 0.0 else t
        nearing = (before - now) / stride if stride > 0.0 else 0.7
        before, stride, longer = now, max(now, floor_mm), False
        if nearing < 0.95 and now > 2.0 * floor_mm:
            stride, longer = now * 1.96 / (1.0 + max(nearing, 0.3)), True
        t += stride / speed
    if longer and t - (stride - before) / speed < end:
        return march_in_safe_steps(
            tire, grooves, o, d, t - (stride - before) / speed, end, floor_mm
        )
    return math.inf


@kernel
def march_in_safe_steps(tire, grooves, o, d, t, end, floor_mm):
    """March like `march`, but never farther than the distance in one step."""
    speed = math.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
    before, stride = 0.0, 0.0
    while t < end:
        now = signed_distance(tire, grooves, o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2])
        if now <= 0.0:
            return t - stride / speed * now / (now - before) if before > 0.0 else t
        before, stride = now, max(now, floor_mm)
        t += stride / speed
    return math.inf


@kernel
def intersect_box(box, o, d, grow):
    """Return where a ray enters a box grown by `grow` mm, and the axis of the face it enters by.

    Infinite where it misses.
    """
    t0, t1, axis = -math.inf, math.inf, 0
    for i in range(3):
        if abs(d[i]) < 1e-12:
            if o[i] < box[i] - grow or o[i] > box[i + 3] + grow:
                return math.inf, 0
            continue
        ta, tb = (box[i] - grow - o[i]) / d[i], (box[i + 3] + grow - o[i]) / d[i]
        if min(ta, tb) > t0:
            t0, axis = min(ta, tb), i
        t1 = min(t1, max(ta, tb))
    if t0 > t1 or t1 < 0.0:
        return math.inf, 0
    return t0, axis


@kernel
def intersect_cylinder(cylinder, o, d):
    """Return where a ray enters a closed cylinder, inf where it misses."""
    ax, ay, az, radius, half = cylinder[3], cylinder[4], cylinder[5], cylinder[6], cylinder[7]
    px, py, pz = o[0] - cylinder[0], o[1] - cylinder[1], o[2] - cylinder[2]
    along, height = d[0] * ax + d[1] * ay + d[2] * az, px * ax + py * ay + pz * az
    dx, dy, dz = d[0] - along * ax, d[1] - along * ay, d[2] - along * az
    qx, qy, qz = px - height * ax, py - height * ay, pz - height * az
    a, b, c = (
        dx * dx + dy * dy + dz * dz,
        qx * dx + qy * dy + qz * dz,
        qx * qx + qy * qy + qz * qz - radius * radius,
    )
    t0, t1 = -math.inf, math.inf
    if a > 1e-18:
        under = b * b - a * c
        if under < 0.0:
            return math.inf
        root = math.sqrt(under)
        t0, t1 = (-b - root) / a, (-b + root) / a
    elif c > 0.0:
        return math.inf
    if abs(along) > 1e-12:
        ta, tb = (-half - height) / along, (half - height) / along
        t0, t1 = max(t0, min(ta, tb)), min(t1, max(ta, tb))
    elif abs(height) > half:
        return math.inf
    return t0 if t0 <= t1 and t1 >= 0.0 else math.inf


@kernel
def march_cone(tire, grooves, o, d, spread, reach):
    """Return from which t < reach on a ray within `spread * t` of this one could meet the tire.

    Infinite if none can.
    """
    speed = math.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2]) + spread
    t, end = hull_interval(tire, o, d, spread * reach)
    t, end = max(t, 0.0), min(end, reach)
    while t < end:
        room = (
            signed_distance(tire, grooves, o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2])
            - spread * t
        )
        if room < 0.5:
            return t
        t += room / speed
    return math.inf
