"""`depthdist.read_capture`: a capture by the name of one of its files."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.captures import capture, write_capture, write_label, write_raw
from helpers.point_files import WRITERS
from PIL import Image

import depthdist
from depthdist.captures.formats.registry import FORMATS
from depthdist.captures.layouts import find_pairs

RGB, XYZ = capture(seed=3)
LAYOUTS = {
    "two folders": ("images/a_color.png", "depth/a_rawDepth.npy"),
    "one name": ("a.png", "a.npy"),
    "one folder": ("a_color.png", "a_rawDepth.npy"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", [0, 1], ids=["by its image", "by its points"])
def test_a_capture_is_found_by_either_file_in_every_layout(layout, which, tmp_path):
    files = [tmp_path / name for name in LAYOUTS[layout]]
    write_capture(*files, seed=3)
    write_capture(*(tmp_path / name.replace("a", "b", 1) for name in LAYOUTS[layout]), seed=1)
    found = depthdist.read_capture(files[which])
    seen = np.isfinite(XYZ[..., 2])
    assert (found.rgb == RGB).all()
    assert found.points_mm.dtype == np.float32
    assert np.array_equal(found.points_mm, XYZ, equal_nan=True)
    assert (found.mask == seen).all()
    assert repr(found) == f"CaptureArrays(30 x 40, {seen.mean():.0%} measured)"


def test_every_capture_that_training_finds_is_found_by_its_name(tmp_path, monkeypatch):
    write_raw(tmp_path / "raw", 3)
    write_capture(tmp_path / "raw/more/c.png", tmp_path / "raw/more/c.npy", 7)
    pairs, rejects = find_pairs(tmp_path / "raw")
    assert len(pairs) == 4
    assert not rejects
    *others, last = pairs
    monkeypatch.chdir(last.rgb.parent)
    assert (depthdist.read_capture(last.rgb.name).rgb == capture(7)[0]).all()
    for number, pair in enumerate(others):
        assert (depthdist.read_capture(pair.xyz).rgb == capture(number)[0]).all()


def test_both_files_are_read_where_they_are_named(tmp_path):
    write_capture(tmp_path / "here/a.png", tmp_path / "there/b.npy", seed=3)
    found = depthdist.read_capture(tmp_path / "here/a.png", tmp_path / "there/b.npy")
    assert np.array_equal(found.points_mm, XYZ, equal_nan=True)


def test_what_was_not_measured_is_nan_however_the_file_spells_it(tmp_path):
    write_capture(tmp_path / "a.png", tmp_path / "a.npy", seed=3)
    np.save(tmp_path / "a.npy", np.nan_to_num(XYZ))
    found = depthdist.read_capture(tmp_path / "a.npy")
    assert np.array_equal(found.points_mm, XYZ, equal_nan=True)


def test_depth_alone_has_a_mask_and_with_a_camera_points(tmp_path):
    write_capture(tmp_path / "a.png", tmp_path / "a.npy", seed=3)
    np.save(tmp_path / "a.npy", XYZ[..., 2] / 1000)
    with pytest.raises(ValueError, match=r"a\.npy: looks like metres.*unit 1000 reads metres"):
        depthdist.read_capture(tmp_path / "a.png")
    bare = depthdist.read_capture(tmp_path / "a.png", unit=1000)
    assert (bare.mask == np.isfinite(XYZ[..., 2])).all()
    assert np.isnan(bare.points_mm[..., :2]).all()
    found = depthdist.read_capture(tmp_path / "a.png", unit=1000, intrinsics=(50, 60, 21, 14))
    assert np.allclose(found.points_mm, XYZ, rtol=1e-5, equal_nan=True)


def test_an_image_of_twice_the_points_size_keeps_its_own(tmp_path):
    write_capture(tmp_path / "a.png", tmp_path / "a.npy", seed=3)
    Image.fromarray(RGB).resize((80, 60)).save(tmp_path / "a.png")
    found = depthdist.read_capture(tmp_path / "a.png")
    assert (found.rgb.shape, found.mask.shape) == ((60, 80, 3), (30, 40))
    assert repr(found).startswith("CaptureArrays(60 x 80, points 30 x 40, ")


@pytest.mark.parametrize("name", WRITERS)
def test_one_file_of_colors_and_points_is_a_capture_by_itself(name, tmp_path):
    WRITERS[name](tmp_path / name, RGB, XYZ)
    found = depthdist.read_capture(tmp_path / name)
    assert (found.mask == np.isfinite(XYZ[..., 2])).all()
    assert np.allclose(found.points_mm, XYZ, rtol=1e-5, equal_nan=True)
    assert (found.rgb == RGB)[found.mask].all()


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_every_format_with_colors_has_a_file_here(form):
    suffixes = {Path(name).suffix for name in WRITERS}
    assert suffixes.isdisjoint(form.suffixes) == (not form.has_rgb)


def test_an_image_beside_a_file_with_colors_is_the_captures(tmp_path):
    WRITERS["plain.zdf"](tmp_path / "a.zdf", RGB, XYZ)
    Image.fromarray(RGB[::-1]).save(tmp_path / "a.png")
    for name in ("a.zdf", "a.png"):
        found = depthdist.read_capture(tmp_path / name)
        assert (found.rgb == RGB[::-1]).all()
        assert np.array_equal(found.points_mm, XYZ, equal_nan=True)


def test_uncertain_points_are_masked_where_a_file_has_an_snr(tmp_path):
    snr = np.linspace(0, 10, RGB[..., 0].size, dtype=np.float32).reshape(RGB.shape[:2])
    WRITERS["plain.zdf"](tmp_path / "a.zdf", RGB, XYZ, snr)
    found = depthdist.read_capture(tmp_path / "a.zdf", min_snr=5)
    assert (found.mask == (np.isfinite(XYZ[..., 2]) & (snr >= 5))).all()
    WRITERS["plain.zdf"](tmp_path / "b.zdf", RGB, XYZ)
    with pytest.raises(ValueError, match="has no SNR or confidence, which min_snr 5 asks for"):
        depthdist.read_capture(tmp_path / "b.zdf", min_snr=5)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gone.npy", "no such file; expected a capture's image or points"),
        (".", "is a folder; expected a capture's image or points"),
        ("alone.png", "a picture without its point cloud"),
        ("single.npy", "a point cloud without its picture"),
        ("twice.npy", "is no part of one capture"),
        ("notes.txt", "is no part of one capture"),
        ("broken.png", "cannot be read as a picture"),
    ],
)
def test_what_is_no_capture_is_one_line(name, text, tmp_path):
    write_capture(tmp_path / "alone.png", tmp_path / "single.npy")
    write_capture(tmp_path / "twice.png", tmp_path / "twice.npy")
    shutil.copy(tmp_path / "twice.png", tmp_path / "twice.jpg")
    write_capture(tmp_path / "broken.png", tmp_path / "broken.npy")
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no capture")
    with pytest.raises(ValueError, match=text) as caught:
        depthdist.read_capture(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_wrong_camera_is_one_line_that_names_the_argument(tmp_path):
    write_capture(tmp_path / "a.png", tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"^intrinsics is 1,2: expected fx,fy,cx,cy"):
        depthdist.read_capture(tmp_path / "a.png", intrinsics=(1, 2))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"unit": -1}, "unit is -1: expected more than 0 mm"),
        ({"unit": 0}, "unit is 0: expected more than 0 mm"),
        ({"unit": "m"}, "unit is 'm': expected more than 0 mm"),
        ({"min_snr": None}, "min_snr is None: expected 0 or more"),
        ({"fov": "a"}, "fov is 'a': expected degrees above 0 and below 180"),
        ({"intrinsics": "wide"}, "intrinsics is 'wide': expected fx,fy,cx,cy in pixels"),
        ({"intrinsics": [[1, 2], [3]]}, r"intrinsics is \[1, 2\],\[3\]: expected fx,fy"),
        ({"intrinsics": (1, 2, "3", 4)}, "intrinsics is 1,2,'3',4: expected fx,fy,cx,cy"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_argument(given, text, tmp_path):
    write_capture(tmp_path / "a.png", tmp_path / "a.npy")
    with pytest.raises(ValueError, match=f"^{text}"):
        depthdist.read_capture(tmp_path / "a.png", **given)


@pytest.mark.parametrize("folders", [("", ""), ("images/", "depth/")], ids=["one", "two"])
def test_files_that_share_a_name_are_named(folders, tmp_path):
    image, points = tmp_path / f"{folders[0]}0.png", tmp_path / f"{folders[1]}0.npy"
    write_capture(image, points)
    points.with_suffix(".NPY").write_bytes(points.read_bytes())
    for path in (image, points):
        with pytest.raises(ValueError, match=r"1 pictures and 2 point clouds share the") as caught:
            depthdist.read_capture(path)
        assert all(f"0.{suffix}" in str(caught.value) for suffix in ("png", "npy", "NPY"))


def test_a_groove_label_is_called_one(tmp_path):
    write_label(tmp_path / "a_grooves.png")
    with pytest.raises(ValueError, match="is a groove label; expected its capture's image"):
        depthdist.read_capture(tmp_path / "a_grooves.png")
