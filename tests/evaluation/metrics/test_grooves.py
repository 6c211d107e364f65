"""Depth of grooves: drawn cylinders and built-in captures with known grooves, and what must not
change it."""

import math

import numpy as np
import pytest
from helpers.drawn_treads import DEPTHS, RAYS, SIZE, WHOLE, cylinder

from depthdist.evaluation.metrics.grooves import (
    GROOVE_METRICS,
    Groove,
    balanced_decision,
    fit_depths,
    groove_depths,
    groove_metrics,
    relief_depths,
    say_mean_depth,
    summarize_grooves,
    summarize_mean_depth,
)
from depthdist.geometry.camera import pixel_rays
from depthdist.synthetic.tires import render as tires


@pytest.mark.parametrize(("noise", "within"), [(0.0, 0.02), (0.1, 0.1)])
def test_drawn_grooves_have_their_depth(noise, within):
    z, labels = cylinder(noise=noise)
    found = groove_depths(labels, WHOLE, RAYS, z)
    assert [g.id for g in found] == [1, 2, 3] and all(g.width_px == 12 for g in found)
    assert [g.depths[0] for g in found] == pytest.approx(DEPTHS, abs=within)


def test_noise_in_the_truth_alone_makes_no_groove_deeper():
    """What is floor is not chosen by the pixels' own noise: a worn groove stays worn."""
    clean, labels = cylinder(depths=(1.0, 0.5, 1.6))
    found = groove_depths(
        labels, WHOLE, RAYS, clean + 0.3 * np.random.default_rng(1).normal(size=SIZE), clean
    )
    assert [g.depths[0] for g in found] == pytest.approx([1.0, 0.5, 1.6], abs=0.05)
    flat, _ = cylinder(depths=(0.0, 0.0, 0.0))
    for groove in groove_depths(
        labels, WHOLE, RAYS, flat + 0.2 * np.random.default_rng(1).normal(size=SIZE), flat
    ):
        assert abs(groove.depths[0]) < 0.1, "labelled ground without a groove has none"


def test_an_offset_of_50_mm_changes_nothing():
    z, labels = cylinder(noise=0.1)
    for groove in groove_depths(labels, WHOLE, RAYS, z, z + 50.0):
        assert groove.depths[1] == pytest.approx(groove.depths[0], abs=1e-9)


def test_grooves_that_were_removed_are_wrong_by_all_of_it():
    z, labels = cylinder()
    smooth, _ = cylinder(depths=(0.0, 0.0, 0.0))
    found = groove_depths(labels, WHOLE, RAYS, z, smooth)
    values = groove_metrics(found)
    assert [g.depths[1] for g in found] == pytest.approx([0, 0, 0], abs=0.02)
    assert values["groove_mae_mm"] == pytest.approx(np.mean(DEPTHS), abs=0.03) and values[
        "groove_bias_mm"
    ] == pytest.approx(-np.mean(DEPTHS), abs=0.03)
    assert values["groove_found"] == 0 and values["groove_max_mm"] == pytest.approx(8.0, abs=0.03)


def test_a_shallower_prediction_is_measured_as_such():
    z, labels = cylinder()
    worn, _ = cylinder(depths=(4.2, 1.7, 4.1))
    values = groove_metrics(groove_depths(labels, WHOLE, RAYS, z, worn))
    assert values["groove_mae_mm"] == pytest.approx((3.8 + 0.2 + 0.1) / 3, abs=0.03) and values[
        "groove_bias_mm"
    ] == pytest.approx((-3.8 + 0.2 + 0.1) / 3, abs=0.03)
    assert values["groove_found"] == 1 and values["groove_balanced_decision"] == 0.5, (
        "1.5 is worn and taken for 1.7, both good ones are good: (0 + 1) / 2"
    )


def test_holes_and_what_stands_in_them_do_not_matter():
    z, labels = cylinder()
    mask = np.random.default_rng(1).random(SIZE) > 0.4
    clean = groove_depths(labels, mask, RAYS, np.where(mask, z, 1.0), np.where(mask, z + 1, 1.0))
    assert [g.depths[0] for g in clean] == pytest.approx(DEPTHS, abs=0.02)
    for junk in (math.nan, -1e9):
        with np.errstate(all="ignore"):
            assert (
                groove_depths(
                    labels, mask, RAYS, np.where(mask, z, junk), np.where(mask, z + 1, junk)
                )
                == clean
            )


@pytest.mark.parametrize("case", ["narrow", "unmeasured", "one-sided", "no rib"])
def test_what_cannot_be_measured_is_left_out(case):
    z, labels = cylinder()
    mask, only = WHOLE.copy(), np.where(labels == 1, 1, 0)
    if case == "narrow":
        labels, only = labels * 0, np.where((labels == 1) & (np.arange(SIZE[1]) < 62), 1, 0)
        z, _ = cylinder(depths=(0.0, 0.0, 0.0))
        z[only > 0] += 8.0
    if case == "unmeasured":
        mask = labels != 1
    if case == "one-sided":
        mask[:, 72:] = False
    if case == "no rib":
        mask = labels == 1
    assert groove_depths(only, mask, RAYS, z) == []


def test_a_neighbours_clutter_beside_a_groove_is_not_taken_for_rib():
    z, labels = cylinder()
    z[:, 76:82] -= 40.0  # a slat lies across the ribs, close by
    assert groove_depths(labels, WHOLE, RAYS, z)[0].depths[0] == pytest.approx(8.0, abs=0.05)


def test_built_in_captures_give_the_depth_of_their_grooves():
    """Noise-free truth at the camera's own size: 0.1 mm, but for a few grooves on the tires'
    shoulders; faults and all: 0.2."""
    capture = tires.render(tires.Settings(pairs=58, size=(1200, 1944)), 52)
    truth, nominal = (
        capture.truth,
        dict(zip(capture.truth["groove_id"].tolist(), capture.truth["groove_depth_mm"].tolist())),
    )
    k = truth["K"]
    rays = pixel_rays(
        {
            "size": [1200, 1944],
            "intrinsics": {
                "fx": k[0, 0],
                "fy": k[1, 1],
                "cx": k[0, 2],
                "cy": k[1, 2],
                "max_residual_px": 0,
                "pixel_centre": 0.5,
            },
        },
        (1200, 1944),
    )
    for z, share, within in ((truth["z"], 0.9, 0.1), (capture.xyz[..., 2], 0.9, 0.2)):
        mask = np.isfinite(z)
        found = groove_depths(truth["groove"], mask, rays, np.where(mask, z, 1.0).astype(float))
        off = np.array([g.depths[0] - nominal[g.id] for g in found])
        assert (
            len(found) >= 30
            and abs(np.median(off)) < 0.03
            and (np.abs(off) < within).mean() >= share
        ), np.sort(np.abs(off))[-5:]


def test_the_summary_counts_every_groove_once():
    grooves = [
        Groove(i, 5.0, 1, depths)
        for i, depths in enumerate([(1.0, 1.2), (1.0, 3.0), (5.0, 4.0), (5.0, 1.0), (5.0, 5.5)])
    ]
    found = summarize_grooves(grooves)
    assert (
        found["worn_as_worn"],
        found["worn_as_good"],
        found["good_as_good"],
        found["good_as_worn"],
    ) == (1, 1, 2, 1) and found["grooves"] == 5
    assert found["mae_mm"] == pytest.approx((0.2 + 2 + 1 + 4 + 0.5) / 5) and found[
        "bias_mm"
    ] == pytest.approx((0.2 + 2 - 1 - 4 + 0.5) / 5)
    assert (
        found["limit95_mm"] == pytest.approx(np.quantile([0.2, 2, 1, 4, 0.5], 0.95))
        and found["found"] == 0.8
    )
    assert found["balanced_decision"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    nothing = summarize_grooves([])
    assert nothing["grooves"] == 0 and math.isnan(nothing["mae_mm"])
    assert all(math.isnan(value) for value in groove_metrics([]).values()) and set(
        groove_metrics([])
    ) == set(GROOVE_METRICS)


def grooves_of(*depths):
    return [Groove(i, 5.0, 1, pair) for i, pair in enumerate(depths, start=1)]


def test_slope_and_correlation_are_those_of_a_worked_example_and_of_numpy():
    # deviations of truth -2, 0, 2 and of the prediction -1, 0, 1: 4 / 8, on one line
    found = summarize_grooves(grooves_of((2.0, 1.0), (4.0, 2.0), (6.0, 3.0)))
    assert (found["slope"], found["correlation"]) == (0.5, 1.0)
    g, p = np.random.default_rng(0).normal(5, 2, (2, 200))
    assert fit_depths(g, p + 0.3 * g) == pytest.approx(
        (np.polyfit(g, p + 0.3 * g, 1)[0], np.corrcoef(g, p + 0.3 * g)[0, 1])
    )
    assert fit_depths(np.append(g, 5.0), np.append(p, math.nan)) == fit_depths(g, p)


@pytest.mark.parametrize(
    ("depths", "slope"),
    [
        ([], math.nan),
        ([(3.0, 2.0)], math.nan),
        ([(3.0, 2.0), (3.0, 1.0)], math.nan),
        ([(3.0, 2.0), (5.0, 2.0)], 0.0),
    ],
)
def test_without_a_slope_or_a_correlation_they_are_nan_and_nothing_warns(depths, slope):
    with np.errstate(all="raise"):
        found = summarize_grooves(grooves_of(*depths))
    assert found["slope"] == pytest.approx(slope, nan_ok=True)
    assert math.isnan(found["correlation"])


def test_always_saying_good_or_worn_is_chance_however_many_are_worn():
    truth = np.array([1.0, 1.2, *[6.0] * 18])
    assert balanced_decision(truth, np.full(20, 5.0), 1.6) == 0.5
    assert balanced_decision(truth, np.zeros(20), 1.6) == 0.5
    assert balanced_decision(truth, truth, 1.6) == 1.0
    assert math.isnan(balanced_decision(truth[2:], truth[2:], 1.6)), "nothing to tell apart"


def test_who_says_the_mean_has_not_seen_the_image():
    by_image = {"a": grooves_of((2.0, 0.0), (4.0, 0.0)), "b": grooves_of((9.0, 0.0)), "c": []}
    found = say_mean_depth(by_image)
    assert [g.depths for g in found] == [(2.0, 9.0), (4.0, 9.0), (9.0, 3.0)]
    summary = summarize_mean_depth(by_image)
    assert summary["mae_mm"] == pytest.approx((7 + 5 + 6) / 3)
    assert math.isnan(summary["slope"]), "it sees no depth"
    assert say_mean_depth({"a": by_image["a"]}) == say_mean_depth({}) == []


def test_a_painted_tread_has_no_relief_and_what_is_drawn_there_is_measured():
    flat, labels = cylinder(depths=(0.0, 0.0, 0.0))
    noisy = flat + 0.3 * np.random.default_rng(2).normal(size=SIZE)
    drawn, _ = cylinder(depths=(2.0, -1.0, 0.5))  # the second stands out
    found = relief_depths(labels, WHOLE, RAYS, flat, noisy, drawn + 20.0)
    assert [g.id for g in found] == [1, 2, 3]
    assert [g.depths[0] for g in found] == pytest.approx([0, 0, 0], abs=1e-3)
    assert [g.depths[1] for g in found] == pytest.approx([0, 0, 0], abs=0.05)
    assert [g.depths[2] for g in found] == pytest.approx([2.0, -1.0, 0.5], abs=0.02)


def test_a_true_groove_measured_as_relief_has_its_depth():
    z, labels = cylinder()
    assert [g.depths[0] for g in relief_depths(labels, WHOLE, RAYS, z)] == pytest.approx(
        DEPTHS, abs=0.02
    )
