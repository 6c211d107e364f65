"""Files of points: what other libraries write is read to the bit, what is wrong is one line."""

import sys
import types
from io import BytesIO
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np
import pytest
from helpers.captures import capture
from helpers.point_files import WRITERS, vertices, write_pcd, write_ply, write_zdf
from PIL import Image
from plyfile import PlyData, PlyElement

from depthdist.captures.formats import zdf
from depthdist.captures.formats.registry import FORMATS, format_of
from depthdist.captures.layouts import CapturePair
from depthdist.captures.read_options import ReadOptions
from depthdist.captures.readers import read_capture, read_image, read_point_map, read_size
from depthdist.core.errors import BadFile

SIZE = (30, 40)
RGB, XYZ = capture()
SNR = np.arange(1200, dtype=np.float32).reshape(SIZE)


def written(folder: Path, name: str) -> Path:
    WRITERS[name](folder / name, RGB, XYZ, SNR)
    return folder / name


def alone(path: Path) -> CapturePair:
    return CapturePair(path.stem, str(path.parent), path.name, path.name)


def refusal(path: Path, read=lambda path: read_point_map(path)) -> str:
    with pytest.raises(BadFile) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_every_format_with_colors_is_written_by_another_library_here():
    suffixes = {Path(name).suffix for name in WRITERS}
    assert suffixes >= {suffix for form in FORMATS if form.has_rgb for suffix in form.suffixes}


@pytest.mark.parametrize("name", WRITERS)
def test_points_colors_and_snr_are_those_that_were_written(tmp_path, name):
    path = written(tmp_path, name)
    assert format_of(path).read_size(path) == SIZE
    stored = format_of(path).read(path, path.read_bytes())
    measured = np.isfinite(XYZ[:, :, 2])
    found = read_point_map(path).xyz
    assert np.array_equal(np.isfinite(found[:, :, 2]) & (found[:, :, 2] > 0), measured)
    np.testing.assert_array_equal(found[measured], XYZ[measured])
    assert np.array_equal(stored.rgb[measured], RGB[measured])
    assert np.array_equal(stored.snr[measured], SNR[measured])
    assert np.array_equal(np.asarray(read_image(path, None, SIZE))[measured], RGB[measured])


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_with_colors_is_a_capture_by_itself(tmp_path, name):
    pair = alone(written(tmp_path, name))
    assert read_size(pair) == (SIZE, SIZE)
    found = read_capture(pair, options=ReadOptions(min_snr=600))
    assert found.image.size == SIZE[::-1]
    below = np.isfinite(XYZ[:, :, 2]) & (SNR < 600)
    assert np.isnan(found.xyz[below]).all()
    assert found.no_value["SNR below 600"] == below.sum()
    assert np.isfinite(found.xyz[(SNR >= 600) & np.isfinite(XYZ[:, :, 2])]).all()


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_is_cut_off_anywhere_is_one_line(tmp_path, name):
    path = written(tmp_path, name)
    content = path.read_bytes()
    for length in (0, 3, 30, 300, len(content) // 2, len(content) - 400):
        path.write_bytes(content[:length])
        refusal(path)
        try:
            format_of(path).read_size(path)
        except BadFile as err:
            assert "\n" not in str(err)


@pytest.mark.parametrize("name", WRITERS)
def test_nan_everywhere_and_metres_are_refused_as_in_a_npy(tmp_path, name):
    path = tmp_path / name
    if "grid" not in name:  # a grid without a single vertex is refused for that
        WRITERS[name](path, RGB, XYZ * np.nan)
        assert "no valid pixel: Z is NaN" in refusal(path)
    WRITERS[name](path, RGB, XYZ / 1000)
    assert "looks like metres" in refusal(path)


@pytest.mark.parametrize("name", ["plain.npz", "little.ply", "binary.pcd", "plain.zdf", "a.npy"])
def test_without_snr_the_lowest_snr_is_one_line(tmp_path, name):
    path = tmp_path / name
    if name == "a.npy":
        np.save(path, XYZ)
    else:
        WRITERS[name](path, RGB, XYZ)
    read = lambda path: read_point_map(path, options=ReadOptions(min_snr=7))  # noqa: E731
    assert "has no SNR or confidence, which --min-snr 7 asks for" in refusal(path, read)


# ------------------------------------------------------------------------------------------ lists


def as_list(folder: Path, suffix: str) -> Path:
    path = folder / f"list{suffix}"
    write_ply(path, RGB, XYZ, SNR) if suffix == ".ply" else write_pcd(
        path, RGB, XYZ, SNR, organised=False
    )
    return path


@pytest.mark.parametrize("suffix", [".ply", ".pcd"])
@pytest.mark.parametrize("image", [(30, 40), (60, 80), (15, 20), (10, 40)])
def test_a_list_of_points_has_the_rows_of_its_image(tmp_path, suffix, image):
    path = as_list(tmp_path, suffix)
    Image.new("RGB", image[::-1]).save(tmp_path / "a.png")
    pair = CapturePair("a", "", str(tmp_path / "a.png"), str(path))
    if image == (10, 40):
        for read in (read_size, read_capture):
            with pytest.raises(BadFile, match=r"1,200 points without rows.* has 10x40 pixels"):
                read(pair)
        return
    assert read_size(pair) == (image, SIZE)
    found = read_capture(pair, options=ReadOptions(min_snr=100)).xyz
    assert np.array_equal(found[SNR >= 100], XYZ[SNR >= 100], equal_nan=True)
    assert np.isnan(found[SNR < 100]).all()


@pytest.mark.parametrize("suffix", [".ply", ".pcd"])
def test_a_list_of_points_without_an_image_is_one_line(tmp_path, suffix):
    path = as_list(tmp_path, suffix)
    for read in (read_size, read_capture):
        text = refusal(path, lambda path, read=read: read(alone(path)))
        assert "is a list of 1,200 points without rows, and there is no image beside it" in text


def test_a_size_in_a_ply_that_is_not_its_number_of_vertices_is_not_believed(tmp_path):
    kept = vertices(RGB, XYZ)[np.isfinite(XYZ[:, :, 2]).ravel()]
    path = tmp_path / "a.ply"
    info = ["num_cols 40", "num_rows 30"]
    PlyData([PlyElement.describe(kept, "vertex")], obj_info=info).write(str(path))
    assert f"list of {len(kept):,} points" in refusal(path, lambda path: read_size(alone(path)))


# --------------------------------------------------------------------------------- what may differ


def test_colors_are_found_by_their_common_names_and_as_floats(tmp_path):
    path = tmp_path / "a.ply"
    records = vertices(RGB, XYZ)
    comment = [f"size: width {SIZE[1]}, height {SIZE[0]}, by M\u00fcller"]
    for names, colors in (
        (("diffuse_red", "diffuse_green", "diffuse_blue"), RGB),
        (("r", "g", "b"), (RGB / 255).astype(np.float32)),
    ):
        types = [(name, colors.dtype) for name in names]
        found = np.empty(len(records), records.dtype.descr[:3] + types)
        for name in "xyz":
            found[name] = records[name]
        for number, name in enumerate(names):
            found[name] = colors[:, :, number].ravel()
        ply = PlyData([PlyElement.describe(found, "vertex")], comments=["COMMENT"], byte_order="<")
        file = BytesIO()
        ply.write(file)
        content = file.getvalue().replace(b"COMMENT", comment[0].encode("latin-1"), 1)
        path.write_bytes(content)
        stored = format_of(path).read(path, content)
        np.testing.assert_array_equal(stored.rgb, RGB)


def test_colors_of_a_pcd_in_text_are_numbers_of_24_bits(tmp_path):
    """As in PCL's description of the format, where a float is that number, not its bits."""
    path = tmp_path / "a.pcd"
    header = (
        "# .PCD v.7\nVERSION .7\nFIELDS x y z rgb\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\n"
        "WIDTH 2\nHEIGHT 2\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS 4\nDATA ascii\n"
    )
    path.write_text(header + "1 2 900 4.2108e+06\nnan nan nan 0\n3 4 901 255\n5 6 902 65280\n")
    stored = format_of(path).read(path, path.read_bytes())
    colors = [[64, 64, 112], [0, 0, 0], [0, 0, 255], [0, 255, 0]]  # 0x404080 with five digits left
    assert stored.rgb.reshape(4, 3).tolist() == colors
    assert stored.values[:, :, 2].ravel().tolist()[2:] == [901, 902]


def test_a_big_endian_float64_ply_and_depth_in_a_npz_are_read(tmp_path):
    records = vertices(RGB, XYZ)
    wide = np.empty(len(records), [(name, "f8") for name in "xyz"])
    for name in "xyz":
        wide[name] = records[name]
    info = ["num_cols 40", "num_rows 30"]
    ply = PlyData([PlyElement.describe(wide, "vertex")], byte_order=">", obj_info=info)
    ply.write(str(tmp_path / "a.ply"))
    assert np.array_equal(read_point_map(tmp_path / "a.ply").xyz, XYZ, equal_nan=True)
    depth = np.nan_to_num(XYZ[:, :, 2]).astype(np.uint16)
    np.savez(tmp_path / "b.npz", Depth=depth, confidence=SNR[:, :, None])
    found = read_point_map(tmp_path / "b.npz", options=ReadOptions(min_snr=600)).xyz
    assert np.array_equal(found[15:, :, 2], depth[15:])
    assert np.isnan(found[:15]).all()


@pytest.mark.parametrize("name", ["plain.npz", "binary.pcd", "little.ply", "plain.zdf"])
def test_a_file_without_colors_and_image_is_one_line(tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".npz":
        np.savez(path, points=XYZ)
    elif path.suffix == ".zdf":
        with h5py.File(path, "w") as file:
            file["data/pointcloud"] = XYZ
    else:
        WRITERS[name](path, RGB, XYZ)
        path.write_bytes(path.read_bytes().replace(b"rgb", b"abc", 1).replace(b" red", b" tea", 1))
    assert "has no colors and no image" in refusal(path, lambda path: read_capture(alone(path)))
    assert np.array_equal(read_point_map(path).xyz, XYZ, equal_nan=True)


# ---------------------------------------------------------------------------------------- hostile


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": XYZ, "b": SNR}, "holds a, b; expected points as one of pointcloud"),
        ({}, "holds no array"),
        ({"xyz": XYZ.astype(object)}, "xyz holds pickled Python objects, which are never loaded"),
        ({"points": XYZ[:, :, :2]}, "points: shape is (30, 40, 2); expected (H, W, 3)"),
        ({"depth": SNR.astype(np.uint8)}, "depth: dtype is uint8"),
        ({"xyz": XYZ, "rgb": RGB[:, :, 0]}, "colors are uint8 of shape (30, 40)"),
        ({"xyz": XYZ, "rgb": RGB * 1.0}, "colors are float64 of shape (30, 40, 3)"),
        ({"xyz": XYZ, "snr": SNR[:7]}, "snr is float32 of shape (7, 40)"),
        ({"xyz": XYZ, "snr": SNR.astype("U4")}, "snr is <U4"),
    ],
)
def test_a_npz_of_something_else_names_what_it_found(tmp_path, arrays, words):
    np.savez(tmp_path / "a.npz", **arrays)
    assert words in refusal(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("data/pointcloud", XYZ[:, :, :2], "data/pointcloud: shape is (30, 40, 2)"),
        ("data/pointcloud", np.nan_to_num(XYZ).astype(np.int32), "data/pointcloud: dtype is int32"),
        ("data/pointcloud", 7.0, "data/pointcloud: shape is ()"),
        ("data/pointcloud", None, "holds data/contrast, data/rgba_image; expected points"),
        ("data/rgba_image", RGB.astype(np.int16), "colors are int16"),
        ("other/SNR", SNR[0], "other/SNR is float32 of shape (40,)"),
    ],
)
def test_a_zdf_of_something_else_names_what_it_found(tmp_path, path, value, words):
    write_zdf(tmp_path / "a.zdf", RGB, XYZ)
    with h5py.File(tmp_path / "a.zdf", "a") as file:
        if path in file:
            del file[path]
        if value is not None:
            with np.errstate(invalid="ignore"):
                file[path] = value
    assert words in refusal(tmp_path / "a.zdf")


HUGE = {
    "little.ply": (b"vertex 1200", b"vertex 999999999999", "truncated"),
    "big.ply": (b"vertex 1200", b"vertex 99999999999999999", "expected a number of elements"),
    "ascii.ply": (b"vertex 1200", b"vertex 120000000", "truncated"),
    "grid.ply": (b"range_grid 1200", b"range_grid 1200000000", "truncated"),
    "binary.pcd": (b"HEIGHT 30", b"HEIGHT 3000000000", "1,200 points, 3,000,000,000 rows of 40"),
    "ascii.pcd": (b"POINTS 1200", b"POINTS 120000000", "120,000,000 points, 30 rows of 40"),
    "packed.pcd": (b"SIZE 4 4 4 4 4", b"SIZE 8 8 8 8 8", "unpacks"),
    "plain.npz": (b"(30, 40, 3), }    ", b"(300000, 40, 3), }", "xyz is truncated"),
}


@pytest.mark.parametrize("name", HUGE)
def test_a_size_that_the_file_cannot_hold_is_one_line_and_takes_no_memory(tmp_path, name):
    path = written(tmp_path, name)
    old, new, words = HUGE[name]
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    assert words in refusal(path)
    assert words in refusal(path, format_of(path).read_size)


def test_datasets_without_their_numbers_are_not_made_up(tmp_path):
    for shape in ((60000, 60000, 3), (300, 300, 3)):
        with h5py.File(tmp_path / "a.zdf", "w") as file:
            file.create_dataset("data/pointcloud", shape, "f4", chunks=(100, 100, 3))
        text = refusal(tmp_path / "a.zdf")
        assert ("67,108,864 pixels at most" in text) == (shape[0] == 60000)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("little.ply", (b"property float x", b"property float u"), "has no x, but u, y, z"),
        ("little.ply", (b"element vertex", b"element points"), "holds points; expected vertices"),
        ("little.ply", (b"ply\n", b"ply "), "expected a .ply file with its end_header"),
        ("little.ply", (b"float x", b"list uchar int x"), "vertices have the list x"),
        ("ascii.ply", (b"end_header\n", b"end_header\nabc "), "its vertices cannot be read"),
        ("grid.ply", (b"1200\nproperty list uchar", b"1200\nproperty list int"), "counts as int32"),
        ("binary.pcd", (b"FIELDS x", b"FIELDS u"), "has no x, but u, y, z, rgb"),
        ("binary.pcd", (b"DATA binary", b"DATA gzip"), "no .pcd file's (data: "),
        ("binary.pcd", (b"TYPE F F", b"TYPE Q F"), "no .pcd file's (type.0: "),
        ("packed.pcd", (b"POINTS 1200", b"POINTS 1100"), "1,100 points, 30 rows of 40"),
    ],
)
def test_a_header_of_something_else_names_what_it_found(tmp_path, name, change, words):
    path = written(tmp_path, name)
    content = path.read_bytes()
    assert change[0] in content
    path.write_bytes(content.replace(*change, 1))
    assert words in refusal(path)


# -------------------------------------------------------------------------------------- Zivid's SDK


class Cloud:
    """What the SDK's point cloud has, for one that a test gives."""

    def __init__(self, arrays):
        self.arrays = arrays
        self.height, self.width = SIZE

    def copy_data(self, name):
        if name not in self.arrays:
            raise ValueError(f"Unsupported data format: {name}")
        return self.arrays[name]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.arrays = {}


class Frame(Cloud):
    """What the SDK's frame has."""

    files: ClassVar[dict] = {}

    def __init__(self, path):
        if path not in self.files:
            raise RuntimeError("Failed to open file\nas a frame")
        super().__init__(self.files[path])

    def point_cloud(self):
        return Cloud(self.arrays)


@pytest.fixture
def sdk(monkeypatch):
    """A stand-in with the interface that Zivid's samples use; the SDK itself needs a GPU."""
    package = types.SimpleNamespace(Application=object, Frame=Frame)
    monkeypatch.setitem(sys.modules, "zivid", package)
    zdf._start_sdk.cache_clear()
    yield package
    zdf._start_sdk.cache_clear()


@pytest.mark.parametrize("colors", ["rgba_srgb", "rgba"])
def test_the_sdk_reads_a_zdf_that_is_no_hdf5(tmp_path, sdk, colors, monkeypatch):
    path = tmp_path / "a.zdf"
    path.write_bytes(b"a later format")
    assert "Zivid's SDK says: Failed to open file as a frame" in refusal(path)
    rgba = np.dstack([RGB, RGB[:, :, 0]])
    monkeypatch.setitem(Frame.files, path, {"xyz": XYZ, colors: rgba, "snr": SNR})
    assert read_size(alone(path)) == (SIZE, SIZE)
    found = read_capture(alone(path), options=ReadOptions(min_snr=5))
    assert np.array_equal(np.asarray(found.image), RGB)
    assert np.array_equal(found.xyz[1:], XYZ[1:], equal_nan=True)
    assert np.isnan(found.xyz[0, :5]).all()


def test_without_a_working_sdk_hdf5_is_read_and_others_say_why_not(tmp_path, sdk):
    def fail():
        raise RuntimeError("no OpenCL device")

    sdk.Application = fail
    assert np.array_equal(read_point_map(written(tmp_path, "plain.zdf")).xyz, XYZ, equal_nan=True)
    path = tmp_path / "b.zdf"
    path.write_bytes(b"a later format")
    assert "is no HDF5 file, and Zivid's SDK does not start: no OpenCL device" in refusal(path)
    assert "no OpenCL device" in refusal(path, format_of(path).read_size)
