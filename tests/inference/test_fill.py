"""depthdist predict --fill and LoadedModel.fill: what was measured stays, its holes get depth."""

import numpy as np
import pytest
from helpers.captures import capture, write_capture
from helpers.predictions import result_names
from PIL import Image

import depthdist
from depthdist.captures.layouts import find_captures
from depthdist.models.completion import fill_depth

FILES = ["a_filled.npy", "a_filled_0.1mm.png", "a_filled_colour.png", "a_filled_figure.png"]


@pytest.fixture
def image(tmp_path):
    """An image whose points lie beside it, a tenth of them missing."""
    write_capture(tmp_path / "raw/a.png", tmp_path / "raw/a.npy", seed=3)
    return tmp_path / "raw/a.png"


@pytest.fixture(scope="session")
def loaded(run):
    return depthdist.load(run)


def test_the_command_keeps_what_was_measured_and_says_which_that_is(predict, loaded, image):
    done = predict(image, "--fill", "--save", "npy,png,colour,figure,ply")
    assert done.code == 0, done
    assert "fill         the prediction, moved to what was measured" in done.out
    assert "1 of 1 images: measured depth with its holes filled in mm" in done.out
    out = image.parents[1] / "out"
    assert result_names(out) == sorted([*FILES, "a_filled_cloud.ply", "a_filled_map.png"])
    z = np.load(image.with_suffix(".npy"))[..., 2]
    filled, measured = np.load(out / "a_filled.npy"), np.isfinite(z)
    assert 0.8 < measured.mean() < 1
    assert filled.dtype == np.float32 and np.array_equal(filled[measured], z[measured])
    assert np.array_equal(filled, fill_depth(loaded.predict(image).depth_mm, z))
    assert np.array_equal(np.asarray(Image.open(out / "a_filled_map.png")) == 255, measured)
    assert b"element vertex %d\n" % z.size in (out / "a_filled_cloud.ply").read_bytes()[:400]


def test_its_results_are_no_images_and_no_captures(predict, image):
    assert predict(image.parent, "--fill", "--out", image.parent).code == 0
    assert set(find_captures(list(image.parent.glob("*.png")))) == {image}
    again = predict(image.parent, "--fill", "--out", image.parent)
    assert again.code == 0 and "1 of 1 images are done already" in again.out, again
    other = predict(image.parent, "--out", image.parent)
    assert other.code == 2 and "with other settings" in other.err, other


def test_an_image_with_nothing_to_fill_is_one_line_and_the_others_are_done(predict, image):
    Image.fromarray(capture()[0]).save(image.with_name("alone.png"))
    done = predict(image.parent, "--fill", "--save", "npy")
    assert done.code == 2 and "1 of 2 images" in done.out
    (line,) = done.errors
    assert "alone.png: there is nothing to fill: no points or depth of it lie beside it" in line
    np.save(image.with_suffix(".npy"), np.zeros((3, 4)))
    done = predict(image, "--fill", "--again")
    assert (
        done.code == 2 and "a.png: there is nothing to fill: " in done.err and "a.npy" in done.err
    )


def test_python_gives_the_same_from_a_path_arrays_and_a_capture(loaded, image):
    rgb, xyz = np.asarray(Image.open(image)), np.load(image.with_suffix(".npy"))
    of_path = loaded.fill(image)
    assert np.array_equal(of_path.measured, np.isfinite(xyz[..., 2]))
    assert np.allclose(of_path.points_mm[of_path.measured], xyz[of_path.measured], atol=1e-2)
    assert np.isfinite(of_path.points_mm).all()
    for others in ((rgb, xyz), (rgb, xyz[..., 2]), (depthdist.read_capture(image),)):
        assert np.array_equal(loaded.fill(*others).depth_mm, of_path.depth_mm)
    assert loaded.fill(rgb, xyz[..., 2], fov=60).points_mm.shape == xyz.shape
    moved = loaded.fill(image, xyz + 100)  # what is given counts, not what lies beside
    assert np.allclose(moved.depth_mm[of_path.measured], xyz[of_path.measured][:, 2] + 100)
    assert not loaded.predict(rgb).measured.any()


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (None, "the image: there is nothing to fill: no points or depth of it lie beside it"),
        (np.zeros((3, 4)), r"points_mm is float64 of shape (3, 4); expected numbers of shape (30,"),
        (np.zeros((30, 40)), "points_mm holds no measured pixel; expected depth in mm, above 0"),
        (np.full((30, 40, 3), 1.2), "points_mm looks like metres: the median is 1.2; expected mm"),
        (np.zeros((30, 40), "U1"), "points_mm is <U1 of shape (30, 40); expected numbers"),
    ],
)
def test_what_cannot_be_filled_is_one_line(loaded, points, said):
    with pytest.raises(ValueError) as caught:
        loaded.fill(capture()[0], points)
    assert str(caught.value).startswith(said)
