"""depthdist predict --fill and LoadedModel.fill: what was measured stays, its holes get depth."""

import json
import shutil

import numpy as np
import pytest
from helpers.captures import capture, write_capture
from helpers.commands import command
from helpers.completion_stages import write_completion
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


# ------------------------------------------------------------------------------- a trained stage


@pytest.fixture(scope="module")
def staged(run, tmp_path_factory):
    """The run with a completion stage of random weights."""
    copy = shutil.copytree(run, tmp_path_factory.mktemp("staged") / "run")
    write_completion(copy, (30, 40), gain=0.3)
    return copy


def fill(staged, image, *words):
    out = image.parents[1] / "out"
    return command("launch/predict.py", image, "--run", staged, "--out", out, *words), out


def test_the_stage_fills_and_says_how_sure_it_is(staged, image):
    done, out = fill(staged, image, "--fill", "--save", "npy,png,ply,figure,sigma")
    assert done.code == 0, done
    assert "fill         the completion stage, trained for 7 steps" in done.out
    z = np.load(image.with_suffix(".npy"))[..., 2]
    filled, sigma = np.load(out / "a_filled.npy"), np.load(out / "a_filled_sigma.npy")
    measured = np.isfinite(z)
    assert np.array_equal(filled[measured], z[measured]) and np.isfinite(filled).all()
    assert sigma.dtype == np.float32 and not sigma[measured].any() and (sigma[~measured] > 0).all()
    of_python = depthdist.load(staged).fill(image)
    assert np.array_equal(of_python.depth_mm, filled)
    assert np.array_equal(of_python.sigma_mm, sigma)
    plain = fill_depth(depthdist.load(staged).predict(image).depth_mm, z)
    assert not np.allclose(plain, filled), "the stage was not used"


def test_refused_pixels_are_in_no_file_and_the_map_says_so(staged, image):
    sigma = depthdist.load(staged).fill(image).sigma_mm
    limit = float(np.median(sigma[sigma > 0]))
    done, out = fill(
        staged, image, "--fill", "--save", "npy,png,colour,figure,ply", "--refuse", limit
    )
    assert done.code == 0, done
    filled, levels = np.load(out / "a_filled.npy"), np.asarray(Image.open(out / "a_filled_map.png"))
    refused = sigma > limit
    assert 0 < refused.sum() < (sigma > 0).sum()
    assert np.array_equal(np.isnan(filled), refused)
    assert np.array_equal(levels == 0, refused) and np.array_equal(levels == 255, sigma == 0)
    assert not np.asarray(Image.open(out / "a_filled_0.1mm.png"))[refused].any()
    head = (out / "a_filled_cloud.ply").read_bytes()[:400]
    assert b"element vertex %d\n" % (~refused).sum() in head
    result = depthdist.load(staged).fill(image, refuse=limit)
    assert np.array_equal(np.isnan(result.depth_mm), refused) and "mm" in repr(result)


def test_a_prediction_has_a_sigma_too(staged, image):
    model = depthdist.load(staged)
    plain = model.predict(image)
    sure = model.predict(image, sigma=True)
    assert plain.sigma_mm is None and np.array_equal(plain.depth_mm, sure.depth_mm)
    assert (sure.sigma_mm > 0).all()
    done, out = fill(staged, image, "--save", "sigma")
    assert done.code == 0 and np.array_equal(np.load(out / "a_sigma.npy"), sure.sigma_mm)
    (all_refused,) = model.predict([image], refuse=1e-3)
    assert repr(all_refused) == "DepthResult(30 x 40, all refused)"


@pytest.mark.parametrize(("flag", "value"), [("--refuse", 20), ("--save", "npy,sigma")])
def test_without_a_stage_nothing_says_how_sure_a_depth_is(predict, loaded, image, flag, value):
    done = predict(image, flag, value)
    (line,) = done.errors
    asked = "--refuse" if flag == "--refuse" else "--save sigma"
    assert done.code == 2 and line.startswith(f"{asked}: ") and "no completion stage" in line
    with pytest.raises(ValueError, match="no completion stage"):
        loaded.fill(image, refuse=20)
    with pytest.raises(ValueError, match="no completion stage"):
        loaded.predict(image, sigma=True)


def test_wrong_limits_are_one_line(staged, image):
    (line,) = fill(staged, image, "--refuse", -1)[0].errors
    assert line == "--refuse is -1: expected more than 0 mm"
    with pytest.raises(ValueError, match="refuse is 'much': expected more than 0 mm"):
        depthdist.load(staged).predict(image, refuse="much")


def test_a_stage_of_another_adapter_is_refused(staged, image, tmp_path):
    other = shutil.copytree(staged, tmp_path / "other")
    path = other / "completion/best/completion.json"
    path.write_text(path.read_text().replace('"adapter": "', '"adapter": "0'))
    done, _ = fill(other, image, "--fill")
    assert done.code == 2 and "was trained on another adapter" in done.err, done


def test_an_image_unlike_those_of_training_is_a_warning(staged, image, tmp_path):
    other = shutil.copytree(staged, tmp_path / "other")
    path = other / "completion/best/completion.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "brightness": [5, 9], "depth_mm": [100, 200]}))
    done, _ = fill(other, image, "--fill", "--save", "npy")
    assert done.code == 0, done
    assert "a of brightness " in done.out and "the training images had 5 .. 9" in done.out
    assert "lies outside the 100 .. 200 mm of the training images" in done.out
    with pytest.warns(UserWarning, match="the image of brightness"):
        depthdist.load(other).predict(image)


def test_flying_pixels_are_filled_when_asked(predict, loaded, image, tmp_path):
    rgb = np.asarray(Image.open(image))
    depth = np.full(rgb.shape[:2], 1500, np.float32)
    depth[:, 20:] = 1000
    depth[7, 19] = 1250  # between the surface behind and the one in front
    stays, filled = (loaded.fill(rgb, depth, denoise=wanted) for wanted in (False, True))
    assert stays.depth_mm[7, 19] == 1250 and stays.measured.all()
    assert not filled.measured[7, 19] and filled.measured.sum() == depth.size - 1
    assert abs(filled.depth_mm[7, 19] - 1250) > 50
    (line,) = predict(image, "--denoise").errors
    assert line == "--denoise is for --fill: give both"
    assert predict(image, "--fill", "--denoise", "--save", "npy").code == 0
    changed = predict(image, "--fill", "--save", "npy")
    assert changed.code == 2 and "with other settings" in changed.err


def test_an_exported_run_fills_as_the_run_does(staged, image, tmp_path):
    done = command("launch/export.py", staged, tmp_path / "out", "--forms", "model,adapter")
    assert done.code == 0, done
    expected = depthdist.load(staged).fill(image)
    for form in ("model", "adapter"):
        found = depthdist.load(tmp_path / "out" / form).fill(image)
        assert np.allclose(found.depth_mm, expected.depth_mm, atol=0.5), form
        assert np.allclose(found.sigma_mm, expected.sigma_mm, rtol=1e-2, atol=0.1), form
