"""Images at the camera's size in shards: what readers get of them, whole, resized and in crops."""

import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.captures import capture, write_raw
from helpers.runs import make_loader, make_shards
from PIL import Image

from depthdist.core.settings import Size
from depthdist.data.capture_folders import FolderSettings, shard_settings
from depthdist.data.dataset import DataSettings, open_dataset
from depthdist.data.full_size import FullSizeReader
from depthdist.geometry.image_resizing import resize_rgb
from depthdist.inference.image_sources import find_sources
from depthdist.shards.cached_datasets import find_cached
from depthdist.shards.settings import ShardSettings
from depthdist.shards.verify import verify_dataset

SIZE, COUNT, PLENTY_MB = (30, 40), 4, 10
CROP = (7, 11, 9, 16)  # top, left, height, width


def shards(tmp_path, name, raw=None, **settings):
    """Shards of `COUNT` captures, all for training."""
    folder = tmp_path / name
    folder.mkdir()
    raw = raw or write_raw(tmp_path / "raw", COUNT)
    (folder / "raw").symlink_to(raw)
    return make_shards(folder, **{"split": "none", **settings})


def opened(place, **settings):
    return open_dataset(DataSettings(data=(str(place),), **settings))


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same captures with images stored in several ways."""
    folder = tmp_path_factory.mktemp("full")
    return {
        "small": shards(folder, "small"),
        "png": shards(folder, "png", rgb_size="camera"),
        "raw": shards(folder, "raw_rgb", rgb="raw", rgb_size="camera"),
        "depth png": shards(folder, "depth_png", rgb="raw", rgb_size="camera", depth_codec="png"),
    }


def batch(place, **settings):
    loader = make_loader(place, **settings)
    return loader.samples("train", range(COUNT)).to("cpu")


# -------------------------------------------------------------------------------- what loaders give


@pytest.mark.parametrize("codec", ["png", "raw", "depth png"])
def test_the_loader_gives_the_same_bytes_of_both_sizes_of_stored_images(places, codec):
    small, camera = batch(places["small"]), batch(places[codec])
    assert camera.rgb.shape == (COUNT, 28, 42, 3)
    for name in ("rgb", "depth_mm", "mask"):
        assert torch.equal(getattr(small, name), getattr(camera, name)), name


@pytest.mark.parametrize("codec", ["png", "raw"])
def test_training_may_see_them_at_any_size_in_other_processes_too(places, codec):
    settings = DataSettings(data=(str(places[codec]),), size=Size(42, 56))
    assert settings.problems() == []
    dataset = pickle.loads(pickle.dumps(open_dataset(settings)))
    assert dataset.size == (42, 56)
    assert dataset.sha256 == opened(places[codec]).sha256  # the same samples
    found = batch(places[codec], size=Size(42, 56))
    for rgb, number in zip(found.rgb, range(COUNT)):
        assert np.array_equal(rgb, resize_rgb(capture(number)[0], (42, 56)))


def test_a_size_that_cannot_be_trained_is_one_line(places):
    for place, size, expected in (
        ("png", Size(30, 40), "--size is 30x40: expected multiples of 14"),
        ("small", Size(42, 56), "--size is 42x56, the images in "),
    ):
        (problem,) = DataSettings(data=(str(places[place]),), size=size).problems()
        assert problem.startswith(expected) and "\n" not in problem


@pytest.mark.parametrize("codec", ["png", "raw"])
def test_images_of_twice_the_points_keep_their_own_size(tmp_path, codec):
    raw = write_raw(tmp_path / "raw", COUNT)
    for path in (raw / "images").iterdir():
        image = Image.open(path)
        image.resize((80, 60), Image.Resampling.BILINEAR).save(path)
    small, camera = (
        shards(tmp_path, name, raw, rgb=codec, rgb_size=name) for name in ("train", "camera")
    )
    assert opened(camera).parts[0].raw["rgb"]["size"] == [60, 80]
    assert torch.equal(batch(small).rgb, batch(camera).rgb)
    found = FullSizeReader(opened(camera), None, 0)
    other = FullSizeReader(opened(small), raw, 0)
    assert found.image("train", 1).shape == (*SIZE, 3)
    assert np.array_equal(found.image("train", 1), other.image("train", 1))
    for ours, theirs in zip(found.crop("train", 2, *CROP), other.crop("train", 2, *CROP)):
        assert np.array_equal(ours, theirs)


def test_prediction_gets_images_of_shards_at_the_cameras_size(places, tmp_path):
    images = [source.read() for source in find_sources([str(places["raw"])], out=tmp_path)]
    assert len(images) == COUNT
    assert np.array_equal(images[3].rgb, capture(3)[0])


# ----------------------------------------------------------------------------------- how it is made


def test_datasets_made_before_keep_their_settings():
    content = ShardSettings(raw="a", out="b", size=Size(28, 42)).content()
    assert "rgb_size" not in content
    assert (content["quality"], content["subsampling"]) == (95, "420")
    camera = ShardSettings(raw="a", out="b", rgb_size="camera").content()
    assert (camera["quality"], camera["subsampling"]) == (98, "444")
    given = ShardSettings(raw="a", out="b", rgb_size="camera", quality=90, subsampling="420")
    assert (given.content()["quality"], given.content()["subsampling"]) == (90, "420")


def test_images_at_the_cameras_size_are_refused_where_they_have_no_meaning():
    for wrong, expected in (
        ({"raw": "a", "out": "b", "depth_size": "train"}, "expected --depth-size camera"),
        ({"index": "a"}, "with --index"),
    ):
        (problem,) = ShardSettings(rgb_size="camera", **wrong).problems()
        assert expected in problem and "\n" not in problem


def test_captures_are_appended_to_images_of_the_cameras_size_alone(tmp_path):
    raw, out = write_raw(tmp_path / "raw", 2), tmp_path / "shards"
    for rgb in ("jpeg", "raw"):
        make_shards(tmp_path, rgb=rgb, rgb_size="camera", split="none")
        before = opened(out)
        write_raw(raw, COUNT)
        with pytest.raises(ValueError, match=r"--rgb-size was camera, is train; --append needs"):
            make_shards(tmp_path, rgb=rgb, split="none", append=True, quality=98, subsampling="444")
        make_shards(tmp_path, rgb=rgb, rgb_size="camera", split="none", append=True)
        after = opened(out)
        assert (before.count("train"), after.count("train")) == (2, COUNT)
        assert before.parts[0].raw["rgb"] == after.parts[0].raw["rgb"]
        assert verify_dataset(out) == []
        image = FullSizeReader(after, None, 0).image("train", 3)
        assert np.abs(image.astype(int) - capture(3)[0]).mean() < (0.1 if rgb == "raw" else 3)
        shutil.rmtree(out)
        shutil.rmtree(raw)
        write_raw(raw, 2)


def test_shards_of_a_folder_of_captures_at_the_cameras_size_serve_every_size(tmp_path):
    raw = str(write_raw(tmp_path / "raw", 2))

    def folder(size, rgb_size):
        data = DataSettings(data=(raw,), size=size)
        return find_cached(
            shard_settings(raw, data, FolderSettings(rgb_size=rgb_size)), tmp_path
        ).folder

    small = folder(Size(28, 42), "train")
    camera = folder(Size(28, 42), "camera")
    assert camera == folder(Size(42, 56), "camera") == folder(None, "camera") != small
    assert small != folder(Size(42, 56), "train")


# ------------------------------------------------------------------------------ whole and in crops


@pytest.mark.parametrize("memory_mb", [0, PLENTY_MB])
@pytest.mark.parametrize("source", ["captures", "png", "raw", "depth png"])
def test_a_crop_is_a_part_of_the_capture(places, source, memory_mb):
    place = places["small" if source == "captures" else source]
    raw = place.parent / "raw" if source == "captures" else None
    reader = FullSizeReader(opened(place), raw, memory_mb)
    expected = batch(place)
    for number in (2, 0, 2):
        rgb, (depth_mm, mask) = reader.image("train", number), reader.depth("train", number)
        assert np.array_equal(rgb, capture(number)[0])
        assert depth_mm.dtype == np.float32
        assert np.array_equal(depth_mm, expected.depth_mm[number])
        assert np.array_equal(mask, expected.mask[number])
        top, left, height, width = CROP
        part = slice(top, top + height), slice(left, left + width)
        for cropped, whole in zip(reader.crop("train", number, *CROP), (rgb, depth_mm, mask)):
            assert np.array_equal(cropped, whole[part]) and cropped.flags.writeable
    assert reader.crop("train", 1, 0, 0, *SIZE)[0].shape == (*SIZE, 3)
    for outside in ((-1, 0, 4, 4), (27, 0, 4, 4), (0, 37, 4, 4), (3, 3, 0, 4)):
        with pytest.raises(ValueError, match="expected at least 1x1 within 30x40"):
            reader.crop("train", 0, *outside)


def damaged(place, tmp_path, member, row):
    """A copy of shards whose first sample has a wrong byte in that row of an image or of depth."""
    copy = tmp_path / "copy"
    shutil.copytree(place, copy)
    index, ref = opened(copy).find("train", 0)
    offset = ref.members[index.raw[member]["member"]][0]
    row_bytes = SIZE[1] * (3 if member == "rgb" else 2)
    with open(index.shard_path(ref.number), "r+b") as file:
        file.seek(offset + 128 + row * row_bytes)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 255]))
    return copy


@pytest.mark.parametrize("member", ["rgb", "depth"])
def test_damage_raises_what_the_loader_raises_but_in_rows_that_are_not_read(
    places, tmp_path, member
):
    copy = damaged(places["raw"], tmp_path, member, row=2)
    with pytest.raises(ValueError, match=r"CRC-32 is .*--damaged quarantine goes on") as of_loader:
        make_loader(copy).samples("train", [0])
    reader = FullSizeReader(opened(copy), None, PLENTY_MB)
    with pytest.raises(ValueError) as of_reader:
        reader.crop("train", 0, *CROP)
    assert str(of_reader.value) == str(of_loader.value)
    without_room = FullSizeReader(opened(copy), None, 0)
    rgb, _, mask = without_room.crop("train", 0, *CROP)  # rows 7 to 15 alone are read
    assert np.array_equal(rgb, capture(0)[0][7:16, 11:27]) and mask.any()
    with pytest.raises(ValueError, match="CRC-32 is"):
        (without_room.image if member == "rgb" else without_room.depth)("train", 0)


def test_what_fits_into_memory_is_decoded_once_and_what_does_not_is_dropped(places, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(places["png"], copy)
    plenty, nothing = (FullSizeReader(opened(copy), None, mb) for mb in (PLENTY_MB, 0))

    def read_all(reader):
        with ThreadPoolExecutor(4) as pool:
            jobs = [number % COUNT for number in range(4 * COUNT)]
            return list(pool.map(lambda number: reader.crop("train", number, *CROP), jobs))

    before = read_all(plenty), read_all(nothing)
    for path in Path(copy).rglob("*.tar"):
        path.unlink()
    after = read_all(plenty)
    for crops in (*before, after):
        for ours, theirs in zip(crops, before[0]):
            assert all(map(np.array_equal, ours, theirs))
    with pytest.raises(ValueError, match="the file is missing"):
        read_all(nothing)


def test_what_cannot_be_read_at_full_size_is_one_line(places, tmp_path):
    shrunk = shards(tmp_path, "shrunk", depth_size="train")
    for place, expected in (
        (
            places["small"],
            "hold images at 28x42; shard again with --rgb-size camera, or give --raw DIR, the"
            " folder of captures",
        ),
        (shrunk, "holds depth at 28x42, not at the camera's size"),
    ):
        with pytest.raises(ValueError) as caught:
            FullSizeReader(opened(place), None, 0)
        assert expected in str(caught.value) and "\n" not in str(caught.value)
    other = write_raw(tmp_path / "other", COUNT, minutes=2)
    with pytest.raises(ValueError, match="it has no images/"):
        FullSizeReader(opened(places["small"]), other, 0).crop("train", 1, *CROP)
