"""The renderer's depth against separately written arithmetic, and what a set of captures promises."""

from datetime import datetime

import numpy as np
import pytest

from depthdist.synthetic.raytracing import kernel
from depthdist.synthetic.raytracing import tire_shape as tread
from depthdist.synthetic.tires import pile, raycast, scene
from depthdist.synthetic.tires import render as tires

SETTINGS = tires.Settings(pairs=8, size=(60, 98), seed=3)
EXACT_MM = 0.01


@pytest.fixture(scope="module")
def captures():
    return [tires.render(SETTINGS, i) for i in range(SETTINGS.pairs)]


@pytest.fixture(scope="module")
def worlds():
    return [scene.build(SETTINGS, pair)[0] for pair in tires.plan(SETTINGS)]


def smoothed(a, b, k):
    return np.maximum(a, b) + np.clip(k - np.abs(a - b), 0, None) ** 2 / (4 * k)


def solid(tire, grooves, p):
    """Signed distance of points p (..., 3) to a tire: the module's description written again, in
    NumPy, float64."""
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
        if g["way"] == tread.AROUND:
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
    """Directions (N, 3) through pixels (N, 2) of (v, u)."""
    v, u = pixels.T
    return np.stack(
        [(u + 0.5 - k[0, 2]) / k[0, 0], (v + 0.5 - k[1, 2]) / k[1, 1], np.ones(len(u))], axis=1
    )


def local(to, p):
    return p @ to[:, :3].T + to[:, 3]


def test_depth_of_tires_is_where_a_dense_search_finds_the_surface(worlds):
    k, rng, checked = tires.intrinsics(SETTINGS.size), np.random.default_rng(0), 0
    for world in worlds[:4]:
        hits = raycast.cast(world, k, *SETTINGS.size)
        pixels = rng.permutation(np.argwhere(hits.kind == raycast.TIRE_HIT))[:60]
        for (v, u), ray in zip(pixels, rays(k, pixels)):
            z = hits.z[v, u]
            close, before = z + np.arange(-0.1, 0.1, 0.001), np.arange(100.0, z - 0.1, 0.4)
            own = hits.item[v, u]
            f = solid(
                world.tires[own], world.grooves, local(world.to_tire[own], close[:, None] * ray)
            )
            assert abs(close[np.argmax(f < 0)] - z) < EXACT_MM and f.min() < 0 < f[0]
            for tire, to in zip(world.tires, world.to_tire):
                assert (
                    solid(tire, world.grooves, local(to, before[:, None] * ray)).min() > -1e-3
                )  # nothing stands before
            checked += 1
    assert checked == 240


def test_truth_points_lie_on_the_surface_they_name(captures, worlds):
    for capture, world in zip(captures, worlds):
        pixels = np.argwhere(capture.truth["tire"] > 0)
        points = rays(capture.truth["K"], pixels) * capture.truth["z"][tuple(pixels.T)][
            :, None
        ].astype(np.float64)
        own = capture.truth["tire"][tuple(pixels.T)] - 1
        off = [
            np.abs(
                solid(world.tires[i], world.grooves, local(world.to_tire[i], points[own == i]))
            ).max()
            for i in np.unique(own)
        ]
        assert max(off) < EXACT_MM


def test_floor_walls_and_gripper_agree_with_their_equations(worlds):
    k, seen = tires.intrinsics(SETTINGS.size), set()
    for world in worlds:
        hits = raycast.cast(world, k, *SETTINGS.size)
        for kind in (raycast.FLOOR, raycast.WALL, raycast.WOOD, raycast.CHROME):
            pixels = np.argwhere(hits.kind == kind)
            seen |= {kind} if len(pixels) else set()
            points, item = (
                rays(k, pixels) * hits.z[tuple(pixels.T)][:, None],
                hits.item[tuple(pixels.T)],
            )
            if kind == raycast.CHROME:
                c = world.cylinders[item]
                along = np.einsum("ni,ni->n", points - c[:, :3], c[:, 3:6])
                aside = np.linalg.norm(points - c[:, :3] - along[:, None] * c[:, 3:6], axis=1)
                off = np.maximum(aside - c[:, 6], np.abs(along) - c[:, 7])
            else:
                box, p = world.boxes[item], local(world.to_crate, points)
                off = np.maximum(box[:, :3] - p, p - box[:, 3:]).max(axis=1)
            assert np.abs(off).max(initial=0.0) < 1e-6
    assert len(seen) == 4


def facing(pattern):
    """The truth of one tire whose tread faces the lens, its surface 1000 mm away, 0.25 mm a pixel.

    And its grooves.
    """
    tire = tread.tire_shape(np.random.default_rng(1), 300.0, 95.0)
    grooves = tread.pattern_rows(tire, pattern, 1)
    tire["first"], tire["last"] = 0, len(grooves)
    to = np.array(
        [[[0, 0, -1, 1300.0], [0, 1, 0, 0], [1, 0, 0, 0]]], float
    )  # axis along X, angle 0 towards the lens
    none = np.zeros((0, 6))
    world = raycast.Scene(
        np.array([tire]),
        to,
        grooves,
        none,
        np.zeros(0, np.uint8),
        np.eye(3, 4),
        np.zeros((0, 8)),
        np.zeros((0, 4)),
        np.array([130.0, 0, 0]),
    )
    k = np.array([[4000.0, 0, 200.0], [0, 4000.0, 8.0], [0, 0, 1]])
    return tires.truth_of(world, raycast.cast(world, k, 16, 400), k), world


@pytest.mark.parametrize("depth_mm", [1.0, 4.5, 9.0])
def test_a_groove_that_faces_the_lens_is_as_deep_as_its_label(depth_mm):
    truth, world = facing(
        [
            dict(way=tread.AROUND, center_mm=c, half_mm=4.0, depth_mm=depth_mm, repeats=1)
            for c in (-30.0, 0.0, 28.0)
        ]
    )
    bare, _ = facing([])
    for id_, labelled, width in zip(
        truth["groove_id"], truth["groove_depth_mm"], truth["groove_width_mm"]
    ):
        row = truth["groove"][8] == id_
        assert (truth["z"] - bare["z"])[8][row].max() == pytest.approx(
            labelled, abs=0.05
        ) and labelled == depth_mm
        assert row.sum() * 0.25 == pytest.approx(width, rel=0.15)
    assert len(truth["groove_id"]) == 3
    assert np.array_equal(truth["z"][truth["groove"] == 0], bare["z"][truth["groove"] == 0])


@pytest.mark.parametrize("pattern", sorted(set(tread.PATTERNS), key=lambda p: p.__name__))
def test_the_distance_of_every_pattern_never_oversteps(pattern):
    """No point is nearer to the surface than the distance says: its slope is at most 1."""
    rng = np.random.default_rng(5)
    tire = tread.tire_shape(rng, 290.0, 90.0)
    rows = tread.pattern_rows(tire, pattern(rng, tread.tread_half_mm(tire), 2 * np.pi * 290.0), 1)
    tire["first"], tire["last"] = 0, len(rows)
    angle, r, y = (
        rng.uniform(-np.pi, np.pi, 20000),
        rng.uniform(275, 297, 20000),
        rng.uniform(-90, 90, 20000),
    )
    a = np.stack([r * np.cos(angle), r * np.sin(angle), y], axis=1)
    b = a + rng.normal(0, 0.5, a.shape)
    fa, fb = solid(tire, rows, a), solid(tire, rows, b)
    assert (np.abs(fa - fb) <= np.linalg.norm(a - b, axis=1) + 1e-9).all()
    row = np.array([tire])[0]
    f = np.array([tread.distance(row, rows, *p) for p in a])
    near = np.abs(f) < 0.4
    assert near.sum() > 300 and np.allclose(f[near], fa[near], atol=1e-9)
    assert (f <= fa + 1e-9).all() and ((f < 0) == (fa < 0)).all()
    assert (
        (rows["depth_mm"] >= 1.0).all()
        and (rows["depth_mm"] <= 9.0).all()
        and (rows["half_mm"] <= tread.MAX_HALF_MM).all()
    )


def test_tires_rest_on_something_and_not_inside_each_other():
    for pose in range(6):
        shapes, _, turns, places, _ = scene.pile(SETTINGS, 0, pose)
        points = np.stack([pile.surface_points(t) for t in shapes])
        for i in range(len(shapes)):
            lowest = (points[i] @ turns[i].T + places[i])[:, 2].min()
            gaps = []
            for j in range(len(shapes)):
                if j != i:
                    there = (points[i] @ turns[i].T + places[i] - places[j]) @ turns[j]
                    gaps.append(solid(shapes[j], np.zeros(0, tread.GROOVE), there).min())
                    here = (points[j] @ turns[j].T + places[j] - places[i]) @ turns[i]
                    gaps.append(solid(shapes[i], np.zeros(0, tread.GROOVE), here).min())
            assert min(gaps) > -1.5 and lowest > -8.0
            assert min(*gaps, lowest) < 8.0
        assert 4 <= len(shapes) <= 20


def test_points_are_rays_times_depth_and_the_truth_has_no_holes(captures):
    for capture in captures:
        z = capture.xyz[..., 2]
        pixels = np.argwhere(np.isfinite(z))
        expected = rays(capture.truth["K"], pixels) * z[np.isfinite(z)][:, None]
        assert np.allclose(capture.xyz[np.isfinite(z)], expected, rtol=1e-6, atol=1e-4)
        assert np.isnan(capture.xyz[~np.isfinite(z)]).all()
        assert (
            np.isfinite(capture.truth["z"]).all()
            and capture.rgb.dtype == np.uint8
            and capture.xyz.dtype == np.float32
        )


def test_any_set_of_four_holds_the_gripper_and_the_far_room():
    for seed in range(3):
        settings = tires.Settings(pairs=4, size=(60, 98), seed=seed)
        z = np.stack([tires.render(settings, i).xyz[..., 2] for i in range(4)])  # (4, 60, 98)
        assert 251 < np.nanmin(z) < 256 and 3850 < np.nanmax(z) < 3915
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
    settings = tires.Settings(pairs=4, size=(150, 243), seed=3)
    captured = tires.render(
        settings, next(i for i, pair in enumerate(tires.plan(settings)) if pair.pose == 1)
    )
    z, off = captured.truth["z"], np.abs(captured.xyz[..., 2] - captured.truth["z"])
    near, far = (z < 1500) & (off < 10), (z > 3000) & (off < 10)
    assert np.median(off[far]) > 2 * np.median(off[near])


def test_each_groove_of_the_map_has_one_row_in_the_table(captures):
    kinds = set()
    for truth in (c.truth for c in captures):
        assert np.array_equal(np.unique(truth["groove"][truth["groove"] > 0]), truth["groove_id"])
        for id_, tire in zip(truth["groove_id"], truth["groove_tire"]):
            assert (truth["tire"][truth["groove"] == id_] == tire).all()
        kinds |= set(truth["groove_kind"])
    assert kinds == set(tread.KINDS)


def test_poses_come_back_as_near_twins_and_sessions_lie_apart():
    made = tires.plan(tires.Settings(pairs=58))
    times = [datetime.strptime(p.stem[:17], "%y-%m-%d-%H-%M-%S") for p in made]
    gaps = np.array([(b - a).total_seconds() for a, b in zip(times, times[1:])])
    cuts = [i + 1 for i, (a, b) in enumerate(zip(made, made[1:])) if a.session != b.session]
    assert [i + 1 for i in np.flatnonzero(gaps > 600)] == cuts and gaps[gaps <= 600].max() <= 120
    assert [sum(p.session == s for p in made) for s in range(4)] == [30, 12, 9, 7]
    assert (
        len({p.pose for p in made if p.session == 0}) in (4, 5)
        and (times[29] - times[0]).total_seconds() <= 17 * 60
    )
    assert made[0].stem == "21-12-03-18-50-31_Zivid_acquisition"


def test_captures_of_one_pose_are_alike_but_not_the_same():
    settings = tires.Settings(pairs=20, size=(60, 98))
    first, *others = [i for i, p in enumerate(tires.plan(settings)) if p.pose == 0][:2]
    a, b = (tires.render(settings, i).rgb.astype(float) for i in (first, *others))
    assert not np.array_equal(a, b) and np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.9


@pytest.mark.parametrize("pairs", [1, 2, 3, 4, 5, 17, 58, 200])
def test_any_number_of_pairs_is_dealt_out_without_repeating_a_stem(pairs):
    made = tires.plan(tires.Settings(pairs=pairs))
    assert len(made) == pairs == len({p.stem for p in made}) and [p.stem for p in made] == sorted(
        p.stem for p in made
    )


def test_a_capture_does_not_depend_on_what_was_rendered_before(captures):
    scene.pile.cache_clear()
    again = tires.render(SETTINGS, 5)
    assert np.array_equal(again.rgb, captures[5].rgb) and np.array_equal(
        again.xyz, captures[5].xyz, equal_nan=True
    )


def test_compiled_kernels_are_forgotten_when_any_source_changes(tmp_path):
    source, cache = tmp_path / "a.py", tmp_path / "__pycache__"
    source.write_text("x = 1")
    kernel.remove_stale_kernels(tmp_path)
    (cache / "f.nbi").touch()
    kernel.remove_stale_kernels(tmp_path)
    assert (cache / "f.nbi").exists()
    source.write_text("x = 2")
    kernel.remove_stale_kernels(tmp_path)
    assert not (cache / "f.nbi").exists()
