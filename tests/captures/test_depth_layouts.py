"""Every layout that is found without being told: pairs, unit, camera, split, points in mm."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers.captures import capture
from PIL import Image

from depthdist.captures.layouts import LAYOUTS, find_captures, list_images, search_folder
from depthdist.captures.readers import read_capture, read_size

SIZE = (30, 40)
FX_FY_CX_CY = (50, 60, 20.5, 13.5)  # of helpers.captures.capture, from the middle of a pixel


def write_image(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(capture(seed)[0]).save(path)


def write_depth(path: Path, seed: int = 0, unit_mm: float = 1.0) -> None:
    """Write depth in values of unit_mm; 16-bit PNG or TIFF, float TIFF (.tiff), or npy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    z = capture(seed)[1][:, :, 2] / unit_mm
    levels = np.nan_to_num(z).round().astype(np.uint16)
    if path.suffix == ".png" or path.suffix == ".tif":
        Image.fromarray(levels).save(path)
    elif path.suffix == ".tiff":
        tifffile.imwrite(path, z.astype(np.float32))
    else:
        np.save(path, z.astype(np.float32))


def write_pair(root: Path, rgb: str, depth: str, seed: int = 0, unit_mm: float = 1.0) -> None:
    write_image(root / rgb, seed)
    write_depth(root / depth, seed, unit_mm)


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
