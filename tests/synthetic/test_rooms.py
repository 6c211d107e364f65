"""Rooms: every depth is where the ray first meets a surface, and nothing depends on order."""

from dataclasses import replace

import numpy as np
import pytest

from depthdist.core.settings import Size
from depthdist.synthetic.raytracing.tire_shape import signed_distance
from depthdist.synthetic.rooms import raycast
from depthdist.synthetic.rooms import render as rooms
from depthdist.synthetic.rooms.raycast import raycast_room
from depthdist.synthetic.rooms.scene import draw_scene

SETTINGS = rooms.Settings(scenes=8, size=Size(42, 70), seed=3)


def scene_of(index, size=(42, 70)):
    return draw_scene(np.random.default_rng(index), size)


def inside(kind, half, p):
    """Return for points (N, 3) of an object's own frame: below 1 inside, 1 on its surface."""
    if kind == raycast.BALL:
        return np.sqrt((p**2 / np.asarray(half) ** 2).sum(-1))
    if kind == raycast.CYLINDER:
        return np.maximum(np.hypot(p[:, 0], p[:, 1]) / half[0], abs(p[:, 2]) / half[2])
    return (abs(p) / half).max(-1)


def to(frame, points):
    return points @ frame[:, :3].T + frame[:, 3]


@pytest.mark.parametrize("index", range(8))
def test_every_hit_lies_on_its_object_and_nothing_stands_before_it(index):
    """Against the implicit surfaces in NumPy: no march, no closed form."""
    scene, _, k = scene_of(index)
    hits = raycast_room(scene, k, 42, 70)
    camera = scene.camera
    lens = -camera[:, :3].T @ camera[:, 3]
    rng = np.random.default_rng(0)
    num_objects = len(scene.kind)
    for v, u in zip(rng.integers(0, 42, 60), rng.integers(0, 70, 60)):
        d = camera[:, :3].T @ [(u + 0.5 - k[0, 2]) / k[0, 0], (v + 0.5 - k[1, 2]) / k[1, 1], 1.0]
        z, item = hits.z[v, u], hits.item[v, u]
        assert item >= 0, "every ray hits something"
        assert np.isfinite(z)
        point = (lens + z * d)[None]
        if item < num_objects:
            own_point = to(scene.to_object[item], point)
            on = inside(scene.kind[item], scene.half[item], own_point)
            assert on[0] == pytest.approx(1.0, abs=1e-9)
        else:
            tire = scene.tires[item - num_objects]
            x, y, axial = to(scene.to_tire[item - num_objects], point)[0]
            assert abs(signed_distance(tire, scene.grooves, x, y, axial)) < 0.05
        before = lens + np.linspace(0.0, 0.999, 400)[:, None] * z * d
        for s in range(num_objects):
            depth = inside(scene.kind[s], scene.half[s], to(scene.to_object[s], before))
            if scene.kind[s] == raycast.ROOM:
                assert (depth <= 1 + 1e-9).all(), "the ray leaves the room"
            else:
                assert (depth >= 1 - 1e-9).all(), f"object {s} stands before the hit"
        for tire, frame in zip(scene.tires, scene.to_tire):
            p = to(frame, before)
            r = np.hypot(p[:, 0], p[:, 1])
            near = (r < tire["radius_mm"] + 1) & (abs(p[:, 2]) < tire["half_mm"] + 1)
            assert all(signed_distance(tire, scene.grooves, *q) > -0.05 for q in p[near])


def test_normals_face_the_lens_and_are_the_surfaces_own():
    """Against differences of neighbouring points, in the middle of faces."""
    scene, _, k = scene_of(1, (84, 140))
    hits = raycast_room(scene, k, 84, 140)
    lens = -scene.camera[:, :3].T @ scene.camera[:, 3]
    assert ((hits.normal * (hits.place - lens)).sum(-1) < 0).all()
    across = np.cross(
        hits.place[1:-1, 2:] - hits.place[1:-1, :-2], hits.place[2:, 1:-1] - hits.place[:-2, 1:-1]
    )
    across /= np.linalg.norm(across, axis=-1, keepdims=True)
    same = np.ones(across.shape[:2], bool)
    for dv, du in ((0, 1), (2, 1), (1, 0), (1, 2)):
        same &= hits.item[dv : dv + 82, du : du + 138] == hits.item[1:-1, 1:-1]
    same &= hits.item[1:-1, 1:-1] < len(scene.kind)
    agree = abs((across * hits.normal[1:-1, 1:-1]).sum(-1))[same]
    assert same.mean() > 0.3
    assert np.median(agree) > 0.999
    assert (agree > 0.95).mean() > 0.9


def test_what_the_lamp_does_not_reach_is_what_something_hides():
    scene, _, k = scene_of(2)
    hits = raycast_room(scene, k, 42, 70)
    alone = raycast_room(
        scene._replace(
            kind=scene.kind[-1:],
            half=scene.half[-1:],
            to_object=scene.to_object[-1:],
            tires=scene.tires[:0],
            to_tire=scene.to_tire[:0],
        ),
        k,
        42,
        70,
    )
    assert alone.lit.all(), "an empty room has no shadow"
    bare = (hits.item == len(scene.kind) - 1) & np.isclose(hits.z, alone.z)
    assert 0 < (bare & ~hits.lit).sum() < bare.sum()


def test_a_scene_follows_from_seed_and_number_alone_and_is_exact_everywhere():
    first = [rooms.render(SETTINGS, i) for i in range(8)]
    again = rooms.render(replace(SETTINGS, scenes=100), 5)
    assert (again.rgb == first[5].rgb).all()
    assert (again.xyz == first[5].xyz).all()
    assert not (rooms.render(replace(SETTINGS, seed=4), 5).rgb == first[5].rgb).all()
    for scene in first:
        assert scene.rgb.shape == (42, 70, 3)
        assert np.isfinite(scene.xyz).all()
        assert scene.xyz[..., 2].min() > 50
        assert scene.rgb.std() > 5
    with_grooves = [bool(scene.groove.any()) for scene in first]
    assert set(with_grooves) == {True, False}
