"""Raw files: what belongs together, and every way a file can be odd or wrong."""

import re

import numpy as np
import pytest
from helpers.captures import HOSTILE, capture, write_capture, write_raw
from PIL import Image

from depthdist.captures.layouts import LAYOUTS, CapturePair, find_pairs, list_images
from depthdist.captures.readers import read_label, read_pair, read_rgb, read_size, read_xyz
from depthdist.captures.sessions import capture_time, number_sessions
from depthdist.core.errors import BadFile
from depthdist.geometry.resampling import resize_rgb


def test_two_folders_with_the_cameras_suffixes_make_pairs(tmp_path):
    pairs, rejects = find_pairs(write_raw(tmp_path, 2))
    assert not rejects and [p.stem for p in pairs] == [
        f"21-12-03-10-0{i}-00_Zivid_acquisition" for i in range(2)
    ]
    assert (pairs[0].rgb.parent.name, pairs[0].xyz.parent.name) == ("images", "depth")


@pytest.mark.parametrize(
    "rgb, xyz, stem",
    [
        ("a.png", "a.npy", "a"),
        ("deep/er/a.JPG", "deep/er/a.npy", "deep/er/a"),
        ("a_color.png", "a_rawDepth.npy", "a"),
        ("left_rgb.png", "left_rgb.npy", "left_rgb"),
        ("images/a.png", "images/a.npy", "images/a"),
        ("depth/a.png", "depth/a.npy", "depth/a"),
        ("s/images/left_rgb.png", "s/depth/left_rgb.npy", "s/left"),
        ("rgb/a b.png", "xyz/a b_xyz.npy", "a b"),
        ("a.b.png", "a.b.npy", "a.b"),
    ],
)
def test_layouts_need_no_configuration(tmp_path, rgb, xyz, stem):
    write_capture(tmp_path / rgb, tmp_path / xyz)
    assert find_pairs(tmp_path) == ([CapturePair(stem, tmp_path / rgb, tmp_path / xyz)], [])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layouts_own_example_is_read(tmp_path, layout):
    rgb, xyz = layout.__doc__.split(":")[0].split(" + ")
    write_capture(tmp_path / rgb, tmp_path / xyz)
    assert len(find_pairs(tmp_path)[0]) == 1


def test_truth_and_hidden_files_are_never_looked_into(tmp_path):
    write_capture(tmp_path / "a.png", tmp_path / "a.npy")
    for folder in ("truth", ".cache", "sub/truth"):
        write_capture(tmp_path / folder / "b.png", tmp_path / folder / "b.npy")
    (tmp_path / "._a.png").write_bytes(b"mac")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [p.stem for p in find_pairs(tmp_path)[0]] == ["a"] and not find_pairs(tmp_path)[1]


def test_files_without_one_twin_are_rejected_by_name(tmp_path):
    for stem in "abcd":
        write_capture(tmp_path / f"{stem}.png", tmp_path / f"{stem}.npy")
    (tmp_path / "a.npy").unlink()
    (tmp_path / "b.png").unlink()
    (tmp_path / "c.jpg").write_bytes(b"second")
    pairs, rejects = find_pairs(tmp_path)
    reasons = {r.path.name: r.reason for r in rejects}
    assert [p.stem for p in pairs] == ["d"] and set(reasons) == {"a.png", "b.npy", "c.jpg"}
    assert (
        "without its point cloud" in reasons["a.png"]
        and "without its picture" in reasons["b.npy"]
        and "2 pictures" in reasons["c.jpg"]
    )


def test_one_stem_in_two_layouts_is_not_mixed_up(tmp_path):
    write_capture(tmp_path / "a.png", tmp_path / "a.npy")
    write_capture(tmp_path / "images/a.png", tmp_path / "depth/a.npy")
    pairs, rejects = find_pairs(tmp_path)
    assert len(pairs) == 1 and "is taken by" in rejects[0].reason


def test_names_that_would_break_a_line_are_rejected(tmp_path):
    write_capture(tmp_path / "a\nb.png", tmp_path / "a\nb.npy")
    assert len(find_pairs(tmp_path)[1]) == 2


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda p: None, "no such folder"),
        (lambda p: p.write_text(""), "is a file"),
        (lambda p: p.mkdir(), "no pictures"),
    ],
)
def test_a_root_without_captures_raises(tmp_path, make, words):
    make(tmp_path / "raw")
    with pytest.raises(BadFile, match=f"^{re.escape(str(tmp_path / 'raw'))}: .*{words}"):
        find_pairs(tmp_path / "raw")


def test_capture_time_is_read_or_none():
    assert (
        capture_time("s/21-12-03-18-50-31_Zivid_acquisition").isoformat() == "2021-12-03T18:50:31"
    )
    assert capture_time("2021-12-03-18-50-31").isoformat() == "2021-12-03T18:50:31"
    assert capture_time("21-13-03-18-50-31_x") is None and capture_time("learn0") is None


def test_sessions_end_at_a_gap_and_untimed_stems_go_by_folder():
    stems = [
        "21-12-03-10-00-00_a",
        "s/21-12-03-10-09-00_b",
        "21-12-03-10-30-00",
        "x/1",
        "x/2",
        "y/1",
    ]
    assert number_sessions(stems) == [0, 0, 1, 2, 2, 3]
    assert number_sessions(stems[:3], gap_minutes=30) == [0, 0, 0]


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
    assert rgb.shape == (4, 5, 3) and rgb.dtype == np.uint8 and (rgb == expected).all()


def test_a_turned_picture_is_rejected_for_training_and_turned_for_prediction(tmp_path):
    for name in ("a.jpg", "a.tif"):
        exif = Image.Exif()
        exif[0x0112] = 6
        picture = np.zeros((8, 16, 3), np.uint8)
        picture[:, :8] = 255  # white on the left; orientation 6 turns it clockwise: on top
        Image.fromarray(picture).save(tmp_path / name, exif=exif)
        with pytest.raises(BadFile, match="EXIF orientation is 6; expected 1"):
            read_rgb(tmp_path / name)
        turned = read_rgb(tmp_path / name, upright=True)
        assert turned.shape == (16, 8, 3) and turned[:6].min() > 200 and turned[10:].max() < 50


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
        ({"dtype": np.float16}, "dtype is float16"),
        ({"then": lambda x: np.nan_to_num(x).astype(np.int32)}, "dtype is int32"),
        ({"then": lambda x: np.zeros(x.shape, np.uint8)}, "dtype is uint8"),
        ({"then": lambda x: x[:, :, 2:]}, r"shape is \(30, 40, 1\); expected \(H, W, 3\)"),
        ({"then": lambda x: x[:, :, 2]}, r"shape is \(30, 40\)"),
        ({"then": lambda x: np.moveaxis(x, 2, 0)}, r"shape is \(3, 30, 40\)"),
        ({"then": lambda x: x[:0]}, "shape is"),
        ({"dtype": object}, "pickled"),
        ({"then": lambda x: x.astype(np.complex64)}, "dtype is complex64"),
    ],
)
def test_point_clouds_that_cannot_be_used_say_why(tmp_path, how, words):
    path = tmp_path / "a.npy"
    np.save(path, changed(capture()[1], **how), allow_pickle=True)
    with pytest.raises(BadFile, match=f"^{re.escape(str(path))}: .*{words}"):
        read_xyz(path)


@pytest.mark.parametrize(
    "how", [{"dtype": np.float64}, {"dtype": ">f4"}, {"then": np.asfortranarray}]
)
def test_other_float_layouts_read_the_same(tmp_path, how):
    xyz = capture()[1]
    np.save(tmp_path / "a.npy", changed(xyz, **how))
    found = read_xyz(tmp_path / "a.npy")
    assert found.dtype == np.float32 and found.flags.c_contiguous and found.dtype.isnative
    np.testing.assert_array_equal(found, xyz)


def test_cut_archived_and_empty_clouds_say_so(tmp_path):
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
    for read in (read_size, read_pair):
        with pytest.raises(BadFile, match="rgb is 30x41, xyz is 30x40"):
            read(pair)


def hostile(folder):
    return (
        sorted((HOSTILE / folder).iterdir())
        if HOSTILE.is_dir()
        else [pytest.param(None, marks=pytest.mark.skip("../shared/hostile is absent"))]
    )


BROKEN = (
    "broken_data",
    "12in16bit",
    "orientation_",
    "i_trns",
    "oom-",
    "seek_too",
    "chessboard_GRAY_U16",
    "truncated_",
    "unknown_compression",
)


@pytest.mark.parametrize("path", hostile("images"), ids=lambda p: getattr(p, "name", "absent"))
def test_hostile_pictures_are_read_or_refused_in_one_line(path):
    if not any(path.name.startswith(b) or b in path.name for b in BROKEN):
        rgb = read_rgb(path)
        assert rgb.ndim == 3 and rgb.shape[2] == 3 and rgb.dtype == np.uint8
        return
    with pytest.raises(BadFile) as caught:
        read_rgb(path)
    assert (
        str(caught.value).startswith(f"{path}: ")
        and "expected" in str(caught.value)
        and "\n" not in str(caught.value)
    )


@pytest.mark.parametrize("path", hostile("npy"), ids=lambda p: getattr(p, "name", "absent"))
def test_hostile_arrays_are_refused_in_one_line(path):
    with pytest.raises(BadFile) as caught:
        read_xyz(path)
    assert (
        str(caught.value).startswith(f"{path}: ")
        and "expected" in str(caught.value)
        and "\n" not in str(caught.value)
    )


@pytest.mark.parametrize("size", [(70, 140), (14, 14), (30, 40)])
def test_resize_is_that_of_the_models_image_processor(size):
    processors = pytest.importorskip("transformers.models.dpt.image_processing_pil_dpt")
    rgb = capture()[0]
    processor = processors.DPTImageProcessorPil(
        size={"height": size[0], "width": size[1]},
        keep_aspect_ratio=False,
        ensure_multiple_of=1,
        do_rescale=False,
        do_normalize=False,
        resample=3,
    )
    theirs = np.asarray(processor(Image.fromarray(rgb))["pixel_values"][0]).transpose(1, 2, 0)
    assert np.abs(resize_rgb(rgb, size).astype(float) - theirs).max() <= 1


# ------------------------------------------------------------------------------------ groove labels


def write_label(path, size=(30, 40), dtype=np.uint16):
    label = np.zeros(size, dtype)
    label[5:9, 10:30] = 3
    Image.fromarray(label).save(path)
    return label


@pytest.mark.parametrize(
    ("rgb", "xyz", "grooves"),
    [
        ("images/a_color.png", "depth/a_rawDepth.npy", "images/a_grooves.png"),
        ("a.png", "a.npy", "a_grooves.png"),
        ("a.jpg", "a.npy", "a_grooves.png"),
        ("a_color.png", "a_rawDepth.npy", "a_grooves.png"),
        ("a_color.png", "a_color.npy", "a_color_grooves.png"),
    ],
)
def test_a_groove_label_beside_the_picture_belongs_to_the_capture(tmp_path, rgb, xyz, grooves):
    write_capture(tmp_path / rgb, tmp_path / xyz)
    label = write_label(tmp_path / grooves)
    (pair,), rejects = find_pairs(tmp_path)
    assert (
        not rejects
        and pair.grooves == tmp_path / grooves
        and list(pair.files) == ["rgb", "xyz", "grooves"]
    )
    assert np.array_equal(read_label(pair.grooves, (30, 40)), label)
    assert list_images(tmp_path) == [tmp_path / rgb], "a label is no picture to predict from"


def test_a_groove_label_without_a_capture_is_rejected(tmp_path):
    write_capture(tmp_path / "a.png", tmp_path / "a.npy")
    write_label(tmp_path / "b_grooves.png")
    pairs, (reject,) = find_pairs(tmp_path)
    assert (
        len(pairs) == 1
        and pairs[0].grooves is None
        and "a groove label without its capture" in reject.reason
    )


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
