"""A groove looks as deep as it is: by what it sees of its surroundings, not by its label."""

import numpy as np
import pytest
from helpers.treads import K, facing_crate, hits_of

from depthdist.core.settings import Size
from depthdist.synthetic.raytracing.openness import floor_openness, wall_openness
from depthdist.synthetic.raytracing.tire_shape import ACROSS, AROUND, MAX_DEPTH_MM, draw_tire
from depthdist.synthetic.raytracing.tread_patterns import cut_worn_pattern
from depthdist.synthetic.tires import render as tires
from depthdist.synthetic.tires.crate import draw_session
from depthdist.synthetic.tires.render import ground_truth
from depthdist.synthetic.tires.scene import TireAppearance
from depthdist.synthetic.tires.shading import shade_crate

SETTINGS = tires.Settings(pairs=4, size=Size(300, 486), seed=3)
LINES = (-30.0, 0.0, 28.0)


def around(depth_mm):
    return [dict(way=AROUND, center_mm=c, half_mm=4.0, depth_mm=depth_mm, repeats=1) for c in LINES]


def clean_rubber(**changes):
    """Return the appearance of one clean tire."""
    values = dict.fromkeys(TireAppearance._fields, 0.0)
    values |= dict(dark=0.015, gloss=0.4, paint=0.6, paint_gloss=1.0, label=-1) | changes
    return TireAppearance(**{name: np.array([value]) for name, value in values.items()})


def color_of(crate, hits, **changes):
    """Return the brightness (H, W) of a tread, without the camera's noise."""
    color, _ = shade_crate(crate, hits, clean_rubber(**changes), draw_session(SETTINGS, 0), K)
    return color.mean(axis=2)


@pytest.fixture(scope="module")
def scaled():
    """The same capture with whole, half and no depths."""
    return {
        scale: tires.render(tires.Settings(4, SETTINGS.size, 3, groove_depth=scale), 3)
        for scale in (1.0, 0.5, 0.0)
    }


def seen_between(low, high, normal):
    """Return the view factor of a sky seen between two angles, by a sum over directions."""
    angle = np.linspace(low, high, 200001)
    angle = (angle[1:] + angle[:-1]) / 2
    return np.cos(angle - normal).sum() * (high - low) / 200000 / 2


@pytest.mark.parametrize("depth_mm", [0.3, 2.0, 8.0])
@pytest.mark.parametrize("width_mm", [2.0, 9.0])
def test_openness_is_the_sum_over_all_directions_out_of_a_trench(depth_mm, width_mm):
    for left in (0.0, 0.2 * width_mm, 0.5 * width_mm):
        right = width_mm - left
        seen = seen_between(-np.arctan2(left, depth_mm), np.arctan2(right, depth_mm), 0.0)
        assert floor_openness(depth_mm, left, right) == pytest.approx(seen, abs=1e-6)
    up = np.pi / 2
    seen = seen_between(np.arctan2(depth_mm, width_mm), up, 0.0)  # from the wall's own normal
    assert wall_openness(depth_mm, width_mm) == pytest.approx(seen, abs=1e-6)


def test_a_rib_is_open_and_a_floor_as_open_as_its_depth_and_place_say():
    crate = facing_crate(around(6.0))
    hits = hits_of(crate)
    row = hits.openness[8]
    assert (row[hits.groove[8] == 0] == 1.0).mean() > 0.99
    axial = (np.arange(400) + 0.5 - K[0, 2]) / K[0, 0] * hits.z[8]
    for line in LINES:
        floor = np.abs(axial - line) < 3.5
        aside = axial[floor] - line
        expected = [floor_openness(6.0, 4.0 + a, 4.0 - a) for a in aside]
        assert np.allclose(row[floor], expected, atol=0.02)


def test_a_groove_gets_darker_the_deeper_it_is():
    floors = []
    for depth_mm in (0.0, 1.0, 3.0, 6.0, 9.0):
        crate = facing_crate(around(depth_mm))
        hits = hits_of(crate)
        color = color_of(crate, hits)[8]
        axial = (np.arange(400) + 0.5 - K[0, 2]) / K[0, 0] * hits.z[8]
        floors.append(np.median(color[np.abs(axial) < 2.0]) / np.median(color[np.abs(axial) > 6.0]))
    assert np.diff(floors).max() < -0.005
    assert floors[-1] < 0.83 * floors[0]


def test_a_groove_without_depth_looks_like_its_rib():
    bare, flat = facing_crate([]), facing_crate(around(0.0))
    hits = hits_of(flat)
    assert not hits.groove.any()
    assert np.allclose(hits.openness, 1.0, atol=1e-3)
    dirty = dict(dust=0.5, settled=1.0, dusty=1.0, wet=1.0)
    color = color_of(flat, hits, **dirty)
    assert np.allclose(color, color_of(bare, hits_of(bare), **dirty), rtol=0.02)


def test_a_painted_groove_is_seen_and_labeled_and_has_no_relief():
    crate, bare = facing_crate(around(6.0), painted=True), facing_crate([])
    hits = hits_of(crate)
    truth = ground_truth(crate, hits, K)
    assert np.array_equal(truth["z"], ground_truth(bare, hits_of(bare), K)["z"])
    assert not truth["groove"].any()
    assert list(truth["painted_id"]) == [1, 2, 3]
    assert list(truth["painted_tire"]) == [1, 1, 1]
    assert np.allclose(truth["painted_width_mm"], 8.0)
    assert (truth["painted"][8] > 0).sum() * 0.25 == pytest.approx(24.0, rel=0.1)
    painted = truth["painted"] > 0
    for tint in (0.5, 1.6):
        share = color_of(crate, hits, paint=tint) / color_of(bare, hits_of(bare))
        assert np.allclose(share[~painted], 1.0, rtol=1e-6)
        assert abs(np.median(share[painted]) - 1.0) > 0.15


def test_the_same_scene_with_half_the_depths_is_half_as_deep_and_brighter(scaled):
    full, half = scaled[1.0], scaled[0.5]
    ids, a, b = np.intersect1d(
        full.truth["groove_id"], half.truth["groove_id"], return_indices=True
    )
    assert len(ids) > 100
    depth, half_depth = full.truth["groove_depth_mm"][a], half.truth["groove_depth_mm"][b]
    assert np.allclose(half_depth, depth / 2)
    assert np.array_equal(full.truth["groove_width_mm"][a], half.truth["groove_width_mm"][b])
    both = (full.truth["groove"] == half.truth["groove"]) & (full.truth["groove"] > 0)
    lower = (full.truth["z"] - half.truth["z"])[both]
    assert both.sum() > 500
    assert lower.min() >= -0.01
    assert 0.3 < np.median(lower) < 6.0
    assert half.rgb[both].mean() > full.rgb[both].mean() + 1.0


def test_without_depths_nothing_is_left_but_the_paint(scaled):
    full, none = scaled[1.0], scaled[0.0]
    assert not none.truth["groove"].any()
    assert len(none.truth["groove_id"]) == 0
    assert full.truth["painted"].any()
    assert np.mean(full.truth["painted"] != none.truth["painted"]) < 1e-3
    away = (full.truth["tire"] == 0) & (none.truth["tire"] == 0)
    assert np.array_equal(full.truth["z"][away], none.truth["z"][away])
    assert (full.truth["z"] - none.truth["z"]).min() > -0.01


def test_depth_is_drawn_independently_of_pattern_and_width():
    rng = np.random.default_rng(0)
    painted, depths, widths, kinds, shares = [], [], [], [], []
    for _ in range(1500):
        tire = draw_tire(rng, 290.0, 90.0)
        table = []
        cut_worn_pattern(rng, tire, table, 1, 1.0)
        painted.append(tire["last"] < tire["painted_last"])
        main = next(g for g in table if g["way"] == AROUND)
        depths.append(main["depth_mm"])
        widths.append(main["half_mm"])
        kinds.append(len(table))
        shares += [g["depth_mm"] / main["depth_mm"] for g in table if g["way"] == ACROSS]
    depths = np.array(depths)
    assert abs(np.corrcoef(depths, widths)[0, 1]) < 0.08
    means = [depths[np.equal(kinds, kind)].mean() for kind in np.unique(kinds)]
    assert np.ptp(means) < 0.6
    assert 0.5 <= min(shares) < 0.51
    assert 0.99 < max(shares) <= 1.0
    assert depths.min() < 1.2
    assert 0.02 < (depths < 1.6).mean() < 0.15
    assert 8.0 < depths.max() <= MAX_DEPTH_MM
    assert np.mean(painted) == pytest.approx(1 / 8, abs=0.03)
