"""Pictures of depth: what is drawn where, with and without a truth, and that a picture file comes
of it."""

import gc
import warnings

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from depthdist.evaluation.figures import NEAR_TO_FAR, SIGNED, figure, figure_pixels, save_figure

GREY = np.round(np.array(to_rgb("0.25")) * 255)


@pytest.fixture(autouse=True)
def no_warning():
    """Nothing here is worth a remark: no all-NaN slice, no division, no identical limits."""
    gc.collect()  # files that other tests left open are theirs to close
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def scene():
    """rgb (12, 16, 3), truth (24, 32) with a hole of NaN in its upper left and of 0 in its lower
    right quarter, and a prediction."""
    truth_mm = 1000 + np.arange(24 * 32, dtype=np.float32).reshape(24, 32)
    pred_mm = truth_mm + 20
    truth_mm[:12, :16], truth_mm[12:, 16:] = np.nan, 0
    return np.full((12, 16, 3), (200, 30, 30), np.uint8), pred_mm, truth_mm


def panels(fig):
    """The panels' titles, each with what it shows."""
    return {axes.get_title(): axes.images[0].get_array() for axes in fig.axes if axes.get_title()}


def drawn(fig, panel):
    """(h, w, 3) the pixels of one panel of the figure."""
    canvas = figure_pixels(fig)
    axes = next(a for a in fig.axes if a.get_title().startswith(panel))
    box = axes.images[0].get_window_extent()
    return canvas[
        canvas.shape[0] - int(box.y1) : canvas.shape[0] - int(box.y0), int(box.x0) : int(box.x1)
    ].astype(int)


def quarter(image, row, column):
    """The colour in the middle of one of the four quarters."""
    height, width = image.shape[:2]
    return image[(2 * row + 1) * height // 4, (2 * column + 1) * width // 4]


def test_with_a_truth_there_are_four_panels_and_the_error_is_prediction_minus_truth():
    rgb, pred_mm, truth_mm = scene()
    shown = panels(figure(rgb, pred_mm, truth_mm))
    assert [name.split(" (")[0] for name in shown] == [
        "RGB",
        "truth",
        "prediction",
        "prediction - truth",
    ]
    assert "mean size 20.0 mm" in list(shown)[3]
    error = np.ma.filled(list(shown.values())[3], np.nan)
    valid = np.nan_to_num(truth_mm) > 0
    assert (error[valid] == 20).all() and np.isnan(error[~valid]).all()


def test_holes_are_grey_in_truth_and_error_and_nowhere_else():
    fig = figure(*scene())
    for panel in ("truth", "prediction - truth"):
        image = drawn(fig, panel)
        for row, column, hole in ((0, 0, True), (0, 1, False), (1, 0, False), (1, 1, True)):
            distance = np.abs(quarter(image, row, column) - GREY).max()
            assert distance <= 2 if hole else distance > 30, (panel, row, column)
    image = drawn(fig, "prediction")
    assert all(np.abs(quarter(image, r, c) - GREY).max() > 30 for r in (0, 1) for c in (0, 1))


def test_the_rgb_is_drawn_as_it_is():
    assert np.abs(quarter(drawn(figure(*scene()), "RGB"), 0, 1) - (200, 30, 30)).max() <= 2


def test_near_is_red_far_is_blue_and_red_error_is_too_far():
    near, far = np.full((8, 8), 500.0), np.full((8, 8), 2000.0)
    truth_mm = np.concatenate([near, far], axis=1)
    fig = figure(np.zeros((8, 16, 3), np.uint8), truth_mm + np.repeat([100.0, -100.0], 8), truth_mm)
    left, right = quarter(drawn(fig, "truth"), 0, 0), quarter(drawn(fig, "truth"), 0, 1)
    assert left[0] > left[2] and right[2] > right[0]
    left, right = (
        quarter(drawn(fig, "prediction - truth"), 0, 0),
        quarter(drawn(fig, "prediction - truth"), 0, 1),
    )
    assert left[0] > left[2] and right[2] > right[0]


def test_truth_and_prediction_share_the_truths_colour_range():
    rgb, pred_mm, truth_mm = scene()
    limits = {
        a.get_title(): a.images[0].get_clim()
        for a in figure(rgb, pred_mm * 3, truth_mm).axes
        if a.images and a.get_title()
    }
    low, high = np.nanpercentile(np.where(truth_mm > 0, truth_mm, np.nan), [1, 99])
    assert limits["truth"] == limits["prediction"] == pytest.approx((low, high))


@pytest.mark.parametrize(
    "truth_mm",
    [None, np.full((24, 32), np.nan), np.zeros((24, 32))],
    ids=["none", "all NaN", "all 0"],
)
def test_without_a_truth_there_are_two_panels(truth_mm):
    rgb, pred_mm, _ = scene()
    fig = figure(rgb, pred_mm, truth_mm)
    assert list(panels(fig)) == ["RGB", "prediction"] and figure_pixels(fig).std() > 0


@pytest.mark.parametrize("with_truth", [True, False])
def test_a_constant_depth_can_be_drawn(with_truth):
    flat = np.full((24, 32), 1500.0, np.float32)
    fig = figure(np.zeros((24, 32, 3), np.uint8), flat, flat if with_truth else None)
    low, high = next(a for a in fig.axes if a.get_title() == "prediction").images[0].get_clim()
    assert low < high and figure_pixels(fig).shape[2] == 3


def test_one_measured_pixel_is_enough():
    truth_mm = np.zeros((24, 32), np.float32)
    truth_mm[3, 4] = 1200
    assert (
        "mean size 300.0 mm"
        in list(
            panels(figure(np.zeros((24, 32, 3), np.uint8), np.full((24, 32), 1500.0), truth_mm))
        )[3]
    )


def test_pixels_are_an_array_of_the_figures_size_that_nothing_else_holds():
    fig = figure(*scene(), title="a capture")
    image = figure_pixels(fig)
    assert image.dtype == np.uint8 and image.shape == (
        round(fig.get_figheight() * 100),
        round(fig.get_figwidth() * 100),
        3,
    )
    assert image.flags.owndata and fig.get_suptitle() == "a capture"
    again = image.copy()
    figure_pixels(fig)
    assert np.array_equal(image, again)


def test_a_saved_figure_opens_with_the_same_content(tmp_path):
    save_figure(figure(*scene()), tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as opened:
        assert opened.format == "PNG" and np.array_equal(
            np.asarray(opened.convert("RGB")), figure_pixels(figure(*scene()))
        )


def test_every_depth_has_its_colour_bar_in_mm():
    bars = [a for a in figure(*scene()).axes if not a.images and a.get_ylabel() == "mm"]
    assert len(bars) == 3
    assert len([a for a in figure(scene()[0], scene()[1]).axes if a.get_ylabel() == "mm"]) == 1


def test_both_colour_maps_draw_a_hole_the_same():
    assert np.allclose(NEAR_TO_FAR.get_bad(), SIGNED.get_bad()) and np.allclose(
        NEAR_TO_FAR.get_bad()[:3], GREY / 255, atol=0.01
    )
