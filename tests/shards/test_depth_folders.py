"""Shards of depth images: units, splits that a layout says, sizes, what is said of them."""

import numpy as np
import pytest
import torch
from helpers.captures import capture, make, write_raw
from helpers.depth_images import write_depth, write_image, write_pair, write_ultralytics
from PIL import Image

from depthdist.core.settings import Size
from depthdist.data.dataset import DataSettings, open_dataset
from depthdist.data.loader import Loader
from depthdist.shards.settings import ShardSettings


def stems(out):
    dataset = open_dataset(DataSettings(data=(str(out),)))
    return {
        split: [dataset.find(split, i)[1].stem for i in range(dataset.count(split))]
        for split in dataset.splits
    }


def depth_of(out, split, number):
    settings = DataSettings(data=(str(out),), threads=1)
    batch = Loader(open_dataset(settings), settings).samples(split, [number])
    batch = batch.to(torch.device("cpu"))
    return np.where(batch.mask[0], batch.depth_mm[0], np.nan)


def test_an_ultralytics_folder_is_sharded_as_it_is_with_its_split_and_unit(tmp_path):
    raw = write_ultralytics(tmp_path / "raw")
    index = make(raw, tmp_path / "out")
    assert stems(tmp_path / "out") == {
        "train": [f"train/00{i}" for i in range(4)],
        "val": ["val/004", "val/005"],
    }
    assert index["rejected"] == []
    assert index["settings"]["split"] == "auto"
    assert "unit: 0.25 mm a value in 6 captures, as their layout says" in index["note"]
    assert "camera: not known of 6 depth images" in index["note"]
    expected = capture(5)[1][:, :, 2]
    np.testing.assert_allclose(depth_of(tmp_path / "out", "val", 1), expected, atol=0.2)
    assert make(raw, tmp_path / "out")["changed"] is False
    write_pair(raw, "images/train/6.jpg", "depth/train/6.png", 6, 0.25)
    assert make(raw, tmp_path / "out", append=True)["held"] == 6
    assert stems(tmp_path / "out")["train"][-1] == "train/6"
    yaml = raw / "tires.yaml"
    yaml.write_text(yaml.read_text().replace("depth_scale: 4000", "depth_scale: 2000"))
    assert make(raw, tmp_path / "other")["written"] == 2
    np.testing.assert_allclose(
        depth_of(tmp_path / "other", "val", 1), 2 * depth_of(tmp_path / "out", "val", 1), atol=0.1
    )


def test_split_auto_is_random_where_no_layout_says_one_and_changes_no_dataset(tmp_path):
    raw = write_raw(tmp_path / "raw", 5)
    before = make(raw, tmp_path / "out", split="random")
    after = make(raw, tmp_path / "out", split="auto")
    assert (after["changed"], after["config_hash"]) == (False, before["config_hash"])
    assert ShardSettings().split == "auto"


def test_npy_depth_of_an_ultralytics_folder_is_in_metres_and_a_png_goes_before_it(tmp_path):
    for i, split in enumerate(("train", "train", "val")):
        write_image(tmp_path / f"raw/images/{split}/{i}.png", i)
        write_depth(tmp_path / f"raw/depth/{split}/{i}.npy", i, unit_mm=1000)
    write_depth(tmp_path / "raw/depth/train/0.png", 0)
    write_image(tmp_path / "raw/images/val/alone.png")
    (tmp_path / "raw/train.txt").write_text("./images/train/0.png\nimages/train/1.png\n")
    (tmp_path / "raw/d.yml").write_text("train: [train.txt]\nval: images/val\n")
    index = make(tmp_path / "raw", tmp_path / "out")
    assert stems(tmp_path / "out") == {"train": ["train/0", "train/1"], "val": ["val/2"]}
    assert "d.yml: left out: 1 image (images/val/alone.png) without depth" in index["note"]
    for i in range(2):
        expected = capture(i)[1][:, :, 2]
        np.testing.assert_allclose(depth_of(tmp_path / "out", "train", i), expected, atol=0.55)


def test_a_unit_that_nobody_says_is_taken_as_1_mm_and_said(tmp_path):
    for i in range(3):
        write_pair(tmp_path / "raw", f"rgb/{i}.png", f"depth/{i}.png", i)
    note = make(tmp_path / "raw", tmp_path / "out")["note"]
    assert "unit: not known of 3 depth images, so a value is taken as 1 mm" in note
    given = make(tmp_path / "raw", tmp_path / "double", unit=2.0, fov=60.0)
    assert "unit:" not in given["note"] and "camera:" not in given["note"]
    np.testing.assert_allclose(
        depth_of(tmp_path / "double", "train", 0),
        2 * depth_of(tmp_path / "out", "train", 0),
        atol=0.2,
    )


def test_metres_are_asked_for(tmp_path):
    for i in range(3):
        write_pair(tmp_path / "raw", f"rgb/{i}.png", f"depth/{i}.tiff", i, unit_mm=1000)
    with pytest.raises(ValueError, match=r"looks like metres: .* \(--unit 1000 reads metres\)"):
        make(tmp_path / "raw", tmp_path / "out")
    make(tmp_path / "raw", tmp_path / "out", unit=1000.0)
    found = depth_of(tmp_path / "out", "train", 0)
    assert 900 < np.nanmedian(found) < 1200


def test_an_image_of_twice_the_size_keeps_its_size_for_the_network_and_for_refining(tmp_path):
    raw = tmp_path / "raw"
    for i in range(2):
        write_pair(raw, f"rgb/{i}.png", f"depth/{i}.png", i)
        large = Image.open(raw / f"rgb/{i}.png").resize((80, 60), Image.Resampling.NEAREST)
        large.save(raw / f"rgb/{i}.png")
    index = make(raw, tmp_path / "out", size=Size(28, 42))
    assert index["depth"]["size"] == [30, 40]
    dataset = open_dataset(DataSettings(data=(str(tmp_path / "out"),)))
    assert dataset.full_image("train", 0, raw).shape == (30, 40, 3)
    meta = dataset.meta("train", 0)
    assert meta["intrinsics"] is None


def test_data_that_is_a_yaml_is_told_the_folder_that_it_names(tmp_path):
    yaml = write_ultralytics(tmp_path / "raw", 1, 0) / "tires.yaml"
    (line,) = DataSettings(data=(str(yaml),)).problems()
    words = "is a file; expected the folder of captures that its `path` names"
    assert line == f"--data {yaml}: {words}"


def test_a_folder_whose_yaml_is_broken_names_the_yaml(tmp_path):
    yaml = write_ultralytics(tmp_path / "raw", 1, 0) / "tires.yaml"
    yaml.write_text(yaml.read_text() + "train: [")
    (line,) = DataSettings(data=(str(tmp_path / "raw"),)).problems()
    assert f"as a folder of captures: {yaml}: cannot be read as YAML" in line
