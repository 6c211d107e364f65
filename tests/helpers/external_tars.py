"""Small tars as other programs write them, and what is read of them."""

import json
from io import BytesIO

import numpy as np
import pytest
import simplejpeg
import webdataset
from PIL import Image

from depthdist.core.settings import Size
from depthdist.data.dataset import DataSettings, ReadSettings, open_dataset
from depthdist.data.loader import Loader
from depthdist.shards.external_tars import index_in_place
from depthdist.shards.settings import ShardSettings
from depthdist.shards.verify import verify_dataset
from helpers.captures import capture

NET = Size(28, 42)


def npy(array, **how):
    file = BytesIO()
    np.save(file, array, **how)
    return file.getvalue()


def png(array):
    file = BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def jpg(rgb):
    return simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), 95, colorspace="RGB")


def picture(i, size=NET):
    return np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8) // 4 + 8 * i


def z_mm(i):
    """(30, 40) float64, NaN in some pixels."""
    return capture(i)[1][:, :, 2].astype(np.float64)


def whole_mm(i):
    """(30, 40) uint16 mm, 0 in some pixels."""
    return np.nan_to_num(z_mm(i)).astype(np.uint16)


def plain(i):
    """jpg + uint16 npy, with members that nobody needs."""
    return {
        "jpg": jpg(picture(i)),
        "depth.npy": npy(whole_mm(i)),
        "json": json.dumps({"id": i}).encode(),
        "pth": b"\x80never loaded",
    }


def write(
    folder, make=plain, shards=(4, 3), change=lambda i, members: members, key="{:06d}".format
):
    """Tars with that many samples each, as webdataset's own writer writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for n, count in enumerate(shards):
        with webdataset.TarWriter(str(folder / f"shard-{n:06d}.tar"), encoder=False) as tar:
            for i in range(first, first + count):
                tar.write({"__key__": key(i), **change(i, make(i))})
        first += count
    return folder


def index(folder, **settings):
    return index_in_place(
        ShardSettings(**{"index": str(folder), "size": NET, "val": 0.3, **settings}), workers=2
    )


def streamed(folder, split):
    """Every sample of a split through the loader, by key: rgb, depth_mm, mask."""
    dataset = open_dataset(DataSettings(data=(str(folder),)))
    batches = [
        packed.to("cpu")
        for packed in Loader(dataset, ReadSettings(threads=1)).evaluate(
            split, micro_batch=2, rank=0, world=1
        )
    ]
    return {
        b.stems[i]: (b.rgb[i].numpy(), b.depth_mm[i].numpy(), b.mask[i].numpy())
        for b in batches
        for i in range(len(b.stems))
        if b.weight[i]
    }


def fault(folder, **settings):
    with pytest.raises(ValueError) as caught:
        index(folder, **settings)
    assert not (folder / "index.json").exists() and not list(folder.glob("*.npy"))
    return str(caught.value)


def rejects(folder, **settings):
    """(key, why) of what was left out, once the rest is there and right."""
    made = index(folder, split="none", **settings)
    listed = [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]
    assert (
        listed == made["rejected"]
        and made["rejects"] == len(listed)
        and verify_dataset(folder) == []
    )
    assert len(streamed(folder, "train")) == made["splits"]["train"]["count"] == 7 - len(listed)
    return [(r["shard"], r["key"], r["why"]) for r in listed]


def quarters(i):
    """jpg + depth.png in quarters of a mm + mask.png, the left 5 columns masked."""
    mask = np.full((30, 40), 255, np.uint8)
    mask[:, :5] = 0
    return {
        "color.jpg": jpg(picture(i)),
        "depth.png": png((np.nan_to_num(z_mm(i)) * 4).astype(np.uint16)),
        "mask.png": png(mask),
    }


def metres(i):
    """jpg + float64 metres, (H, W, 1), in Fortran's order."""
    return {
        "image.jpeg": jpg(picture(i)),
        "npy": npy(np.asfortranarray(z_mm(i)[:, :, None] / 1000)),
    }


def expected_mm(make, i):
    """float64 mm, 0 where invalid, from the formula alone."""
    z = np.nan_to_num(z_mm(i))
    if make is quarters:
        z = np.floor(z * 4) / 4
        z[:, :5] = 0
    return np.floor(z) if make is plain else z
