"""Every layout that is found without being told: pairs, unit, camera, split, points in mm."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers.captures import capture, write_capture
from helpers.depth_images import write_depth, write_image, write_pair
from helpers.point_files import write_ply, write_zdf
from PIL import Image

from depthdist.captures import capture_file
from depthdist.captures.camera_files import read_intrinsics
from depthdist.captures.formats.registry import BY_SUFFIX
from depthdist.captures.formats.stored_points import PointFormat, StoredPoints
from depthdist.captures.layouts import (
    LAYOUTS,
    find_captures,
    find_captures_with,
    list_images,
    search_folder,
)
from depthdist.captures.read_options import ReadOptions
from depthdist.captures.readers import read_capture, read_point_map, read_size
from depthdist.captures.reading_notes import reading_notes
from depthdist.core.errors import BadFile
from depthdist.geometry.depth_range import DepthRange
from depthdist.inference.result_files import encode_ply, write_png
from depthdist.shards.cached_datasets import holds_captures

SIZE = (30, 40)
FX_FY_CX_CY = (50, 60, 20.5, 13.5)  # of helpers.captures.capture, from the middle of a pixel


def write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def by_stem(root):
    write_pair(root, "day1/rgb/a.jpg", "day1/depth/a.png", 0)
    write_pair(root, "day1/rgb/b.jpg", "day1/depth/b.png", 1)
    fx, fy, cx, cy = FX_FY_CX_CY
    write_json(root / "day1/intrinsics.json", {"fx": fx, "fy": fy, "cx": cx, "cy": cy})
    return ["day1/a", "day1/b"]


def open3d_recorder(root):
    for i in range(2):
        write_pair(root, f"color/{i:06d}.jpg", f"depth/{i:06d}.png", i)
    fx, fy, cx, cy = FX_FY_CX_CY
    matrix = [fx, 0, 0, 0, fy, 0, cx, cy, 1]
    write_json(root / "camera_intrinsic.json",
               {"width": 40, "height": 30, "intrinsic_matrix": matrix})  # fmt: skip
    return ["000000", "000001"]


def camera_in_names(root):
    for i in range(2):
        write_pair(root, f"frame-{i:06d}.color.png", f"frame-{i:06d}.depth.png", i)
        (root / f"frame-{i:06d}.pose.txt").write_text("1 0 0 0\n" * 4)
    fx, fy, cx, cy = FX_FY_CX_CY
    (root / "camera-intrinsics.txt").write_text(f"{fx} 0 {cx}\n0 {fy} {cy}\n0 0 1\n")
    return ["frame-000000", "frame-000001"]


def nyu_sync(root):
    for i in range(2):
        write_pair(root, f"scene/rgb_{i:05d}.jpg", f"scene/sync_depth_{i:05d}.png", i)
    fx, fy, cx, cy = FX_FY_CX_CY
    text = (
        f"camera_matrix:\n  rows: 3\n  cols: 3\n  data: [{fx}, 0, {cx}, 0, {fy}, {cy}, 0, 0, 1]\n"
    )
    (root / "camera_info.yaml").write_text(f"image_width: 40\nimage_height: 30\n{text}")
    return ["scene/00000", "scene/00001"]


def realsense_viewer(root):
    fx, fy, cx, cy = FX_FY_CX_CY
    for i in (7, 8):
        write_pair(root, f"run_Color_{i}.png", f"run_Depth_{i}.png", i - 7)
        lines = f"Stream,Depth\nFx,{fx}\nFy,{fy}\nPPx,{cx}\nPPy,{cy}\n"
        lines += "Resolution x,40\nResolution y,30\n"
        (root / f"run_Depth_metadata_{i}.csv").write_text(lines)
    return ["run_7", "run_8"]


def by_numbers(root):
    for i in (7, 12):
        write_pair(root, f"images/left{i:04d}.png", f"depth/d{i}.tif", i != 7)
    write_json(root / "K.json", {"K": [list(row) for row in camera_rows()]})
    return ["left0007", "left0012"]


def tum(root):
    times = ["1305031102.100000", "1305031102.140000"]
    for i, time in enumerate(times):
        write_pair(root, f"rgb/{time}.png", f"depth/1305031102.1{i * 4}1{i}00.png", i, 0.2)
    write_image(root / "rgb/1305031109.500000.png")
    listed = sorted(p.stem for p in (root / "rgb").iterdir())
    (root / "rgb.txt").write_text(
        "# color images\n" + "".join(f"{t} rgb/{t}.png\n" for t in listed)
    )
    depths = sorted(p.stem for p in (root / "depth").iterdir())
    (root / "depth.txt").write_text("".join(f"{t} depth/{t}.png\n" for t in depths))
    fx, fy, cx, cy = FX_FY_CX_CY
    (root / "intrinsics.txt").write_text(f"{fx} {fy} {cx} {cy}\n")
    return times


def times_in_names(root):
    times = [1694012345100, 1694012345140]  # ms
    for i, time in enumerate(times):
        write_pair(root, f"color/{time}.bmp", f"depth/{time + 3}.tiff", i)
    fx, fy, cx, cy = FX_FY_CX_CY
    depth = {"fx": fx, "fy": fy, "ppx": cx, "ppy": cy}
    write_json(root / "calibration.json", {"depth": depth, "color": {"fx": 1}})
    return [str(time) for time in times]


def ultralytics(root):
    for i, name in enumerate(("train/a", "val/b")):
        write_pair(root, f"images/{name}.jpg", f"depth/{name}.png", i, 0.25)
    yaml = "path: somewhere/else\ntrain: images/train\nval: images/val\ndepth_scale: 4000\n"
    (root / "data.yaml").write_text(yaml + "nc: 1\nnames: {0: depth}\n")
    fx, fy, cx, cy = FX_FY_CX_CY
    write_json(root / "camera.json", {"camera": {"f_x": fx, "f_y": fy, "c_x": cx, "c_y": cy}})
    return ["train/a", "val/b"]


def camera_rows():
    fx, fy, cx, cy = FX_FY_CX_CY
    return (fx, 0, cx), (0, fy, cy), (0, 0, 1)


FOLDERS = {
    by_stem: "two_folders",
    open3d_recorder: "two_folders",
    camera_in_names: "words_apart",
    nyu_sync: "words_apart",
    realsense_viewer: "words_apart",
    by_numbers: "by_number",
    tum: "tum_sequence",
    times_in_names: "by_time",
    ultralytics: "ultralytics_folder",
}


@pytest.mark.parametrize("write", FOLDERS, ids=lambda write: write.__name__)
def test_captures_are_found_with_unit_camera_and_split_and_read_in_mm(tmp_path, write):
    stems = write(tmp_path)
    found = search_folder(tmp_path)
    assert [pair.stem for pair in found.pairs] == stems
    assert found.rejects == []
    for seed, pair in enumerate(found.pairs):
        assert read_size(pair) == (SIZE, SIZE)
        read = read_capture(pair)
        rgb, xyz = capture(seed)
        step = pair.unit_mm or 1.0
        measured = np.isfinite(xyz[:, :, 2])
        np.testing.assert_allclose(read.xyz[measured], xyz[measured], atol=0.51 * step, rtol=0)
        assert not (read.xyz[:, :, 2][~measured] > 0).any()
        if pair.rgb.suffix != ".jpg":
            np.testing.assert_array_equal(np.array(read.image), rgb)
    units = {tum: {0.2}, ultralytics: {0.25}}.get(write, {None})
    assert {pair.unit_mm for pair in found.pairs} == units
    splits = ["train", "val"] if write is ultralytics else [None, None]
    assert [pair.split for pair in found.pairs] == splits
    images = [pair.rgb for pair in found.pairs]
    extra = [tmp_path / "rgb/1305031109.500000.png"] if write is tum else []
    assert list_images(tmp_path) == sorted(images + extra)
    if write is not realsense_viewer:
        around = find_captures(images)
        assert [around[pair.rgb].xyz for pair in found.pairs] == [p.xyz for p in found.pairs]
        assert all(pair.camera for pair in around.values())


def test_every_layout_is_tried():
    tried = {"same_name", "same_folder", "colored_points", *FOLDERS.values()}
    assert {layout.__name__ for layout in LAYOUTS} == tried


TOY = PointFormat(  # as a Zivid file is: points and colors
    "toy", (".toy",),
    lambda path, content: StoredPoints(capture(len(content))[1], rgb=capture(len(content))[0]),
    lambda path: SIZE, has_rgb=True,
)  # fmt: skip


def test_a_file_of_colored_points_is_a_capture_unless_an_image_lies_beside_it(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(BY_SUFFIX, ".toy", TOY)
    (tmp_path / "alone.toy").write_bytes(b"1")
    (tmp_path / "both.toy").write_bytes(b"22")
    write_image(tmp_path / "both.png", 2)
    found = search_folder(tmp_path)
    assert [(p.stem, p.rgb.name, p.xyz.name) for p in found.pairs] == [
        ("alone", "alone.toy", "alone.toy"),
        ("both", "both.png", "both.toy"),
    ]
    assert found.rejects == []
    np.testing.assert_array_equal(np.array(read_capture(found.pairs[0]).image), capture(1)[0])
    assert list_images(tmp_path) == [tmp_path / "alone.toy", tmp_path / "both.png"]
    assert find_captures([tmp_path / "alone.toy"])[tmp_path / "alone.toy"].stem.endswith("alone")


def test_images_in_folders_of_depth_are_never_images_to_predict(tmp_path):
    write_pair(tmp_path, "rgb/a.jpg", "depth/a.png")
    write_image(tmp_path / "depth/a_depth_color.png")
    write_image(tmp_path / "rgb/b.jpg")
    write_depth(tmp_path / "depth/c.png")
    found = search_folder(tmp_path)
    assert list_images(tmp_path) == [tmp_path / "rgb/a.jpg", tmp_path / "rgb/b.jpg"]
    assert [pair.stem for pair in found.pairs] == ["a"]
    assert found.notes == [
        "left out: 1 drawing (depth/a_depth_color.png) of depth, of 8 bits a channel"
    ]
    assert {r.path.name: r.reason.split(";")[0] for r in found.rejects} == {
        "b.jpg": "a picture without its point cloud",
        "c.png": "a point cloud without its picture",
    }
    assert find_captures_with(tmp_path / "depth/a.png")[0].rgb == tmp_path / "rgb/a.jpg"
    assert find_captures_with(tmp_path / "depth/c.png") == []


def test_a_capture_is_read_by_either_of_its_files_with_its_layouts_unit(tmp_path):
    ultralytics(tmp_path)
    for name in ("images/train/a.jpg", "depth/train/a.png"):
        found = capture_file.read_capture(tmp_path / name)
        expected = capture()[1]
        np.testing.assert_array_equal(found.mask, np.isfinite(expected[:, :, 2]))
        np.testing.assert_allclose(found.points_mm, expected, atol=0.13, rtol=0)
    write_pair(tmp_path / "m", "rgb/b.png", "depth/b.tiff", 1, unit_mm=1000)
    with pytest.raises(ValueError, match="unit 1000"):
        capture_file.read_capture(tmp_path / "m/depth/b.tiff")
    read = capture_file.read_capture(
        tmp_path / "m/depth/b.tiff", unit=1000, intrinsics=(50, 60, 21, 14)
    )
    np.testing.assert_allclose(read.points_mm, capture(1)[1], rtol=1e-5, atol=1e-2)


def test_points_are_taken_before_depth_images_of_the_same_capture(tmp_path):
    write_capture(tmp_path / "images/a_color.png", tmp_path / "depth/a_rawDepth.npy")
    write_depth(tmp_path / "depth/a_depth.png")
    found = search_folder(tmp_path)
    assert [(pair.stem, pair.xyz.name) for pair in found.pairs] == [("a", "a_rawDepth.npy")]
    assert found.rejects == []
    assert found.notes == [
        "left out: 1 file (depth/a_depth.png) of points or depth beside others of the same captures"
    ]
    around = find_captures([tmp_path / "images/a_color.png"])
    assert [pair.xyz.name for pair in around.values()] == ["a_rawDepth.npy"]


def test_of_several_formats_of_one_capture_one_is_taken(tmp_path):
    rgb, xyz = capture()
    write_image(tmp_path / "a.png")
    write_ply(tmp_path / "a.ply", rgb, xyz)
    write_zdf(tmp_path / "a.zdf", rgb, xyz)
    for folder in ("alone", "two/zdf"):
        (tmp_path / folder).mkdir(parents=True)
    write_ply(tmp_path / "alone/b.ply", rgb, xyz)
    write_zdf(tmp_path / "alone/b.zdf", rgb, xyz)
    write_pair(tmp_path / "two", "images/c.png", "depth/c.png")
    write_zdf(tmp_path / "two/zdf/c.zdf", rgb, xyz)
    np.savez(tmp_path / "a.npz", K=np.eye(3))  # no points: a camera of somebody's own
    found = search_folder(tmp_path)
    assert [(pair.stem, pair.xyz.name) for pair in found.pairs] == [
        ("a", "a.zdf"),
        ("alone/b", "b.zdf"),
        ("two/c", "c.png"),
    ]
    assert found.rejects == []
    assert [note.split(" of ")[0] for note in found.notes] == [
        "left out: 1 file (a.ply)",
        "left out: 2 files (alone/b.ply, two/zdf/c.zdf)",
    ]


def test_predictions_are_no_ground_truth_wherever_they_lie(tmp_path):
    rgb, xyz = capture()
    bounds = DepthRange(300, 3000)
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "b.png", 1)
    (tmp_path / "depth").mkdir()
    (tmp_path / "a.ply").write_bytes(encode_ply(xyz, rgb))
    write_png(tmp_path / "a_depth.png", xyz[:, :, 2], bounds)
    write_png(tmp_path / "depth/b.png", xyz[:, :, 2], bounds)
    np.save(tmp_path / "b.npy", xyz[:, :, 2])
    (tmp_path / "done.jsonl").write_text('{"made_with": ""}\n{"name": "b", "files": ["b.npy"]}\n')
    found = search_folder(tmp_path)
    assert found.pairs == []
    assert found.notes == ["left out: 4 files (a.ply, a_depth.png, ...) that depthdist predicted"]
    assert list_images(tmp_path) == [tmp_path / "a.png", tmp_path / "b.png"]
    assert find_captures([tmp_path / "a.png", tmp_path / "b.png"]) == {}
    read = capture_file.read_capture(tmp_path / "b.png", tmp_path / "depth/b.png")
    np.testing.assert_allclose(read.points_mm[:, :, 2], xyz[:, :, 2], atol=0.051)


def test_depth_alone_in_an_npz_has_the_camera_beside_it(tmp_path):
    write_image(tmp_path / "a.png")
    xyz = capture()[1]
    np.savez(tmp_path / "a.npz", depth=xyz[:, :, 2])
    fx, fy, cx, cy = FX_FY_CX_CY
    write_json(tmp_path / "intrinsics.json", {"fx": fx, "fy": fy, "cx": cx, "cy": cy})
    np.testing.assert_allclose(read_capture(*search_folder(tmp_path).pairs).xyz, xyz, rtol=1e-5)


def test_shards_below_a_folder_are_none_of_its_captures(tmp_path):
    write_pair(tmp_path, "rgb/a.png", "depth/a.png")
    for name in ("index.json", "train-0.tar", "samples-1.npy"):
        (tmp_path / "cache").mkdir(exist_ok=True)
        (tmp_path / "cache" / name).touch()
    (tmp_path / "backup.tar").touch()
    found = search_folder(tmp_path)
    assert [pair.stem for pair in found.pairs] == ["a"] and not found.rejects
    assert holds_captures(str(tmp_path))


def test_what_is_decided_of_names_units_and_cameras_is_said_with_counts(tmp_path):
    tum(tmp_path / "tum")
    by_numbers(tmp_path / "numbers")
    write_pair(tmp_path, "plain/rgb/a.jpg", "plain/depth/a.png")
    found = search_folder(tmp_path)
    lines = [*found.notes, *reading_notes(found.pairs, ReadOptions())]
    text = "\n".join(lines)
    for words in (
        "tum/rgb.txt: paired by time; left out: 1 image (tum/rgb/1305031109.500000.png) have no"
        " depth within 0.02 s",
        "2 captures were paired by their numbers (numbers/images/left0007.png with"
        " numbers/depth/d7.tif)",
        "unit: not known of 3 depth images, so a value is taken as 1 mm",
        "unit: 0.2 mm a value in 2 captures, as their layout says",
        "camera: not known of 1 depth image,",
    ):
        assert words in text
    assert len(lines) == 6, lines


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.float64, np.int32])
def test_a_tiff_of_depth_or_of_points_is_read_exactly(tmp_path, dtype):
    z = np.nan_to_num(capture()[1][:, :, 2]).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", z)
    assert np.array_equal(read_point_map(tmp_path / "a.tif").xyz[:, :, 2], z.astype(np.float32))
    if np.issubdtype(dtype, np.floating):
        tifffile.imwrite(tmp_path / "b.tiff", capture()[1].astype(dtype), photometric="rgb")
        found = read_point_map(tmp_path / "b.tiff").xyz
        np.testing.assert_array_equal(found, capture()[1])


def test_a_tiff_compressed_as_opencv_does_is_read(tmp_path):
    z = np.nan_to_num(capture()[1][:, :, 2])
    Image.fromarray(z).save(tmp_path / "a.tif", compression="tiff_lzw")
    np.testing.assert_array_equal(read_point_map(tmp_path / "a.tif").xyz[:, :, 2], z)


def test_0_and_65535_of_16_bits_are_no_value(tmp_path):
    z = np.full(SIZE, 900, np.uint16)
    z[0, :3] = 65535
    z[1, :2] = 0
    Image.fromarray(z).save(tmp_path / "a.png")
    found = read_point_map(tmp_path / "a.png")
    assert found.no_value == {"0": 2, "65535": 3}
    assert np.nansum(found.xyz[:, :, 2] > 0) == z.size - 5


def broken(path: Path, what: str) -> str:
    """Write a depth image that is none, and return the words of the error."""
    write_depth(path)
    if what == "cut off":
        path.write_bytes(path.read_bytes()[:-40])
        return "cannot be read as a depth image"
    if what == "colors":
        write_image(path)
        return "8 bits a channel: a drawing of depth" if path.suffix == ".png" else "dtype is uint8"
    if what == "empty":
        path.write_bytes(b"")
        return "cannot be read as a depth image"
    levels = np.zeros(SIZE, np.uint16)
    Image.fromarray(levels if what == "nothing" else levels + 3).save(path)
    return "no valid pixel: Z is 0" if what == "nothing" else "looks like metres: the median Z is 3"


@pytest.mark.parametrize("what", ["cut off", "colors", "empty", "nothing", "metres"])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_depth_image_that_is_none_is_one_line(tmp_path, name, what):
    words = broken(tmp_path / name, what)
    with pytest.raises(BadFile, match=words) as caught:
        read_point_map(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(caught.value)


def test_a_huge_tiff_is_refused_before_it_is_read(tmp_path, monkeypatch):
    write_depth(tmp_path / "a.tif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for read in (read_point_map, BY_SUFFIX[".tif"].read_size):
        with pytest.raises(BadFile, match="more pixels than any camera has"):
            read(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"depth": {"ppx": 20.5, "ppy": 13.5, "fx": 50, "fy": 60}, "color": {"fx": 1}}'),
        ("a.json", '{"intrinsics": [[50, 0, 20.5], [0, 60, 13.5], [0, 0, 1]]}'),
        ("a.json", '{"fl_x": 50, "fl_y": 60, "cx": 20.5, "cy": 13.5, "w": 40, "h": 30}'),
        ("a.yaml", "%YAML:1.0\n---\ncamera_matrix: !!opencv-matrix\n  rows: 3\n  cols: 3\n  dt: d\n"
                   "  data: [50., 0., 20.5, 0., 60., 13.5, 0., 0., 1.]\n"),
        ("a.yml", "height: 30\nwidth: 40\nK: [50, 0, 20.5, 0, 60, 13.5, 0, 0, 1]\n"),
        ("a.txt", "50 0 20.5 0\n0 60 13.5 0\n0 0 1 0\n0 0 0 1\n"),
        ("a.csv", "fx,fy,cx,cy\n50,60,20.5,13.5\n"),
        ("a.txt", "fx: 50\nfy: 60\ncx = 20.5\ncy 13.5\n"),
    ],
)  # fmt: skip
def test_the_common_spellings_of_intrinsics_are_read(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_intrinsics(tmp_path / name)[:4] == FX_FY_CX_CY


def test_intrinsics_of_another_size_are_scaled_and_those_of_another_camera_refused(tmp_path):
    write_pair(tmp_path, "rgb/a.png", "depth/a.png")
    path = tmp_path / "intrinsics.json"
    write_json(path, {"fx": 100, "fy": 120, "cx": 41.5, "cy": 27.5, "width": 80, "height": 60})
    (pair,) = search_folder(tmp_path).pairs
    expected = capture()[1]
    measured = np.isfinite(expected[:, :, 2])
    np.testing.assert_allclose(read_capture(pair).xyz[measured], expected[measured], atol=0.51)
    write_json(path, {"fx": 100, "fy": 120, "cx": 41.5, "cy": 27.5, "width": 80, "height": 50})
    with pytest.raises(BadFile, match="is of 50x80 pixels, the depth has 30x40"):
        read_capture(pair)


@pytest.mark.parametrize(
    "text", ["{", "[1, 2]", '{"fx": 1}', '{"fx": 0, "fy": 1, "cx": 1, "cy": 1}']
)
def test_a_camera_file_that_holds_no_camera_is_said_and_not_used(tmp_path, text):
    write_pair(tmp_path, "rgb/a.png", "depth/a.png")
    (tmp_path / "intrinsics.json").write_text(text)
    found = search_folder(tmp_path)
    assert found.pairs[0].camera is None
    (note,) = found.notes
    assert note.startswith(f"WARNING   {tmp_path / 'intrinsics.json'}: ")
    assert note.endswith("; it is not used")


@pytest.mark.parametrize(
    "text",
    ["train: ../..\nval: 7\n", "train: {lr: 1}\n", "[\n", "- 1\n"],
)
def test_a_yaml_that_is_no_dataset_changes_nothing(tmp_path, text):
    write_capture(tmp_path / "images/a.png", tmp_path / "depth/a.npy")
    (tmp_path / "x.yaml").write_text(text)
    (pair,) = search_folder(tmp_path).pairs
    assert (pair.stem, pair.split, pair.unit_mm) == ("a", None, None)


@pytest.mark.parametrize("val", ["", "val:\n", "val: images/gone\n"])
def test_images_that_no_split_of_a_yaml_lists_are_left_out_with_a_note(tmp_path, val):
    for name in ("train/a", "valid/b", "valid/c"):
        write_pair(tmp_path, f"images/{name}.jpg", f"depth/{name}.png", 0, 0.25)
    (tmp_path / "data.yaml").write_text(f"train: images/train\n{val}depth_scale: '4000'\n")
    found = search_folder(tmp_path)
    assert [(p.stem, p.unit_mm, p.split) for p in found.pairs] == [("train/a", 0.25, "train")]
    assert found.rejects == []
    assert found.notes == [
        "data.yaml: left out: 2 images (images/valid/b.jpg, images/valid/c.jpg) that no split lists"
    ]


def test_a_yaml_with_a_scale_whose_splits_list_nothing_gives_no_capture_of_1_mm(tmp_path):
    write_pair(tmp_path, "images/a.jpg", "depth/a.png", 0, 0.25)
    (tmp_path / "data.yaml").write_text("train: images/gone\ndepth_scale: 4000\n")
    found = search_folder(tmp_path)
    assert (found.pairs, [reject.path.name for reject in found.rejects]) == ([], ["a.jpg"])
    assert "left out: 1 image (images/a.jpg) that no split lists" in found.notes[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        *((f"depth_scale: {scale}\n", "expected a number > 0")
          for scale in ("0", "-4000", "mm", "'-1'", "true", ".inf", "1e-320", "[4000]")),
        ("depth_scale: 4000\n names: [\n", "cannot be read as YAML"),
        ("depth_scale: 4000 # \xff\n", "cannot be read as YAML"),
    ],
)  # fmt: skip
def test_a_dataset_yaml_that_cannot_be_used_is_one_line_not_1_mm(tmp_path, text, words):
    write_pair(tmp_path, "images/train/a.jpg", "depth/train/a.png")
    path = tmp_path / "data.yaml"
    path.write_text("train: images/train\n" + text, "latin-1")
    with pytest.raises(BadFile, match=words) as caught:
        search_folder(tmp_path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_two_yamls_of_the_same_images_must_say_the_same(tmp_path):
    ultralytics(tmp_path)
    before = search_folder(tmp_path)
    text = (tmp_path / "data.yaml").read_text()
    other = tmp_path / "other.yml"
    other.write_text(text.replace("val: images/val", "val: [images/val]"))
    assert search_folder(tmp_path) == before
    for change in (("depth_scale: 4000", "depth_scale: 1000"), ("val: images/val", "val:")):
        other.write_text(text.replace(*change))
        with pytest.raises(BadFile, match=f"other.yml: .*{tmp_path / 'data.yaml'}"):
            search_folder(tmp_path)


@pytest.mark.parametrize("name", ["aligned_depth", "depth_aligned", "aligned_depth_to_color",
                                  "depth_registered", "sync_depth"])  # fmt: skip
@pytest.mark.parametrize("image", ["7", "rgb_7_left", "left7"])  # the same name, words, numbers
def test_aligned_depth_is_taken_before_depth_of_the_same_images(tmp_path, name, image):
    depth = image.replace("rgb", "depth").replace("left7", "d7")
    write_pair(tmp_path, f"s/color/{image}.jpg", f"s/{name}/{depth}.png")
    write_depth(tmp_path / f"s/depth/{depth}.png", 1)
    found = search_folder(tmp_path)
    (pair,) = found.pairs
    assert (pair.xyz, found.rejects) == (tmp_path / f"s/{name}/{depth}.png", [])
    assert found.notes[0] == f"depth of {name}/ is taken, not of depth/"
    assert find_captures([pair.rgb])[pair.rgb].xyz == pair.xyz
