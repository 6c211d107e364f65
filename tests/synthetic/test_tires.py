"""The renderer's depth against independent arithmetic, and what a set of captures guarantees."""

from datetime import datetime
from itertools import pairwise

import numpy as np
import pytest
from helpers.treads import K, facing_crate, hits_of

from depthdist.core.settings import Size
from depthdist.synthetic.raytracing.tire_shape import (
    AROUND,
    GROOVE,
    MAX_HALF_MM,
    draw_tire,
    signed_distance,
    tread_half_mm,
)
from depthdist.synthetic.raytracing.tread_patterns import GROOVE_KINDS, PATTERNS, groove_rows
from depthdist.synthetic.tires import raycast
from depthdist.synthetic.tires import render as tires
from depthdist.synthetic.tires.pile import surface_points
from depthdist.synthetic.tires.plan import plan_captures
from depthdist.synthetic.tires.raycast import TIRE_HIT, raycast_crate
from depthdist.synthetic.tires.render import ground_truth
from depthdist.synthetic.tires.scene import build_scene, draw_pile
from depthdist.synthetic.tires.view import intrinsics

SETTINGS = tires.Settings(pairs=8, size=Size(60, 98), seed=3)
EXACT_MM = 0.01


@pytest.fixture(scope="module")
def captures():
    return [tires.render(SETTINGS, i) for i in range(SETTINGS.pairs)]


@pytest.fixture(scope="module")
def crates():
    return [build_scene(SETTINGS, capture).crate for capture in plan_captures(SETTINGS)]


def smoothed(a, b, k):
    return np.maximum(a, b) + np.clip(k - np.abs(a - b), 0, None) ** 2 / (4 * k)


def solid(tire, grooves, p):
    """Return the signed distance of points p (..., 3) to a tire, independently in float64 NumPy."""
    r, y = np.hypot(p[..., 0], p[..., 1]), np.abs(p[..., 2])
    crown = np.hypot(r - (tire["radius_mm"] - tire["crown_mm"]), y) - tire["crown_mm"]
    side = (
        np.hypot(r - tire["middle_mm"], np.clip(y - (tire["half_mm"] - tire["side_mm"]), 0, None))
        - tire["side_mm"]
    )
    hollow = smoothed(crown + tire["tread_mm"], side + tire["wall_mm"], 32.0)
    whole = np.maximum.reduce([smoothed(crown, side, 16.0), tire["bore_mm"] - r, -hollow])
    angle = np.arctan2(p[..., 1], p[..., 0])
    for g in grooves[tire["first"] : tire["last"]]:
        around = 2 * np.pi * g["foot_mm"] / g["repeats"]  # mm of arc to a repeat
        turns = g["repeats"] * angle / (2 * np.pi) + g["phase"]
        if g["way"] == AROUND:
            wave = 4 * np.abs((turns + 0.5) % 1.0 - 0.5) - 1
            off = np.abs(p[..., 2] - g["center_mm"] - g["wave_mm"] * wave) / np.hypot(
                1, 4 * g["wave_mm"] / around
            )
            inside = g["half_mm"] - off
        else:
            bend = g["slope"] * (y if g["fold"] else p[..., 2])
            off = (
                np.abs((turns + bend / around + 0.5) % 1.0 - 0.5) * around / np.hypot(1, g["slope"])
            )
            inside = np.minimum(
                g["half_mm"] - off, g["extent_mm"] - np.abs(p[..., 2] - g["center_mm"])
            )
        whole = np.maximum(whole, np.minimum(crown + g["depth_mm"], inside))
    return whole


def rays(k, pixels):
    """Return directions (N, 3) through pixels (N, 2) of (v, u)."""
    v, u = pixels.T
    return np.stack(
        [(u + 0.5 - k[0, 2]) / k[0, 0], (v + 0.5 - k[1, 2]) / k[1, 1], np.ones(len(u))], axis=1
    )


def local(to, p):
    return p @ to[:, :3].T + to[:, 3]


def test_depth_of_tires_is_where_a_dense_search_finds_the_surface(crates):
    k, rng, checked = intrinsics(SETTINGS.size), np.random.default_rng(0), 0
    for crate in crates[:4]:
        hits = raycast_crate(crate, k, *SETTINGS.size)
        pixels = rng.permutation(np.argwhere(hits.kind == TIRE_HIT))[:60]
        for (v, u), ray in zip(pixels, rays(k, pixels)):
            z = hits.z[v, u]
            close = z + np.arange(-0.1, 0.1, 0.001)
            before = np.arange(100.0, z - 0.1, 0.4)
            own = hits.item[v, u]
            f = solid(
                crate.tires[own], crate.grooves, local(crate.to_tire[own], close[:, None] * ray)
            )
            assert f.min() < 0 < f[0], "the search finds no surface there"
            assert abs(close[np.argmax(f < 0)] - z) < EXACT_MM
            for tire, to in zip(crate.tires, crate.to_tire):
                nearest = solid(tire, crate.grooves, local(to, before[:, None] * ray)).min()
                assert nearest > -1e-3, "something stands before it"
            checked += 1
    assert checked == 240


def test_truth_points_lie_on_the_surface_they_name(captures, crates):
    for capture, crate in zip(captures, crates):
        pixels = np.argwhere(capture.truth["tire"] > 0)
        z = capture.truth["z"][tuple(pixels.T)].astype(np.float64)
        points = rays(capture.truth["K"], pixels) * z[:, None]
        own = capture.truth["tire"][tuple(pixels.T)] - 1
        for i in np.unique(own):
            own_points = local(crate.to_tire[i], points[own == i])
            off = solid(crate.tires[i], crate.grooves, own_points)
            assert np.abs(off).max() < EXACT_MM, f"tire {i}"


def test_floor_walls_and_gripper_agree_with_their_equations(crates):
    k, seen = intrinsics(SETTINGS.size), set()
    for crate in crates:
        hits = raycast_crate(crate, k, *SETTINGS.size)
        for kind in (raycast.FLOOR, raycast.WALL, raycast.WOOD, raycast.CHROME):
            pixels = np.argwhere(hits.kind == kind)
            seen |= {kind} if len(pixels) else set()
            points = rays(k, pixels) * hits.z[tuple(pixels.T)][:, None]
            item = hits.item[tuple(pixels.T)]
            if kind == raycast.CHROME:
                c = crate.cylinders[item]
                along = np.einsum("ni,ni->n", points - c[:, :3], c[:, 3:6])
                aside = np.linalg.norm(points - c[:, :3] - along[:, None] * c[:, 3:6], axis=1)
                off = np.maximum(aside - c[:, 6], np.abs(along) - c[:, 7])
            else:
                box, p = crate.boxes[item], local(crate.to_crate, points)
                off = np.maximum(box[:, :3] - p, p - box[:, 3:]).max(axis=1)
            assert np.abs(off).max(initial=0.0) < 1e-6
    assert len(seen) == 4


def facing(pattern):
    """Return the truth of a tread that faces the lens."""
    crate = facing_crate(pattern)
    return ground_truth(crate, hits_of(crate), K)


@pytest.mark.parametrize("depth_mm", [1.0, 4.5, 9.0])
def test_a_groove_that_faces_the_lens_is_as_deep_as_its_label(depth_mm):
    truth = facing(
        [
            dict(way=AROUND, center_mm=c, half_mm=4.0, depth_mm=depth_mm, repeats=1)
            for c in (-30.0, 0.0, 28.0)
        ]
    )
    bare = facing([])
    for id_, labelled, width in zip(
        truth["groove_id"], truth["groove_depth_mm"], truth["groove_width_mm"]
    ):
        row = truth["groove"][8] == id_
        assert labelled == depth_mm
        assert (truth["z"] - bare["z"])[8][row].max() == pytest.approx(labelled, abs=0.05)
        assert row.sum() * 0.25 == pytest.approx(width, rel=0.15)
    assert len(truth["groove_id"]) == 3
    assert np.array_equal(truth["z"][truth["groove"] == 0], bare["z"][truth["groove"] == 0])


@pytest.mark.parametrize("pattern", sorted(set(PATTERNS), key=lambda p: p.__name__))
def test_the_distance_of_every_pattern_never_oversteps(pattern):
    """No point is nearer to the surface than the distance says: its slope is at most 1."""
    rng = np.random.default_rng(5)
    tire = draw_tire(rng, 290.0, 90.0)
    rows = groove_rows(tire, pattern(rng, tread_half_mm(tire), 2 * np.pi * 290.0), 1)
    tire["first"], tire["last"] = 0, len(rows)
    angle = rng.uniform(-np.pi, np.pi, 20000)
    r = rng.uniform(275, 297, 20000)
    y = rng.uniform(-90, 90, 20000)
    a = np.stack([r * np.cos(angle), r * np.sin(angle), y], axis=1)
    b = a + rng.normal(0, 0.5, a.shape)
    fa, fb = solid(tire, rows, a), solid(tire, rows, b)
    assert (np.abs(fa - fb) <= np.linalg.norm(a - b, axis=1) + 1e-9).all()
    row = np.array([tire])[0]
    f = np.array([signed_distance(row, rows, *p) for p in a])
    near = np.abs(f) < 0.4
    assert near.sum() > 300
    assert np.allclose(f[near], fa[near], atol=1e-9)
    assert (f <= fa + 1e-9).all()
    assert ((f < 0) == (fa < 0)).all()
    assert (rows["depth_mm"] >= 1.0).all()
    assert (rows["depth_mm"] <= 9.0).all()
    assert (rows["half_mm"] <= MAX_HALF_MM).all()


def test_tires_rest_on_something_and_not_inside_each_other():
    for pose in range(6):
        shapes, _, turns, places = draw_pile(SETTINGS, 0, pose)[0]
        points = np.stack([surface_points(t) for t in shapes])
        for i in range(len(shapes)):
            lowest = (points[i] @ turns[i].T + places[i])[:, 2].min()
            gaps = []
            for j in range(len(shapes)):
                if j != i:
                    there = (points[i] @ turns[i].T + places[i] - places[j]) @ turns[j]
                    gaps.append(solid(shapes[j], np.zeros(0, GROOVE), there).min())
                    here = (points[j] @ turns[j].T + places[j] - places[i]) @ turns[i]
                    gaps.append(solid(shapes[i], np.zeros(0, GROOVE), here).min())
            assert min(gaps) > -1.5
            assert lowest > -8.0
            assert min(*gaps, lowest) < 8.0
        assert 4 <= len(shapes) <= 20


def test_points_are_rays_times_depth_and_the_truth_has_no_holes(captures):
    for capture in captures:
        z = capture.xyz[..., 2]
        pixels = np.argwhere(np.isfinite(z))
        expected = rays(capture.truth["K"], pixels) * z[np.isfinite(z)][:, None]
        assert np.allclose(capture.xyz[np.isfinite(z)], expected, rtol=1e-6, atol=1e-4)
        assert np.isnan(capture.xyz[~np.isfinite(z)]).all()
        assert np.isfinite(capture.truth["z"]).all()
        assert (capture.rgb.dtype, capture.xyz.dtype) == (np.uint8, np.float32)


def test_any_set_of_four_holds_the_gripper_and_the_far_room():
    for seed in range(3):
        settings = tires.Settings(pairs=4, size=Size(60, 98), seed=seed)
        z = np.stack([tires.render(settings, i).xyz[..., 2] for i in range(4)])  # (4, 60, 98)
        assert 251 < np.nanmin(z) < 256
        assert 3850 < np.nanmax(z) < 3915
        assert 0.5 < np.isfinite(z).mean() < 0.85


def test_without_faults_depth_is_the_truth_and_with_them_it_has_noise_holes_and_flying_pixels(
    captures,
):
    exact = tires.render(tires.Settings(pairs=8, size=SETTINGS.size, seed=3, faults=False), 2)
    assert np.array_equal(exact.xyz[..., 2], exact.truth["z"])
    assert np.array_equal(exact.rgb, captures[2].rgb)
    off = np.concatenate([(c.xyz[..., 2] - c.truth["z"]).ravel() for c in captures])
    off = off[np.isfinite(off)]
    assert 0.02 < np.median(np.abs(off)) < 0.6
    assert 0.001 < (np.abs(off) > 10).mean() < 0.2  # edges are many at this size


def test_noise_grows_with_depth():
    settings = tires.Settings(pairs=4, size=Size(150, 243), seed=3)
    far_room = next(i for i, planned in enumerate(plan_captures(settings)) if planned.pose == 1)
    capture = tires.render(settings, far_room)
    z = capture.truth["z"]
    off = np.abs(capture.xyz[..., 2] - z)
    near = (z < 1500) & (off < 10)
    far = (z > 3000) & (off < 10)
    assert np.median(off[far]) > 2 * np.median(off[near])


def test_each_groove_of_the_map_has_one_row_in_the_table(captures):
    kinds = set()
    for truth in (c.truth for c in captures):
        assert np.array_equal(np.unique(truth["groove"][truth["groove"] > 0]), truth["groove_id"])
        for id_, tire in zip(truth["groove_id"], truth["groove_tire"]):
            assert (truth["tire"][truth["groove"] == id_] == tire).all()
        kinds |= set(truth["groove_kind"])
    assert kinds == set(GROOVE_KINDS)


def test_poses_repeat_within_a_session_and_sessions_lie_apart():
    captures = plan_captures(tires.Settings(pairs=58))
    times = [datetime.strptime(p.stem[:17], "%y-%m-%d-%H-%M-%S") for p in captures]
    gaps = np.array([(b - a).total_seconds() for a, b in pairwise(times)])
    cuts = [i + 1 for i, (a, b) in enumerate(pairwise(captures)) if a.session != b.session]
    assert [i + 1 for i in np.flatnonzero(gaps > 600)] == cuts
    assert gaps[gaps <= 600].max() <= 120
    assert [sum(p.session == s for p in captures) for s in range(4)] == [30, 12, 9, 7]
    assert len({p.pose for p in captures if p.session == 0}) in (4, 5)
    assert (times[29] - times[0]).total_seconds() <= 17 * 60
    assert captures[0].stem == "21-12-03-18-50-31_Zivid_acquisition"


def test_captures_of_one_pose_are_alike_but_not_the_same():
    settings = tires.Settings(pairs=20, size=Size(60, 98))
    same_pose = [i for i, p in enumerate(plan_captures(settings)) if p.pose == 0][:2]
    a, b = (tires.render(settings, i).rgb.astype(float) for i in same_pose)
    assert not np.array_equal(a, b)
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.9


@pytest.mark.parametrize("pairs", [1, 2, 3, 4, 5, 17, 58, 200])
def test_any_number_of_pairs_is_dealt_out_without_repeating_a_stem(pairs):
    stems = [capture.stem for capture in plan_captures(tires.Settings(pairs=pairs))]
    assert len(stems) == pairs == len(set(stems))
    assert stems == sorted(stems)


def test_a_capture_does_not_depend_on_what_was_rendered_before(captures):
    draw_pile.cache_clear()
    again = tires.render(SETTINGS, 5)
    assert np.array_equal(again.rgb, captures[5].rgb)
    assert np.array_equal(again.xyz, captures[5].xyz, equal_nan=True)
