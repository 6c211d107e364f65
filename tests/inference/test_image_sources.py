"""The images that inputs of depthdist predict name: folders, patterns, rotated and broken files."""

import shutil

import numpy as np
import pytest
from helpers.captures import HOSTILE, capture, write_capture, write_raw
from helpers.depth_images import write_pair
from helpers.predictions import predict_by_formula, result_names
from PIL import Image


def test_the_same_name_in_two_folders_is_kept_apart(predict, model, tmp_path):
    for seed, folder in enumerate(("left", "right")):
        write_capture(tmp_path / folder / "a.png", tmp_path / folder / "deep/a2.npy", seed=seed)
    shutil.copy(tmp_path / "left/a.png", tmp_path / "left/other.jpeg.png")
    done = predict("--save", "npy,png", tmp_path / "left", tmp_path / "right/a.png")
    assert done.code == 0, done
    found = [n for n in result_names(tmp_path / "out") if n.endswith(".npy")]
    assert found == ["left_a_png_depth.npy", "other.jpeg_depth.npy", "right_a_png_depth.npy"]
    for seed, name in ((0, "left"), (1, "right")):
        wanted = predict_by_formula(model, capture(seed)[0])
        assert np.abs(np.load(tmp_path / f"out/{name}_a_png_depth.npy") - wanted).max() < 0.01
    shutil.copytree(tmp_path / "left", tmp_path / "more/left")
    (line,) = predict(tmp_path / "left/a.png", tmp_path / "more/left/a.png").errors
    assert "two images would be written as left_a_png" in line


def test_an_image_given_twice_is_predicted_once_and_results_are_not_inputs(predict, tmp_path):
    write_capture(tmp_path / "in/a.png", tmp_path / "in/a.npy")
    for again in ((), ("--again",), None):
        done = predict(
            tmp_path / "in", tmp_path / "in/a.png", "--out", tmp_path / "in/out", *again or ()
        )
        assert done.code == 0, done
        assert ("\n1 of 1 images: depth" in done.out) == (again is not None), done


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_image_is_turned_upright(orientation, predict, model, tmp_path):
    """The upright image, stored turned as a camera would, with the tag that says so."""
    upright = Image.fromarray(
        np.kron(capture(3)[0][:6, :8], np.ones((5, 5, 1), np.uint8))
    )  # (30, 40), coarse
    turns = {
        2: "FLIP_LEFT_RIGHT",
        3: "ROTATE_180",
        4: "FLIP_TOP_BOTTOM",
        5: "TRANSPOSE",
        6: "ROTATE_90",
        7: "TRANSVERSE",
        8: "ROTATE_270",
    }
    stored = upright.transpose(Image.Transpose[turns[orientation]]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert predict("--save", "npy,png", tmp_path / "a.png").code == 0
    depth = np.load(tmp_path / "out/a_depth.npy")
    assert depth.shape == (30, 40)
    assert np.abs(depth - predict_by_formula(model, np.asarray(upright))).max() < 0.01


@pytest.mark.skipif(
    not HOSTILE.exists(), reason=f"the unusual images are missing: {HOSTILE}/images"
)
def test_every_unusual_image_is_predicted_or_is_one_line(predict, tmp_path):
    images = sorted((HOSTILE / "images").iterdir())
    done = predict("--save", "npy,png", HOSTILE / "images")
    failed = {line.split(": ")[0] for line in done.errors}
    assert len(failed) == len(done.errors), "one line each"
    predicted = {
        n.removesuffix("_depth.npy") for n in result_names(tmp_path / "out") if n.endswith(".npy")
    }
    for image in images:
        assert (image.stem in predicted) != (str(image) in failed), image
    unreadable = {
        "broken_data_stream.png",
        "seek_too_large.tif",
        "truncated_end_chunk.png",
        "truncated_image.png",
        "unknown_compression_method.png",
    }
    assert unreadable <= {p.rsplit("/")[-1] for p in failed}
    assert len(predicted) >= 30
    assert f"{len(predicted)} of {len(images)} images" in done.out
    assert all(np.isfinite(np.load(tmp_path / f"out/{name}_depth.npy")).all() for name in predicted)


def test_a_bad_image_is_one_line_and_the_others_are_done(predict, tmp_path):
    write_raw(tmp_path / "in", 2)
    (tmp_path / "in/images/broken.png").write_bytes(b"not an image")
    done = predict("--save", "npy,png", tmp_path / "in/images")
    (line,) = done.errors
    assert str(tmp_path / "in/images/broken.png") in line
    assert len(result_names(tmp_path / "out")) == 4
    assert "2 of 3 images" in done.out


@pytest.mark.parametrize(("orientation", "points"), [(3, (30, 40)), (6, (30, 40)), (6, (40, 30))])
def test_a_rotated_image_lies_as_its_points_do(predict, tmp_path, orientation, points):
    write_capture(tmp_path / "in/a.png", tmp_path / "in/a.npy")
    np.save(tmp_path / "in/a.npy", capture(size=points)[1])
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(tmp_path / "in/a.png") as image:
        image.save(tmp_path / "in/a.png", exif=exif)
    done = predict(tmp_path / "in", "--save", "figure,npy,ply")
    assert done.code == 0, done
    assert np.load(tmp_path / "out/a_depth.npy").shape == points
    assert len(result_names(tmp_path / "out")) == 3, "truth and camera are those of the points"


def test_depth_images_are_truth_in_their_unit_and_never_images(predict, tmp_path):
    """Beside an image of twice the size; depth is predicted at the image's."""
    write_pair(tmp_path, "in/rgb/a.png", "in/depth/a.tiff", unit_mm=1000)
    with Image.open(tmp_path / "in/rgb/a.png") as image:
        image.resize((80, 60)).save(tmp_path / "in/rgb/a.png")
    camera = '{"fx": 50, "fy": 60, "cx": 20.5, "cy": 13.5}'
    (tmp_path / "in/intrinsics.json").write_text(camera)
    (line,) = predict(tmp_path / "in").errors
    assert "looks like metres" in line and "--unit 1000" in line
    done = predict(tmp_path / "in", "--unit", 1000, "--save", "npy,ply,figure", "--again")
    assert done.code == 0 and "1 of 1 images" in done.out, done
    assert np.load(tmp_path / "out/a_depth.npy").shape == (60, 80)
    assert any(name.endswith(".ply") for name in result_names(tmp_path / "out"))


def test_a_cloud_of_another_size_is_reported_and_the_image_is_predicted(predict, tmp_path):
    write_capture(tmp_path / "in/a.png", tmp_path / "in/a.npy")
    np.save(tmp_path / "in/a.npy", capture(size=(10, 12))[1])
    (line,) = predict(tmp_path / "in").errors
    assert "drawn without truth" in line
    assert (tmp_path / "out/a_figure.png").exists()


def test_a_broken_cloud_does_not_stop_its_image(predict, tmp_path):
    write_capture(tmp_path / "in/a.png", tmp_path / "in/a.npy")
    (tmp_path / "in/a.npy").write_bytes(b"not numbers")
    done = predict(tmp_path / "in")
    assert "a.npy" in "".join(done.errors)
    assert (tmp_path / "out/a_depth.npy").exists()


def test_a_pattern_takes_images_alone_and_another_cloud_is_another_figure(predict, tmp_path):
    write_capture(tmp_path / "in/a.png", tmp_path / "in/a.npy")
    Image.new("L", (32, 24)).save(tmp_path / "in/a_grooves.png")
    for pattern in ("in/*", "in/a_*.png"):
        done = predict(tmp_path / pattern, "--save", "figure")
        assert (
            "1 of 1 images" in done.out if pattern == "in/*" else "expected .bmp" in done.errors[0]
        ), done
    assert result_names(tmp_path / "out") == ["a_figure.png"]
    before = (tmp_path / "out/a_figure.png").read_bytes()
    write_capture(tmp_path / "elsewhere.png", tmp_path / "in/a.npy", seed=5)
    assert "1 of 1 images: depth" in predict(tmp_path / "in", "--save", "figure").out
    assert (tmp_path / "out/a_figure.png").read_bytes() != before
    assert "1 of 1 images are done already" in predict(tmp_path / "in", "--save", "figure").out
