"""Every way in which an image, a point map or a groove label can be unusual or wrong."""

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers.captures import HOSTILE, ROOT, capture, write_capture, write_label, write_python_2_npy
from PIL import Image

from depthdist.captures.formats.stored_points import StoredPoints
from depthdist.captures.layouts import find_pairs
from depthdist.captures.read_options import ReadOptions
from depthdist.captures.readers import (
    read_capture,
    read_label,
    read_point_map,
    read_rgb,
    read_size,
    read_xyz,
    to_point_map,
)
from depthdist.core.environment import silence_image_warnings
from depthdist.core.errors import BadFile


@pytest.mark.parametrize(
    "mode, value, expected",
    [
        ("L", 200, (200, 200, 200)),
        ("1", 1, (255, 255, 255)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBA", (1, 2, 3, 0), (1, 2, 3)),
        ("LA", (7, 0), (7, 7, 7)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("I;16", 0x80FF, (0x80, 0x80, 0x80)),
        ("P", 0, (0, 0, 0)),
    ],
)
def test_every_mode_becomes_8_bit_rgb(tmp_path, mode, value, expected):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (5, 4), value).save(path)
    rgb = read_rgb(path)
    assert rgb.shape == (4, 5, 3)
    assert rgb.dtype == np.uint8
    assert (rgb == expected).all()


def write_turned(path, size=(8, 16)):
    """Write an image with its left half white; orientation 6 turns it clockwise: white on top."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = np.zeros((*size, 3), np.uint8)
    image[:, : size[1] // 2] = 255
    Image.fromarray(image).save(path, exif=exif)


@pytest.mark.parametrize("name", ["a.jpg", "a.tif", "a.png", "a.webp"])
def test_the_size_of_the_points_decides_whether_an_image_is_turned_upright(tmp_path, name):
    write_turned(tmp_path / name)
    stored, turned = read_rgb(tmp_path / name), read_rgb(tmp_path / name, upright=True)
    assert (stored.shape, turned.shape) == ((8, 16, 3), (16, 8, 3))
    assert (stored[:, :6].min() > 200, stored[:, 10:].max() < 50) == (True, True)
    assert (turned[:6].min() > 200, turned[10:].max() < 50) == (True, True)
    for size, expected in (
        ((8, 16), stored),
        ((16, 8), turned),
        ((4, 8), stored),
        ((32, 16), turned),
    ):
        np.save(tmp_path / "a.npy", capture(size=size)[1])
        (pair,), _ = find_pairs(tmp_path)
        assert read_size(pair) == (expected.shape[:2], size)
        np.testing.assert_array_equal(np.array(read_capture(pair).image), expected)
    np.save(tmp_path / "a.npy", capture(size=(9, 16))[1])
    for read in (read_size, read_capture):
        with pytest.raises(BadFile, match="rgb is 8x16, xyz is 9x16"):
            read(pair)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_tiff_lies_as_it_is_stored_where_no_points_say_otherwise(tmp_path, orientation):
    rgb = capture()[0]
    tags = {0x0112: orientation}
    Image.fromarray(rgb).save(tmp_path / "a.tif", tiffinfo=tags)
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.tif"), rgb)


def test_pillows_bomb_guard_holds(tmp_path, monkeypatch):
    Image.new("L", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadFile, match="exceeds limit"):
        read_rgb(tmp_path / "a.png")


def changed(xyz, **how):
    xyz = xyz.astype(how.get("dtype", np.float32)) * how.get("times", 1)
    return how.get("then", lambda x: x)(xyz)


@pytest.mark.parametrize(
    "how, words",
    [
        ({"times": 1e-3}, "looks like metres: the median Z is 1"),
        ({"times": -1}, "Z is negative"),
        ({"times": 0}, "no valid pixel"),
        ({"times": np.nan}, "no valid pixel"),
        ({"then": lambda x: np.nan_to_num(x).astype(np.int32)}, "dtype is int32"),
        ({"then": lambda x: np.zeros(x.shape, np.uint8)}, "dtype is uint8"),
        ({"then": lambda x: x[:, :, :2]}, r"shape is \(30, 40, 2\); expected \(H, W, 3\)"),
        ({"then": lambda x: x[0, 0]}, r"shape is \(3,\)"),
        ({"then": lambda x: np.moveaxis(x, 2, 0)[:2]}, r"shape is \(2, 30, 40\)"),
        ({"then": lambda x: np.nan_to_num(x[:, :, 2]).astype(np.uint8)}, "dtype is uint8"),
        ({"then": lambda x: x[:0]}, "shape is"),
        ({"dtype": object}, "pickled"),
        ({"then": lambda x: x.astype(np.complex64)}, "dtype is complex64"),
    ],
)
def test_point_maps_that_cannot_be_used_are_refused_with_the_reason(tmp_path, how, words):
    path = tmp_path / "a.npy"
    np.save(path, changed(capture()[1], **how), allow_pickle=True)
    with pytest.raises(BadFile, match=f"^{re.escape(str(path))}: .*{words}"):
        read_xyz(path)


@pytest.mark.parametrize(
    "how",
    [
        {"dtype": np.float64},
        {"dtype": np.longdouble},
        {"dtype": ">f4"},
        {"then": np.asfortranarray},
        {"then": lambda x: np.moveaxis(x, 2, 0)},
        {"then": lambda x: np.concatenate([x, x * 0 + 7], axis=2)},
    ],
)
def test_other_float_layouts_read_the_same(tmp_path, how):
    xyz = capture()[1]
    np.save(tmp_path / "a.npy", changed(xyz, **how))
    found = read_xyz(tmp_path / "a.npy")
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, xyz)


def test_half_precision_points_are_read_to_its_own_exactness(tmp_path):
    xyz = capture()[1]
    np.save(tmp_path / "a.npy", xyz.astype(">f2"))
    np.testing.assert_array_equal(read_xyz(tmp_path / "a.npy"), xyz.astype(np.float16))


@pytest.mark.parametrize("dtype", [np.float32, np.uint16, ">i4"])
@pytest.mark.parametrize("axis", [(), (2,)])
def test_depth_alone_has_z_and_no_x_and_y_where_no_camera_is_known(tmp_path, dtype, axis):
    z = np.nan_to_num(capture()[1][:, :, 2]).astype(dtype)
    np.save(tmp_path / "a.npy", np.expand_dims(z, axis))
    xyz = read_xyz(tmp_path / "a.npy")
    np.testing.assert_array_equal(xyz[:, :, 2], z)
    assert np.isnan(xyz[:, :, :2]).all()


def test_a_known_camera_gives_depth_its_x_and_y(tmp_path):
    xyz = capture()[1]
    np.save(tmp_path / "a.npy", xyz[:, :, 2] / 1000)  # metres
    for options, camera in (
        (ReadOptions(unit_mm=1000, intrinsics=(50, 60, 21, 14)), None),
        (ReadOptions(unit_mm=1000), {"fx": 50, "fy": 60, "cx": 20.5, "cy": 13.5}),
    ):
        path = tmp_path / "intrinsics.json"
        path.write_text(json.dumps(camera))
        found = read_point_map(tmp_path / "a.npy", None, options, camera and path).xyz
        np.testing.assert_allclose(found, xyz, rtol=1e-5, atol=1e-2)


def test_points_below_the_lowest_snr_do_not_count():
    xyz = np.full((4, 5, 3), 900, np.float32) + np.arange(20).reshape(4, 5, 1)
    stored = StoredPoints(xyz, snr=np.arange(20, dtype=np.float32).reshape(4, 5))
    found = to_point_map(Path("a.zdf"), stored, ReadOptions(min_snr=7))
    assert np.isnan(found.xyz.reshape(20, 3)[:7]).all()
    np.testing.assert_array_equal(found.xyz.reshape(20, 3)[7:], xyz.reshape(20, 3)[7:])
    assert found.no_value == {"SNR below 7": 7}


@pytest.mark.parametrize("image", [(30, 40), (60, 80), (15, 20)])
def test_image_and_points_may_differ_by_a_whole_factor_and_keep_their_sizes(tmp_path, image):
    write_capture(tmp_path / "a.png", tmp_path / "a.npy")
    Image.new("RGB", image[::-1]).save(tmp_path / "a.png")
    (pair,), _ = find_pairs(tmp_path)
    found = read_capture(pair)
    assert (found.image.size[::-1], found.xyz.shape[:2]) == (image, (30, 40))
    assert read_size(pair) == (image, (30, 40))


def test_truncated_archived_and_empty_point_maps_are_refused(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, capture()[1])
    whole = path.read_bytes()
    for content, words in (
        (whole[:-1], "truncated"),
        (whole[:40], "that can be read"),
        (b"", "starts with"),
        (b"P6 nonsense", "starts with"),
    ):
        path.write_bytes(content)
        with pytest.raises(BadFile, match=words):
            read_xyz(path)
    with open(path, "wb") as file:
        np.savez(file, xyz=capture()[1])
    with pytest.raises(BadFile, match=r"\.npz archive"):
        read_xyz(path)


def test_sizes_that_differ_are_seen_from_the_headers(tmp_path):
    write_capture(tmp_path / "a.png", tmp_path / "a.npy")
    Image.new("RGB", (41, 30)).save(tmp_path / "a.png")
    (pair,), _ = find_pairs(tmp_path)
    for read in (read_size, read_capture):
        with pytest.raises(BadFile, match="rgb is 30x41, xyz is 30x40"):
            read(pair)
    assert read_size(pair, ReadOptions(registered=True)) == ((30, 41), (30, 40))


def hostile(folder):
    return (
        sorted((HOSTILE / folder).iterdir())
        if HOSTILE.is_dir()
        else [pytest.param(None, marks=pytest.mark.skip("../shared/hostile is absent"))]
    )


BROKEN = (
    "broken_data",
    "12in16bit",
    "i_trns",
    "oom-",
    "seek_too",
    "chessboard_GRAY_U16",
    "truncated_",
    "unknown_compression",
)


@pytest.mark.parametrize("path", hostile("images"), ids=lambda p: getattr(p, "name", "absent"))
def test_hostile_images_are_read_or_refused_in_one_line(path):
    if not any(path.name.startswith(b) or b in path.name for b in BROKEN):
        rgb = read_rgb(path)
        assert rgb.ndim == 3
        assert rgb.shape[2] == 3
        assert rgb.dtype == np.uint8
        return
    with pytest.raises(BadFile) as caught:
        read_rgb(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "expected" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", hostile("npy"), ids=lambda p: getattr(p, "name", "absent"))
def test_hostile_arrays_are_refused_in_one_line(path):
    with pytest.raises(BadFile) as caught:
        read_xyz(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "expected" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_of_8_bits_and_palettes_count_as_they_are_and_others_are_refused(tmp_path):
    path = tmp_path / "a_grooves.png"
    label = write_label(path, dtype=np.uint8)
    assert np.array_equal(read_label(path, (30, 40)), label)
    image = Image.fromarray(label, "P")
    image.putpalette([255, 0, 0] * 256)
    image.save(path)
    assert np.array_equal(read_label(path, (30, 40)), label)
    with pytest.raises(BadFile, match="30x40; expected 15x20"):
        read_label(path, (15, 20))
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(path)
    with pytest.raises(BadFile, match="mode is RGB; expected a grey PNG"):
        read_label(path, (30, 40))
    path.write_bytes(b"no picture")
    with pytest.raises(BadFile, match="cannot be read as a groove label"):
        read_label(path, (30, 40))


def test_silencing_suppresses_the_warning_of_a_readable_file_of_python_2(tmp_path):
    write_python_2_npy(tmp_path / "a.npy", np.full((1, 2, 3), 1000, "<f4"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_xyz(tmp_path / "a.npy")
    assert "Python 2" in str(caught[0].message)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        silence_image_warnings()
        read_xyz(tmp_path / "a.npy")
    assert not caught


def test_importing_the_readers_changes_no_filter_and_no_logger():
    code = (
        "import logging, warnings; import numpy, PIL.Image; before = list(warnings.filters)\n"
        "import depthdist.captures.readers, depthdist.captures.near_duplicates\n"
        "assert warnings.filters == before and not logging.getLogger('PIL').handlers"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
