"""The compared data loaders: a function for each, and one for the conversion to its own format.

They run in the loaders' own environments (measure_loader.py), so nothing of depthdist is imported
here but in `depthdist` itself. A loader is a generator that sets up, yields the batches of one
epoch and cleans up:

    rgb      (B, h, w, 3) uint8
    depth    (B, H, W) uint16
    mask     (B, H, ceil(W / 8)) uint8 packed, or (B, H, W) bool
    numbers  of the samples

Its code is what its documentation tells users to write; where the user supplies the JPEG decoder it
is simplejpeg. All of them convert and read the same bytes: JPEG, uint16 .npy and packed masks in
the tars of tools/shard.py.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Job(NamedTuple):
    """What to load and how.

    shards      a dataset of tools/shard.py, all of it in train
    data        the same in the loader's format; the captures of the raw files
    size        height and width of the RGB; of the network's input for the raw files
    depth_size  height and width of the depth
    look        whether to add up all that is delivered in the warm-up epoch
    """

    loader: str
    shards: str
    data: str
    batch: int
    workers: int
    samples: int
    size: tuple[int, int]
    depth_size: tuple[int, int]
    look: bool = False

    @property
    def tars(self) -> list[str]:
        """The paths of the dataset's tars."""
        return sorted(map(str, Path(self.shards, "train").glob("*.tar")))


Batches = Iterator[tuple[Any, Any, Any, Iterable[Any]]]


def decode_jpeg(content: bytes) -> np.ndarray:
    """Return the RGB image (H, W, 3) uint8 of a JPEG."""
    import simplejpeg

    return np.asarray(simplejpeg.decode_jpeg(content))


def read_tars(paths: list[str]) -> Iterator[tuple[int, bytes, np.ndarray, np.ndarray]]:
    """Yield the samples of tars by tools/shard.py: number, JPEG, depth, mask.

    depth is (H, W) uint16, mask packed along W.
    """
    import webdataset as wds

    for sample in wds.WebDataset(paths, shardshuffle=False):
        depth = np.load(io.BytesIO(sample["depth.npy"]))
        mask = np.load(io.BytesIO(sample["mask.npy"]))
        yield int(sample["__key__"]), sample["rgb.jpg"], depth, mask


# ---------------------------------------------------------------------------------------- depthdist


def depthdist(job: Job, consumed: int = 0) -> Batches:
    """Load with depthdist, shuffled, values as they are stored; the buffers are used again.

    consumed  samples of the epoch that are skipped, as after a resume
    """
    from depthdist.data.dataset import DataSettings, open_dataset
    from depthdist.data.loader import Loader
    from depthdist.data.sample_order import Position, TrainPlan

    settings = DataSettings(data=(job.shards,), threads=job.workers)
    dataset = open_dataset(settings)
    plan = TrainPlan(dataset.count("train"), job.batch, job.batch, world=1)
    for packed in Loader(dataset, settings).train(plan, 0, 0, Position(0, consumed), epochs=1):
        # the last batch may be filled up with samples of weight 0
        samples = [loaded.sample for loaded in packed.loaded if loaded.weight]
        buffers = packed.buffers
        rgb = buffers.rgb[: len(samples)].numpy()
        depth = buffers.depth[: len(samples)].numpy()
        mask = buffers.mask[: len(samples)].numpy()
        yield rgb, depth.view(np.uint16), mask, samples


def depthdist_raw_pictures(job: Job) -> Batches:
    """Load with depthdist from shards without JPEG."""
    yield from depthdist(job)


# --------------------------------------------------------------------------------------- webdataset


def webdataset_as_written(job: Job) -> Batches:
    """Load with the lines of webdataset's README: images are decoded by Pillow."""
    yield from webdataset(job, "rgb8")


def webdataset_simplejpeg(job: Job) -> Batches:
    """Load with webdataset; images are decoded by simplejpeg."""

    def decode(name: str, content: bytes) -> np.ndarray | None:
        return decode_jpeg(content) if name.endswith("jpg") else None

    yield from webdataset(job, decode)


def webdataset(job: Job, decoder: Any) -> Batches:
    """Load with webdataset and that decoder of images."""
    import webdataset as wds
    from torch.utils.data import DataLoader

    dataset = (
        wds.WebDataset(job.tars, shardshuffle=False)
        .decode(decoder)
        .to_tuple("rgb.jpg", "depth.npy", "mask.npy", "__key__")
    )
    yield from DataLoader(dataset, batch_size=job.batch, num_workers=job.workers)


def decode_row(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return the sample of a row of a format that has columns."""
    return decode_jpeg(row["rgb"]), row["depth"], row["mask"], row["number"]


# ------------------------------------------------------------------------------------------ LitData


def litdata_rows(tar: str) -> Iterator[dict[str, Any]]:
    """Yield the samples of a tar as LitData's rows."""
    for number, rgb, depth, mask in read_tars([tar]):
        yield {"number": number, "rgb": rgb, "depth": depth, "mask": mask}


def litdata_convert(job: Job) -> None:
    """Write LitData's chunks."""
    from litdata import optimize

    optimize(litdata_rows, inputs=job.tars, output_dir=job.data, chunk_bytes="64MB", num_workers=1)


def litdata(job: Job) -> Batches:
    """Load with LitData."""
    from litdata import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(job.data, transform=decode_row)
    yield from StreamingDataLoader(dataset, batch_size=job.batch, num_workers=job.workers)


# ------------------------------------------------------------------------------- MosaicML Streaming


def mosaicml_convert(job: Job) -> None:
    """Write MosaicML Streaming's MDS shards."""
    from streaming import MDSWriter

    columns = {"number": "int", "rgb": "bytes", "depth": "ndarray:uint16", "mask": "ndarray:uint8"}
    with MDSWriter(out=job.data, columns=columns) as writer:
        for number, rgb, depth, mask in read_tars(job.tars):
            writer.write({"number": number, "rgb": rgb, "depth": depth, "mask": mask})


def mosaicml(job: Job) -> Batches:
    """Load with MosaicML Streaming."""
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    class Samples(StreamingDataset):
        def __getitem__(self, index: int) -> tuple[Any, ...]:
            return decode_row(super().__getitem__(index))

    yield from DataLoader(
        Samples(local=job.data, batch_size=job.batch), batch_size=job.batch, num_workers=job.workers
    )


# --------------------------------------------------------------------------------- Megatron Energon


def energon_convert(job: Job) -> None:
    """Link the same tars, and add what `energon prepare` writes beside them."""
    from megatron.energon.flavors import BaseWebdatasetFactory

    for tar in job.tars:
        os.link(tar, Path(job.data, Path(tar).name))
    names = [Path(tar).name for tar in job.tars]
    BaseWebdatasetFactory.prepare_dataset(
        job.data, names, split_parts_ratio=[("train", 1.0)], shuffle_seed=None, workers=1
    )
    text = "__module__: megatron.energon\n__class__: CrudeWebdataset\n"
    Path(job.data, ".nv-meta/dataset.yaml").write_text(text, encoding="utf-8")


def energon(job: Job) -> Batches:
    """Load with Megatron Energon."""
    import torch
    from megatron.energon import (
        Cooker,
        DefaultTaskEncoder,
        WorkerConfig,
        get_loader,
        get_train_dataset,
        stateless,
    )

    @stateless
    def cook(sample: dict[str, Any]) -> dict[str, Any]:
        return {
            "rgb": torch.from_numpy(decode_jpeg(sample["rgb.jpg"])),
            "depth": torch.from_numpy(np.load(io.BytesIO(sample["depth.npy"]))),
            "mask": torch.from_numpy(np.load(io.BytesIO(sample["mask.npy"]))),
            "key": sample["__key__"],
        }

    class Task(DefaultTaskEncoder):
        cookers = (Cooker(cook),)
        decoder = None

        def batch(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
            names = ("rgb", "depth", "mask")
            stacked = {name: torch.stack([s[name] for s in samples]) for name in names}
            return {**stacked, "key": [s["key"] for s in samples]}

    dataset = get_train_dataset(
        job.data,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=job.workers),
        batch_size=job.batch,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        task_encoder=Task(),
        repeat=False,
    )
    for batch in get_loader(dataset):
        yield batch["rgb"], batch["depth"], batch["mask"], batch["key"]


# --------------------------------------------------------------------------------------------- DALI


def dali_convert(job: Job) -> None:
    """Write tars with the arrays' bare bytes, which DALI maps without a copy, and their indexes."""
    import webdataset as wds

    for tar in job.tars:
        path = Path(job.data, Path(tar).name)
        with wds.TarWriter(str(path)) as writer:
            for number, rgb, depth, mask in read_tars([tar]):
                bare = {
                    "depth": depth.tobytes(),
                    "mask": mask.tobytes(),
                    "number": np.int64(number).tobytes(),
                }
                writer.write({"__key__": f"{number:08d}", "jpg": rgb, **bare})
        subprocess.run(
            [Path(sys.executable).with_name("wds2idx"), path, path.with_suffix(".idx")],
            check=True,
            stdout=subprocess.DEVNULL,
        )


def dali(job: Job) -> Batches:
    """Load with DALI, on the CPU."""
    from nvidia.dali import fn, pipeline_def, types

    tars = sorted(map(str, Path(job.data).glob("*.tar")))
    height, width = job.depth_size

    @pipeline_def(batch_size=job.batch, num_threads=job.workers, device_id=None)
    def pipeline() -> tuple[Any, ...]:
        content, depth, mask, number = fn.readers.webdataset(
            name="reader",
            paths=tars,
            index_paths=[str(Path(tar).with_suffix(".idx")) for tar in tars],
            ext=["jpg", "depth", "mask", "number"],
            dtypes=[types.UINT8, types.UINT16, types.UINT8, types.INT64],
            missing_component_behavior="error",
        )
        rgb = fn.decoders.image(content, device="cpu", output_type=types.RGB)
        return (
            rgb,
            fn.reshape(depth, shape=[height, width]),
            fn.reshape(mask, shape=[height, -1]),
            number,
        )

    pipe = pipeline()
    pipe.build()
    left = pipe.epoch_size("reader")
    while left > 0:
        rgb, depth, mask, number = (np.asarray(part.as_tensor()) for part in pipe.run())
        real = min(left, job.batch)
        yield rgb[:real], depth[:real], mask[:real], number[:real, 0]
        left -= real


# --------------------------------------------------------------------------------- no shards at all


def raw_path(job: Job) -> Batches:
    """Load the captures themselves, as the model's documentation does.

    That is Pillow, `np.load`, transformers' processor and inverse depth. Here rgb is (B, 3, h, w)
    float32, normalized, and depth the normalized inverse depth (B, H, W) float32.
    """
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from transformers import DPTImageProcessor

    images = sorted(Path(job.data).glob("*/images/*_color.png"))[: job.samples]
    near_mm, far_mm = 250.0, 4000.0
    processor = DPTImageProcessor(
        do_resize=True,
        size={"height": job.size[0], "width": job.size[1]},
        keep_aspect_ratio=False,
        ensure_multiple_of=14,
        resample=3,  # bicubic
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )

    class Captures(Dataset[tuple[Any, ...]]):
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, i: int) -> tuple[Any, ...]:
            image = Image.open(images[i]).convert("RGB")
            rgb = processor(images=image, return_tensors="pt")["pixel_values"][0]
            path = str(images[i]).replace("/images/", "/depth/")
            depth_mm = np.load(path.replace("_color.png", "_rawDepth.npy"))[..., 2]
            mask = np.isfinite(depth_mm) & (depth_mm > near_mm) & (depth_mm < far_mm)
            inv_depth = 1 / np.where(mask, depth_mm, far_mm) - 1 / far_mm
            target = inv_depth / (1 / near_mm - 1 / far_mm)
            return rgb, target.astype(np.float32), mask, i

    yield from DataLoader(Captures(), batch_size=job.batch, shuffle=True, num_workers=job.workers)


# ---------------------------------------------------------------------------------------- by name

CONVERT: dict[str, Callable[[Job], None]] = {
    "litdata": litdata_convert,
    "mosaicml": mosaicml_convert,
    "energon": energon_convert,
    "dali": dali_convert,
}
LOADERS: dict[str, Callable[[Job], Batches]] = {
    f.__name__: f
    for f in (
        webdataset_as_written,
        webdataset_simplejpeg,
        litdata,
        mosaicml,
        energon,
        dali,
        depthdist,
        depthdist_raw_pictures,
        raw_path,
    )
}
