"""The size of a dataset's images: the camera's shape decides, a given one may stretch."""

import json

import pytest
from helpers.captures import make, write_capture
from PIL import Image

from depthdist.core.settings import Size
from depthdist.data.dataset import DataSettings, open_dataset
from depthdist.shards.dataset_warnings import dataset_warnings
from depthdist.shards.format import as_json
from depthdist.shards.settings import ShardSettings

pytestmark = pytest.mark.usefixtures("in_this_process")


def write_flat(folder, size, count=2):
    """Captures of any size, quickly: a plane that faces the camera."""
    for i in range(count):
        write_capture(folder / f"{i}.png", folder / f"{i}.npy", i, size=size)
    return folder


def test_the_size_follows_the_camera_and_says_why(tmp_path):
    index = make(write_flat(tmp_path / "raw", (60, 73)), tmp_path / "out", split="none", size=None)
    assert index["size"] == [882, 1078] and index["settings"]["size"] == "882x1078"
    assert "size 882x1078: the camera's 60x73 at the recipe's number of pixels" in index["note"]
    assert "stretched" not in index


def test_captures_that_are_appended_keep_the_datasets_size(tmp_path):
    raw, out = write_flat(tmp_path / "raw", (60, 73)), tmp_path / "out"
    make(raw, out, split="none", depth_size="train")
    write_capture(raw / "late.png", raw / "late.npy", size=(30, 60))
    index = make(raw, out, split="none", depth_size="train", size=None, append=True)
    assert index["size"] == [28, 42] and index["splits"]["train"]["count"] == 3
    assert index["stretched"] == [30, 60]  # by 33 %, the others by 23 %


def test_images_that_a_given_size_stretches_are_a_warning_with_the_number(raw, tmp_path):
    index = make(raw, tmp_path, split="none")
    assert index["stretched"] == [30, 40]
    (line,) = (text for text in dataset_warnings(index, ShardSettings()) if "stretched" in text)
    assert "30x40 is stretched by 12 % at 28x42; --size 840x1134 keeps its aspect" in line


@pytest.mark.parametrize("size", [None, Size(28, 42)])
def test_images_of_another_aspect_than_their_points_decide_the_size(tmp_path, size):
    raw = write_flat(tmp_path / "raw", (30, 40))
    for path in raw.glob("*.png"):
        Image.new("RGB", (60, 30)).save(path)
    index = make(raw, tmp_path / "out", split="none", size=size, registered=True)
    stretched = size is not None
    assert index["size"] == ([28, 42] if stretched else [686, 1386])
    assert index.get("stretched", []) == [30, 60] * stretched
    camera = open_dataset(DataSettings(data=(str(tmp_path / "out"),))).camera
    assert camera == ((30, 60) if stretched else (686, 1386))


@pytest.mark.parametrize("size", [(60, 97), (60, 73)], ids=["the recipe's camera", "another"])
def test_a_dataset_of_the_version_that_had_one_size_stays_as_it_is(tmp_path, size):
    raw, out = write_flat(tmp_path / "raw", size), tmp_path / "out"
    make(raw, out, split="none", size=Size(756, 1260))
    older = json.loads((out / "index.json").read_text())
    older.pop("stretched", None)
    (out / "index.json").write_bytes(as_json(older))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for given in (None, Size(756, 1260)):
        index = make(raw, out, split="none", size=given)
        assert not index["changed"] and index["written"] == 0
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    note = make(raw, out, split="none", size=None)["note"]
    assert ("756x1260: as the dataset has it (882x1078" in note) == (size == (60, 73)), note
