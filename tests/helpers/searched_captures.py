"""Readers under search of what a person brings: point maps, images, labels, groups, settings."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from depthdist.captures.layouts import CapturePair
from depthdist.captures.read_options import ReadOptions
from depthdist.captures.readers import open_rgb, read_capture, read_label, read_size, read_xyz
from depthdist.core.command_line import parse
from depthdist.core.errors import BadFile
from depthdist.data.augmentation import AugmentSettings
from depthdist.data.dataset import DataSettings
from depthdist.losses.settings import LossSettings
from depthdist.models.settings import LoraSettings, ModelSettings
from depthdist.shards.splits import read_groups
from depthdist.training.settings import TrainSettings
from helpers.captures import capture
from helpers.external_tars import npy, png
from helpers.point_files import WRITERS
from helpers.scratch import Scratch

PILLOW_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM", "GIF")


def point_maps(_: Scratch) -> list[bytes]:
    xyz = capture(1, (4, 5))[1]
    return [
        npy(xyz),
        npy(xyz.astype(">f8")),
        npy(np.asfortranarray(xyz)),
        npy(xyz[:, :, 2]),
        npy(xyz.astype(np.float16)),
        npy(np.array([{"a": 1}], object), allow_pickle=True),
    ]


def read_point_map(scratch: Scratch, content: bytes) -> None:
    path = scratch.folder / "map.npy"
    path.write_bytes(content)
    image = scratch.folder / "map.png"
    if not image.exists():
        Image.fromarray(capture(1, (4, 5))[0]).save(image)
    try:
        size = read_size(CapturePair("map", image, path)).points
    except BadFile:
        size = None
    try:
        from_bytes = read_xyz(path, content)
    except BadFile as err:
        from_bytes = None
        message = str(err)
        assert "\n" not in message, message
    try:
        xyz = read_xyz(path)
    except BadFile:
        assert from_bytes is None, "the file is refused, its bytes are not"
        return
    assert from_bytes is not None, "the bytes are refused, the file is not"
    assert np.array_equal(xyz, from_bytes, equal_nan=True)
    assert xyz.ndim == 3 and xyz.shape[2] == 3 and xyz.dtype == np.float32
    z = xyz[:, :, 2]
    assert ((z > 0) & (z < np.inf)).any(), "no valid pixel"
    assert size in (None, xyz.shape[:2])


def point_files(suffix: str, scratch: Scratch) -> list[bytes]:
    rgb, xyz = capture(1, (4, 5))
    snr = np.arange(20, dtype=np.float32).reshape(4, 5)
    found = []
    for name, write in WRITERS.items():
        if name.endswith(suffix):
            path = scratch.folder / name
            write(path, rgb, xyz, snr)
            found.append(path.read_bytes())
    return found


def read_point_file(suffix: str, scratch: Scratch, content: bytes) -> None:
    path = scratch.folder / f"damaged{suffix}"
    path.write_bytes(content)
    pair = CapturePair("damaged", path, path)
    try:
        size = read_size(pair)
    except BadFile as err:
        assert "\n" not in str(err)
        size = None
    found = read_capture(pair, {path: content}, ReadOptions(min_snr=3))
    assert found.xyz.ndim == 3 and found.xyz.shape[2] == 3 and found.xyz.dtype == np.float32
    assert ((found.xyz[:, :, 2] > 0) & (found.xyz[:, :, 2] < np.inf)).any(), "no valid pixel"
    assert size in (None, (found.xyz.shape[:2], found.xyz.shape[:2]))


def images(_: Scratch) -> list[bytes]:
    from io import BytesIO

    rgb = capture(1, (6, 5))[0]
    found = []
    for kind in PILLOW_FORMATS:
        file = BytesIO()
        Image.fromarray(rgb).save(file, kind)
        found.append(file.getvalue())
    exif = Image.Exif()
    exif[0x0112] = 6
    for how in ({"format": "JPEG", "exif": exif}, {"format": "TIFF", "compression": "tiff_lzw"}):
        file = BytesIO()
        Image.fromarray(rgb).save(file, **how)
        found.append(file.getvalue())
    found.append(png(rgb[:, :, 0].astype(np.uint16) << 8))
    return found


def read_image(_: Scratch, content: bytes) -> None:
    for upright in (False, True):
        try:
            image = open_rgb("a.png", upright, content)
        except BadFile as err:
            assert "\n" not in str(err)
        else:
            assert image.mode == "RGB"
            assert np.array(image).shape == (image.height, image.width, 3)


def labels(_: Scratch) -> list[bytes]:
    label = np.zeros((6, 5), np.uint16)
    label[2:4] = 300
    return [png(label), png(label.astype(np.uint8)), png(capture(1, (6, 5))[0])]


def read_one_label(_: Scratch, content: bytes) -> None:
    label = read_label(Path("a_grooves.png"), (6, 5), content)
    assert label.shape == (6, 5) and label.dtype == np.uint16


def groups_files(_: Scratch) -> list[bytes]:
    return [b"stem,group\na,train\nb,crate 1\n# why\nc,skip\n", b"a\tx\nb\ty\nc\tx\n"]


def read_groups_file(scratch: Scratch, content: bytes) -> None:
    path = scratch.folder / "groups.csv"
    path.write_bytes(content)
    groups = read_groups(path, ["a", "b", "c"])
    assert groups.keys() == {"a", "b", "c"} and all(groups.values())


def configs(scratch: Scratch) -> list[bytes]:
    data = [str(scratch.shards), str(scratch.tars)]
    words = {"data": data, "lr": 1e-4, "epochs": 3, "recipe": "near", "run": "r", "flip": 0.5}
    return [
        json.dumps({**words, "size": "28x42", "weights": [1.0, 0.5]}).encode(),
        json.dumps({"settings": words}).encode(),
    ]


def read_config(scratch: Scratch, content: bytes) -> None:
    path = scratch.folder / "config.json"
    path.write_bytes(content)
    groups = (DataSettings, AugmentSettings, ModelSettings, LoraSettings, LossSettings)
    parse(
        "x",
        *groups,
        TrainSettings,
        argv=["--config", str(path)],
        presets=("recipe", {"near": {"lr": 3e-4}, "document": {}}),
    )
