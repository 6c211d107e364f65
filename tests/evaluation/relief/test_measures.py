"""What is measured of a capture with its truth, on treads drawn by formula."""

import numpy as np
import pytest
from helpers.drawn_treads import SIZE, cylinder, write_tread, write_treads

from depthdist.core.errors import BadFile
from depthdist.evaluation.metrics.edges import edge_metrics
from depthdist.evaluation.relief.captures import check_same_scenes, list_stems, read_truth
from depthdist.evaluation.relief.figure import draw_relief, find_window, relief_of
from depthdist.evaluation.relief.measures import CAMERA, measure_capture, measure_grooves


@pytest.fixture(scope="module")
def captures(tmp_path_factory):
    return write_treads(tmp_path_factory.mktemp("treads"))


@pytest.fixture(scope="module")
def preds():
    """A prediction without relief, and one with half of it, on the painted groove too."""
    return {"plain": cylinder((0.0, 0.0, 0.0))[0] + 30, "half": cylinder((3.0, 1.5, 2.5))[0]}


@pytest.fixture(scope="module")
def measured(captures, preds):
    return measure_capture(captures, "b", preds)


def depths_of(grooves):
    return {groove.id: groove.depths[1] for groove in grooves}


def test_grooves_are_measured_in_every_map_and_the_cameras(measured):
    assert depths_of(measured.grooves["plain"]) == pytest.approx({1: 0, 2: 0}, abs=0.02)
    assert depths_of(measured.grooves["half"]) == pytest.approx({1: 3, 2: 1.5}, abs=0.02)
    assert depths_of(measured.grooves[CAMERA]) == pytest.approx({1: 6, 2: 3}, abs=0.05)
    assert [g.depths[0] for g in measured.grooves["half"]] == pytest.approx([6, 3], abs=0.02)


def test_only_the_painted_groove_counts_as_painted(measured):
    assert depths_of(measured.painted["plain"]) == pytest.approx({3: 0}, abs=0.02)
    assert depths_of(measured.painted["half"]) == pytest.approx({3: 2.5}, abs=0.02)
    assert depths_of(measured.painted[CAMERA]) == pytest.approx({3: 0}, abs=0.05)


def test_captures_without_painted_treads_have_none(captures, preds):
    assert measure_capture(captures, "a", preds).painted == {"plain": [], "half": [], CAMERA: []}


def test_the_grooves_alone_are_the_same(captures, preds, measured):
    assert measure_grooves(captures, "b", preds) == measured.grooves


def test_errors_are_against_exact_depth_where_the_camera_measured(captures, preds, measured):
    truth = read_truth(captures, "b")
    where = np.isfinite(truth.camera_mm)
    assert 0 < where.sum() < where.size
    off = (preds["half"] - truth.exact_mm)[where]
    near = truth.exact_mm[where] < 1500
    values = measured.values["half"]
    assert values["rmse_mm"] == pytest.approx(np.sqrt((off**2).mean()))
    assert values["rmse_near_mm"] == pytest.approx(np.sqrt((off[near] ** 2).mean()))


def test_edges_are_those_of_an_evaluation(captures, preds, measured):
    truth = read_truth(captures, "b")
    (found,) = edge_metrics([preds["half"]], truth.camera_mm, truth.mask)
    for name in ("edge_f1@2mm", "edge_f1@4mm"):
        assert measured.values["half"][name] == found[name]


def test_a_truth_that_cannot_be_used_is_named(captures, tmp_path):
    write_tread(tmp_path, "c")
    path = tmp_path / "truth/c_truth.npz"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BadFile, match=r"c_truth\.npz: not a capture's truth"):
        read_truth(tmp_path, "c")
    np.savez(path, z=np.ones((3, 4)), groove=np.zeros((3, 4)), K=np.eye(3))
    with pytest.raises(BadFile, match=r"z is \(3, 4\).*the points are \(240, 320\)"):
        read_truth(tmp_path, "c")


def test_only_the_depth_of_grooves_may_differ_between_two_folders(captures, tmp_path):
    check_same_scenes(captures, write_treads(tmp_path / "half", 0.5))
    with pytest.raises(ValueError, match=r"seed 1, not 0.*--groove-depth 0\.5"):
        check_same_scenes(captures, write_treads(tmp_path / "other", 0.5, seed=1))
    with pytest.raises(ValueError, match=r"no captures with their truth.*tires\.json"):
        list_stems(tmp_path)


# -------------------------------------------------------------------------------------------- image


def test_relief_is_depth_less_the_mean_around_it_and_knows_no_offset():
    z = np.full(SIZE, 1000.0)
    z[100:140, 155:157] += 6.0  # in 7 columns of 320 (41 of 1944): 2 of 7 are deeper
    assert relief_of(z)[120, 155] == pytest.approx(6 - 6 * 2 / 7)
    assert np.allclose(relief_of(z + 250), relief_of(z))
    assert not relief_of(np.full(SIZE, np.nan)).any()


def test_the_image_shows_where_most_grooves_are(captures, preds):
    groove = np.zeros((100, 200), np.uint16)
    groove[60:80, 150:170] = 1
    rows, columns = find_window(groove > 0)
    assert groove[rows, columns].sum() == groove.sum()
    rgb = np.full((*SIZE, 3), 50, np.uint8)
    image = draw_relief(rgb, read_truth(captures, "a"), preds)
    assert image.width == 4 * 480, "image, exact depth and two predictions, five times as large"
