"""The images of a run's report: which are chosen, where they are found, and what is drawn."""

import math

import numpy as np
import pytest
from helpers.runs import make_shards
from matplotlib.colors import to_rgb

from depthdist.data.dataset import DataSettings, open_dataset
from depthdist.evaluation.figures import NEAR_TO_FAR, SIGNED
from depthdist.reports.drawings import INK, SERIES
from depthdist.reports.evaluated_run import EvaluatedRun
from depthdist.reports.image_figures import (
    Cut,
    PredictedImage,
    cut_figure,
    draw_edges,
    find_cut,
    panels,
    plot_cut,
)
from depthdist.reports.run_images import RankedImage, rank_images, sample_numbers

GREEN, ORANGE, BLUE = (60, 220, 110), (255, 140, 0), (70, 140, 255)
GREY = (60, 60, 60)  # 0.6 of an image that is 100 everywhere


def flat_image(shape=(30, 90), **changes):
    """An image of a plane at 1000 mm, predicted 10 mm too far by one run."""
    truth = np.full(shape, 1000.0, np.float32)
    fields = {
        "rgb": np.full((*shape, 3), 100, np.uint8),
        "truth": truth,
        "mask": np.ones(shape, bool),
        "groove_label": None,
        "predictions": [truth + 10],
    }
    return PredictedImage(**{**fields, **changes})


def drawn_photos(monkeypatch):
    """A list that gets (image, caption) of each image that is drawn."""
    found = []
    monkeypatch.setattr(
        "depthdist.reports.image_figures.jpeg_figure",
        lambda image, caption: found.append((image, caption)) or caption,
    )
    return found


# ------------------------------------------------------------------------- which images, and where


def test_the_best_the_median_and_the_worst_image_are_chosen():
    assert rank_images([5.0, 1.0, math.nan, 9.0, 7.0, 3.0]) == [
        RankedImage("best", 1),
        RankedImage("median", 0),
        RankedImage("worst", 3),
    ]


@pytest.mark.parametrize(
    ("errors", "chosen"),
    [
        ([2.0, 1.0], [("best", 1), ("worst", 0)]),
        ([math.nan, 1.0], [("best", 1)]),
        ([math.nan], []),
    ],
)
def test_few_images_are_each_shown_once(errors, chosen):
    assert rank_images(errors) == chosen


def evaluated(**images):
    """A run that was evaluated on these images."""
    content = {"split": "val", "rows": {"adapter, epoch 1": {}}}
    content["images"] = {"adapter, epoch 1": images}
    return EvaluatedRun(run=None, name="run", logged=[], evaluation=content)


def test_sample_numbers_of_the_evaluation_are_used_without_reading_the_split():
    run = evaluated(keys=["a", "b", "a"], samples=[4, 5, 7])
    numbers = sample_numbers(run, dataset=None, positions=[2, 0])  # None: a use would raise
    assert numbers == [7, 4], "of two samples with one name, the one that was asked for"


def test_samples_of_an_older_evaluation_are_found_by_their_names(tmp_path):
    dataset = open_dataset(DataSettings(data=(str(make_shards(tmp_path)),)))
    refs = [dataset.find("val", number)[1] for number in range(3)]
    run = evaluated(keys=[refs[2].stem, refs[0].stem, refs[1].key])
    assert sample_numbers(run, dataset, positions=[0, 1]) == [2, 0]
    assert sample_numbers(run, dataset, positions=[2]) == [1], "or by their keys in the shard"


# ------------------------------------------------------------------------------------------- panels


def test_a_run_alone_has_five_panels_without_its_name(monkeypatch):
    photos = drawn_photos(monkeypatch)
    captions = panels(["mine"], flat_image())
    assert captions == [caption for _, caption in photos]
    assert captions == [
        "RGB, as the network sees it",
        "truth, 1000 mm (red) .. 1000 mm (blue); grey: not measured",
        "prediction, same colours",
        "error, -10.0 mm (blue) .. +10.0 mm (red)",
        "edges: green in both, orange in truth only, blue in the prediction only",
    ]


def test_of_several_runs_each_panel_has_its_runs_name(monkeypatch):
    drawn_photos(monkeypatch)
    truth = flat_image().truth
    captions = panels(["mine", "other"], flat_image(predictions=[truth + 10, truth - 20]))
    words = [caption.split(",")[0] for caption in captions[2:]]
    assert words == [
        "mine: prediction",
        "mine: error",
        "mine: edges: green in both",
        "other: prediction",
        "other: error",
        "other: edges: green in both",
    ]
    assert "-20.0 mm (blue) .. +20.0 mm (red)" in captions[6], "each error has its own range"


def test_depth_is_red_where_it_is_near_and_grey_where_it_was_not_measured(monkeypatch):
    photos = drawn_photos(monkeypatch)
    truth = np.full((30, 90), 500.0, np.float32)
    truth[:, 45:] = 2000.0
    mask = np.ones(truth.shape, bool)
    mask[:10] = False
    panels(["mine"], flat_image(truth=truth, mask=mask, predictions=[truth[:, ::-1]]))
    near, far, invalid = (
        (np.array(color[:3]) * 255).astype(np.uint8)
        for color in (NEAR_TO_FAR(0.0), NEAR_TO_FAR(1.0), NEAR_TO_FAR(np.ma.masked))
    )
    shown, caption = photos[1]
    assert caption.startswith("truth, 500 mm (red) .. 2000 mm (blue)")
    assert near[0] > near[2] and far[2] > far[0], "red, blue"
    np.testing.assert_array_equal(shown[20, 10], near)
    np.testing.assert_array_equal(shown[20, 80], far)
    np.testing.assert_array_equal(shown[5, 10], invalid)
    prediction, _ = photos[2]
    np.testing.assert_array_equal(prediction[20, 10], far)
    np.testing.assert_array_equal(prediction[5, 80], near, "a prediction is shown everywhere")


def test_an_error_is_red_where_the_prediction_is_too_far(monkeypatch):
    photos = drawn_photos(monkeypatch)
    image = flat_image()
    prediction = image.truth.copy()
    prediction[:, :45] += 10
    prediction[:, 45:] -= 10
    image.mask[:5] = False
    panels(["mine"], flat_image(mask=image.mask, predictions=[prediction]))
    shown, caption = photos[3]
    assert caption == "error, -10.0 mm (blue) .. +10.0 mm (red)"
    too_near, too_far, invalid = (
        (np.array(color[:3]) * 255).astype(np.uint8)
        for color in (SIGNED(0.0), SIGNED(1.0), SIGNED(np.ma.masked))
    )
    np.testing.assert_array_equal(shown[20, 10], too_far)
    np.testing.assert_array_equal(shown[20, 80], too_near)
    np.testing.assert_array_equal(shown[2, 10], invalid)


# -------------------------------------------------------------------------------------------- edges


def steps_at(*columns, shape=(40, 60)):
    """A plane at 1000 mm that is 50 mm farther from each of these columns on."""
    depth_mm = np.full(shape, 1000.0, np.float32)
    for column in columns:
        depth_mm[:, column:] += 50
    return depth_mm


def test_edges_are_green_in_both_orange_in_the_truth_blue_in_the_prediction():
    rgb = np.full((40, 60, 3), 100, np.uint8)
    mask = np.ones((40, 60), bool)
    shown = draw_edges(rgb, truth=steps_at(15, 30), prediction=steps_at(15, 45), mask=mask)
    assert shown.shape == (40, 60, 3) and shown.dtype == np.uint8
    row = [tuple(color) for color in shown[20].tolist()]
    for column, color in ((14, GREEN), (29, ORANGE), (44, BLUE)):
        assert row[column - 1 : column + 2] == [color] * 3, f"three wide at column {column}"
    drawn = {column + d for column in (14, 29, 44) for d in (-1, 0, 1)}
    assert {row[column] for column in range(60) if column not in drawn} == {GREY}


def test_no_edge_is_drawn_where_nothing_was_measured():
    mask = np.ones((40, 60), bool)
    mask[:, 12:18] = False
    rgb = np.full((40, 60, 3), 100, np.uint8)
    shown = draw_edges(rgb, steps_at(15), steps_at(15), mask)
    assert (shown == GREY).all()


def test_edges_are_drawn_at_the_size_of_the_ground_truth():
    rgb = np.full((20, 30, 3), 100, np.uint8)
    shown = draw_edges(rgb, steps_at(15), steps_at(15), np.ones((40, 60), bool))
    assert shown.shape == (40, 60, 3)
    assert shown[20, 14].tolist() == list(GREEN)


# ---------------------------------------------------------------------------------------------- cut


def test_the_cut_goes_through_most_grooves():
    truth = np.full((30, 90), 1000.0)
    mask = np.ones((30, 90), bool)
    label = np.zeros((30, 90), np.uint16)
    label[12, 40:60:4] = 1
    label[20, 10:30] = 2
    row, first, end = find_cut(truth, mask, label)
    assert row == 12
    assert end - first == 30
    assert first <= 40 and end >= 57
    row, first, end = find_cut(truth, mask, None)
    assert 0 <= first < end <= 90
    assert find_cut(truth, np.zeros_like(mask), label).end <= 90


def test_without_grooves_the_cut_goes_through_the_nearest_surface():
    truth = np.full((30, 90), 1000.0)
    truth[20:24, 50:80] = 700.0
    truth[22, 48:84] = 700.0
    cut = find_cut(truth, np.ones((30, 90), bool), None)
    assert cut.row == 22
    assert cut.first >= 48
    assert cut.end <= 84


def test_grooves_where_nothing_was_measured_do_not_count():
    label = np.zeros((30, 90), np.uint16)
    label[12, 40:60:4] = 1
    label[20, 10] = 1
    mask = np.ones((30, 90), bool)
    mask[12] = False
    assert find_cut(np.full((30, 90), 1000.0), mask, label).row == 20


def test_a_cut_shows_truth_and_predictions_where_they_are_known():
    image = flat_image()
    image.truth[7] += np.arange(90)
    image.mask[7, 35] = False
    other = image.truth - 5
    fig = plot_cut(
        ["mine", "other"],
        flat_image(truth=image.truth, mask=image.mask, predictions=[image.truth + 10, other]),
        Cut(row=7, first=30, end=60),
    )
    whole, shape = fig.axes
    assert whole.get_title() == "Cut along row 7"
    assert [line.get_label() for line in whole.lines] == ["truth", "mine", "other"]
    assert [line.get_color() for line in whole.lines] == [INK, SERIES[0], SERIES[1]]
    for line in whole.lines:
        np.testing.assert_array_equal(line.get_xdata(), np.arange(30, 60))
    expected = np.where(image.mask[7], image.truth[7], np.nan)[30:60]
    np.testing.assert_array_equal(whole.lines[0].get_ydata(), expected)
    np.testing.assert_array_equal(whole.lines[2].get_ydata(), other[7, 30:60])
    assert np.isnan(shape.lines[0].get_ydata()).tolist() == np.isnan(expected).tolist()
    for axes in fig.axes:
        bottom, top = axes.get_ylim()
        assert bottom > top, "near is up"
    assert [text.get_text() for text in whole.get_legend().get_texts()] == [
        "truth",
        "mine",
        "other",
    ]


def test_below_the_cut_grooves_show_without_the_tires_shape():
    image = flat_image()
    image.truth[7] += 0.2 * np.arange(90)  # a slope
    image.truth[7, 44:46] += 6.0  # a groove
    fig = plot_cut(["mine"], image, Cut(row=7, first=30, end=60))
    _, shape = fig.axes
    depths = shape.lines[0].get_ydata()
    assert depths[14:16] == pytest.approx(6.0, abs=1.0)
    assert np.abs(depths[5:12]).max() <= 0.5, "the slope is gone"
    assert shape.get_ylim() == (12, -12)


def test_grooves_are_shaded_in_both_axes():
    label = np.zeros((30, 90), np.uint16)
    label[7, 40:44] = 1
    fig = plot_cut(["mine"], flat_image(groove_label=label), Cut(row=7, first=30, end=60))
    for axes in fig.axes:
        (shade,) = axes.collections
        columns = shade.get_paths()[0].vertices[:, 0]
        assert (columns.min(), columns.max()) == (40, 43)
        assert tuple(shade.get_facecolor()[0][:3]) == to_rgb(INK)
    (legend,) = [axes.get_legend() for axes in fig.axes if axes.get_legend()]
    assert "grooves" in [text.get_text() for text in legend.get_texts()]


def test_the_caption_of_a_cut_names_its_place_and_its_grooves():
    label = np.zeros((30, 90), np.uint16)
    label[12, 40:60:4] = 1
    with_grooves = cut_figure(["mine"], flat_image(groove_label=label)).caption
    cut = find_cut(flat_image().truth, flat_image().mask, label)
    assert with_grooves.startswith(
        f"Truth and prediction in mm along row 12, columns {cut.first} to {cut.end}: through the"
        " tread that shows most grooves there"
    )
    without = cut_figure(["mine"], flat_image()).caption
    assert without.endswith(". Near is up.") and "grooves" not in without
