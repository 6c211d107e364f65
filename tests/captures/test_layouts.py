"""Which files of a folder are one capture, and which are rejected."""

import re

import numpy as np
import pytest
from helpers.captures import write_capture, write_label, write_raw

from depthdist.captures.layouts import CapturePair, find_pairs, list_images
from depthdist.captures.readers import read_label
from depthdist.core.errors import BadFile


def test_two_folders_with_the_cameras_suffixes_make_pairs(tmp_path):
    pairs, rejects = find_pairs(write_raw(tmp_path, 2))
    assert not rejects
    assert [p.stem for p in pairs] == [f"21-12-03-10-0{i}-00_Zivid_acquisition" for i in range(2)]
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
    assert find_pairs(tmp_path) == ([CapturePair(stem, str(tmp_path), rgb, xyz)], [])


def test_truth_and_hidden_files_are_skipped(tmp_path):
    write_capture(tmp_path / "a.png", tmp_path / "a.npy")
    for folder in ("truth", ".cache", "sub/truth"):
        write_capture(tmp_path / folder / "b.png", tmp_path / folder / "b.npy")
    (tmp_path / "._a.png").write_bytes(b"mac")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [p.stem for p in find_pairs(tmp_path)[0]] == ["a"]
    assert not find_pairs(tmp_path)[1]


def test_files_without_exactly_one_counterpart_are_rejected_by_name(tmp_path):
    for stem in "abcd":
        write_capture(tmp_path / f"{stem}.png", tmp_path / f"{stem}.npy")
    (tmp_path / "a.npy").unlink()
    (tmp_path / "b.png").unlink()
    (tmp_path / "c.jpg").write_bytes(b"second")
    pairs, rejects = find_pairs(tmp_path)
    reasons = {r.path.name: r.reason for r in rejects}
    assert [p.stem for p in pairs] == ["d"]
    assert set(reasons) == {"a.png", "b.npy", "c.jpg"}
    assert "without its point cloud" in reasons["a.png"]
    assert "without its picture" in reasons["b.npy"]
    assert "2 pictures" in reasons["c.jpg"]


def test_one_stem_in_two_layouts_is_not_mixed_up(tmp_path):
    write_capture(tmp_path / "a.png", tmp_path / "a.npy")
    write_capture(tmp_path / "images/a.png", tmp_path / "depth/a.npy")
    pairs, rejects = find_pairs(tmp_path)
    assert len(pairs) == 1
    assert "is taken by" in rejects[0].reason


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
def test_a_groove_label_beside_the_image_belongs_to_the_capture(tmp_path, rgb, xyz, grooves):
    write_capture(tmp_path / rgb, tmp_path / xyz)
    label = write_label(tmp_path / grooves)
    (pair,), rejects = find_pairs(tmp_path)
    assert not rejects
    assert pair.grooves == tmp_path / grooves
    assert list(pair.files) == ["rgb", "xyz", "grooves"]
    assert np.array_equal(read_label(pair.grooves, (30, 40)), label)
    assert list_images(tmp_path) == [tmp_path / rgb], "a label is no image to predict from"


def test_a_groove_label_without_a_capture_is_rejected(tmp_path):
    write_capture(tmp_path / "a.png", tmp_path / "a.npy")
    write_label(tmp_path / "b_grooves.png")
    pairs, (reject,) = find_pairs(tmp_path)
    assert len(pairs) == 1
    assert pairs[0].grooves is None
    assert "a groove label without its capture" in reject.reason
