"""Which member of an external tar is the image, the depth and the mask."""

import os
import pickle
import re

import numpy as np
import pytest
import simplejpeg
from helpers.external_tars import (
    expected_mm,
    fault,
    index,
    jpg,
    npy,
    picture,
    plain,
    png,
    rejects,
    streamed,
    whole_mm,
    write,
    z_mm,
)
from PIL import Image

from depthdist.shards.verify import verify_dataset


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_metres_are_noticed(tmp_path, dtype):
    write(
        tmp_path,
        lambda i: {"jpg": jpg(picture(i)), "depth.npy": npy((z_mm(i) / 1000).astype(dtype))},
    )
    assert re.search(
        r"depth.npy looks like metres: the median is 1.\d+; .* --unit 1000", fault(tmp_path)
    )
    assert index(tmp_path, unit=1000.0)["splits"]["train"]["stats"]["mean_mm"] == pytest.approx(
        1110, abs=40
    )


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (
            lambda i: {
                "left.jpg": jpg(picture(i)),
                "right.jpg": jpg(picture(i)),
                "depth.npy": npy(whole_mm(i)),
            },
            r"left.jpg \(JPEG 28x42\), right.jpg .* the image",
        ),
        (
            lambda i: {
                "rgb.jpg": jpg(picture(i)),
                "color.png": png(picture(i)),
                "depth.npy": npy(whole_mm(i)),
            },
            r"color.png .*, rgb.jpg .* the image",
        ),
        (
            lambda i: {"jpg": jpg(picture(i)), "a.npy": npy(whole_mm(i)), "b.npy": npy(z_mm(i))},
            r"a.npy \(uint16 \(30, 40\)\), b.npy \(float64 .* the depth",
        ),
        (
            lambda i: {
                "jpg": jpg(picture(i)),
                "depth.npy": npy(whole_mm(i)),
                "depth.png": png(whole_mm(i)),
            },
            r"depth.npy .*, depth.png \(PNG 30x40, mode I;16\) can all be the depth",
        ),
        (
            lambda i: {"jpg": jpg(picture(i))},
            r"no depth among its members: jpg \(JPEG 28x42\); expected uint16 or float",
        ),
        (
            lambda i: {"jpg": jpg(picture(i)), "depth.png": png(whole_mm(i).astype(np.uint8))},
            r"no depth .* depth.png \(PNG 30x40, mode L\)",
        ),
        (
            lambda i: {"txt": b"", "tiff": b""},
            r"no image among its members: tiff \(not looked at\), txt",
        ),
        (
            lambda i: {"depth.npy": npy(whole_mm(i)), "pth": b""},
            r"no image among .* pth \(not looked at\)",
        ),
        (
            lambda i: {
                "jpg": jpg(picture(i)),
                "depth.npy": npy(np.full((3, 4), None), allow_pickle=True),
            },
            "pickled Python objects, never loaded",
        ),
    ],
)
def test_what_cannot_be_told_is_one_line_that_lists_the_candidates(tmp_path, members, words):
    text = fault(write(tmp_path, members))
    assert re.search(words, text) and "\n" not in text and "shard-000000.tar: 000000: " in text, (
        text
    )


@pytest.mark.parametrize(
    "more", ["preview.jpg", "depth_vis.jpg", "seg.npy", "xyz.npy", "left.depth.npy"]
)
def test_a_name_that_says_it_wins(tmp_path, more):
    made = index(
        write(
            tmp_path,
            change=lambda i, m: {
                **m,
                more: jpg(picture(9)) if more.endswith("jpg") else npy(whole_mm(9)),
            },
        )
    )
    assert (made["depth"]["member"], made["rgb"]["member"]) == ("depth.npy", "jpg")
    assert made["notes"][-1] == "not used, never loaded: " + ", ".join(sorted([more, "pth"]))


class Bomb:
    def __reduce__(self):
        return os.abort, ()


def test_pickles_are_never_loaded(tmp_path):
    bomb = pickle.dumps(Bomb())
    made = index(
        write(
            tmp_path,
            change=lambda i, m: {
                **m,
                "pth": bomb,
                "pkl": bomb,
                "extra.npy": npy(np.array([Bomb()]), allow_pickle=True),
            },
        )
    )
    assert (
        "never loaded: extra.npy, pkl, pth" in made["notes"][-1] and verify_dataset(tmp_path) == []
    )


def test_masks_of_npy_count_where_they_are_not_zero_and_must_have_the_depths_size(tmp_path):
    mask = np.arange(1200).reshape(30, 40) % 3 == 0
    write(tmp_path, change=lambda i, m: {**m, "mask.npy": npy(mask if i != 5 else mask.T)})
    assert rejects(tmp_path)[0][1:] == (
        "000005",
        "mask.npy: bool (40, 30); expected 8 bits (30, 40), as the depth",
    )
    for stem, (_, _, found) in streamed(tmp_path, "train").items():
        np.testing.assert_array_equal(found, mask & (expected_mm(plain, int(stem)) > 0))


def test_depths_of_two_sizes_need_a_size(tmp_path):
    write(
        tmp_path,
        change=lambda i, m: (
            {**m, "depth.npy": npy(np.full((15, 20), 700 + i, np.uint16))} if i == 5 else m
        ),
    )
    assert (
        "shard-000001.tar: 000005: depth is 15x20, that of the first sample 30x40; a dataset has"
        " one size: take --depth-size train" in fault(tmp_path)
    )
    made = index(tmp_path, split="none", depth_size="train")
    assert (
        made["depth"]["size"] == [28, 42]
        and made["depth"]["resize"]
        and verify_dataset(tmp_path) == []
    )
    found = streamed(tmp_path, "train")
    assert np.abs(found["000005"][1] - 705).max() <= made["depth"]["max_error_mm"]
    rows, columns = (
        ((np.arange(28) + 0.5) * 30 / 28).astype(int),
        ((np.arange(42) + 0.5) * 40 / 42).astype(int),
    )
    assert (
        np.abs(found["000001"][1] - whole_mm(1)[np.ix_(rows, columns)]).max()
        <= made["depth"]["max_error_mm"] + 1e-3
    )


def test_pictures_of_several_sizes_are_resized_and_it_is_said(tmp_path):
    made = index(
        write(
            tmp_path, change=lambda i, m: {**m, "jpg": jpg(picture(i, (60, 80)))} if i == 5 else m
        ),
        split="none",
    )
    assert made["rgb"]["resize"] and any(
        "decoded at 2 sizes and resized to 28x42" in note for note in made["notes"]
    )
    found = streamed(tmp_path, "train")["000005"][0]
    wanted = Image.fromarray(
        simplejpeg.decode_jpeg(jpg(picture(5, (60, 80))), colorspace="RGB")
    ).resize((42, 28), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(found, np.asarray(wanted))
