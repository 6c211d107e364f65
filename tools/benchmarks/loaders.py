"""Data loaders side by side: one function a loader, one a conversion to its own format.

Run by `tools/bench.py data`.

    PYTHON tools/benchmarks/loaders.py convert '{"loader": "litdata", "shards": "data/mine", "data":
    "data/mine_litdata", ...}'
    # a warm-up epoch, a timed one, one line of JSON
    PYTHON tools/benchmarks/loaders.py measure '{"loader": "litdata", ...}'

PYTHON is that of the loader's own environment, so nothing of depthdist is imported here but in
`depthdist` itself. A loader is a generator that sets up, yields the batches of one epoch and cleans
up:

    rgb (B, h, w, 3) uint8; depth (B, H, W) uint16; mask (B, H, ceil(W / 8)) uint8 packed, or (B, H,
    W) bool; the samples' numbers

Its code is what its documentation tells users to write; where the user supplies the JPEG decoder it
is simplejpeg. All of them convert and read the same bytes, that are JPEG and uint16 .npy and packed
masks in the tars of tools/shard.py.
"""

from __future__ import annotations

import gc
import io
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Job(NamedTuple):
    """What to load and how.

    `shards` is a dataset of tools/shard.py, all of it in train; `data` the same in the loader's
    format.
    """

    loader: str
    shards: str
    data: str
    batch: int
    workers: int
    samples: int
    size: tuple[int, int]
    "Height and width of the RGB; of the network's input on the raw path."
    depth_size: tuple[int, int]
    look: bool = False
    "Whether to add up all that is delivered while warming up."

    @property
    def tars(self) -> list[str]:
        return sorted(map(str, Path(self.shards, "train").glob("*.tar")))


Batches = Iterator[tuple[Any, Any, Any, Iterable[Any]]]


def jpeg(content: bytes) -> np.ndarray:
    import simplejpeg

    return simplejpeg.decode_jpeg(content)


def read_tars(paths: list[str]) -> Iterator[tuple[int, bytes, np.ndarray, np.ndarray]]:
    """The samples of tars by tools/shard.py for conversion: number, JPEG, depth (H, W) uint16, mask
    packed along W.
    """
    import webdataset as wds

    for sample in wds.WebDataset(paths, shardshuffle=False):
        depth, mask = (np.load(io.BytesIO(sample[name])) for name in ("depth.npy", "mask.npy"))
        yield int(sample["__key__"]), sample["rgb.jpg"], depth, mask


# ---------------------------------------------------------------------------------------- depthdist


def depthdist(job: Job, consumed: int = 0) -> Batches:
    """Ours, shuffled, as it is stored; the buffers are used again.

    Goes on after `consumed` samples of the epoch.
    """
    from depthdist.data.dataset import DataSettings, open_dataset
    from depthdist.data.loader import Loader
    from depthdist.data.sample_order import Position, TrainPlan

    settings = DataSettings(data=(job.shards,), threads=job.workers)
    dataset = open_dataset(settings)
    plan = TrainPlan(dataset.count("train"), job.batch, job.batch, world=1)
    for packed in Loader(dataset, settings).train(plan, 0, 0, Position(0, consumed), epochs=1):
        samples = [
            loaded.sample for loaded in packed.loaded if loaded.weight
        ]  # the last batch may be filled up
        rgb, depth, mask = (
            part[: len(samples)].numpy()
            for part in (packed.buffers.rgb, packed.buffers.depth, packed.buffers.mask)
        )
        yield rgb, depth.view(np.uint16), mask, samples


def depthdist_raw_pictures(job: Job) -> Batches:
    """The same on shards without JPEG."""
    yield from depthdist(job)


# --------------------------------------------------------------------------------------- webdataset


def webdataset_as_written(job: Job) -> Batches:
    """The README's lines: pictures by Pillow."""
    yield from webdataset(job, "rgb8")


def webdataset_simplejpeg(job: Job) -> Batches:
    yield from webdataset(
        job, lambda name, content: jpeg(content) if name.endswith("jpg") else None
    )


def webdataset(job: Job, decoder: Any) -> Batches:
    import webdataset as wds
    from torch.utils.data import DataLoader

    dataset = (
        wds.WebDataset(job.tars, shardshuffle=False)
        .decode(decoder)
        .to_tuple("rgb.jpg", "depth.npy", "mask.npy", "__key__")
    )
    yield from DataLoader(dataset, batch_size=job.batch, num_workers=job.workers)


def decoded(row: dict) -> tuple:
    """A row that came out of a format with a column for each of these."""
    return jpeg(row["rgb"]), row["depth"], row["mask"], row["number"]


# ------------------------------------------------------------------------------------------ LitData


def litdata_rows(tar: str) -> Iterator[dict]:
    for number, rgb, depth, mask in read_tars([tar]):
        yield {"number": number, "rgb": rgb, "depth": depth, "mask": mask}


def litdata_convert(job: Job) -> None:
    from litdata import optimize

    optimize(litdata_rows, inputs=job.tars, output_dir=job.data, chunk_bytes="64MB", num_workers=1)


def litdata(job: Job) -> Batches:
    from litdata import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(job.data, transform=decoded)
    yield from StreamingDataLoader(dataset, batch_size=job.batch, num_workers=job.workers)


# ------------------------------------------------------------------------------- MosaicML Streaming


def mosaicml_convert(job: Job) -> None:
    from streaming import MDSWriter

    columns = {"number": "int", "rgb": "bytes", "depth": "ndarray:uint16", "mask": "ndarray:uint8"}
    with MDSWriter(out=job.data, columns=columns) as writer:
        for number, rgb, depth, mask in read_tars(job.tars):
            writer.write({"number": number, "rgb": rgb, "depth": depth, "mask": mask})


def mosaicml(job: Job) -> Batches:
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    class Samples(StreamingDataset):
        def __getitem__(self, index):
            return decoded(super().__getitem__(index))

    yield from DataLoader(
        Samples(local=job.data, batch_size=job.batch), batch_size=job.batch, num_workers=job.workers
    )


# --------------------------------------------------------------------------------- Megatron Energon


def energon_convert(job: Job) -> None:
    """The very tars, and what `energon prepare` adds to them."""
    from megatron.energon.flavors import BaseWebdatasetFactory

    for tar in job.tars:
        os.link(tar, Path(job.data, Path(tar).name))
    names = [Path(tar).name for tar in job.tars]
    BaseWebdatasetFactory.prepare_dataset(
        job.data, names, split_parts_ratio=[("train", 1.0)], shuffle_seed=None, workers=1
    )
    text = "__module__: megatron.energon\n__class__: CrudeWebdataset\n"
    Path(job.data, ".nv-meta/dataset.yaml").write_text(text)


def energon(job: Job) -> Batches:
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
    def cook(sample: dict) -> dict:
        depth, mask = (
            torch.from_numpy(np.load(io.BytesIO(sample[name])))
            for name in ("depth.npy", "mask.npy")
        )
        return {
            "rgb": torch.from_numpy(jpeg(sample["rgb.jpg"])),
            "depth": depth,
            "mask": mask,
            "key": sample["__key__"],
        }

    class Task(DefaultTaskEncoder):
        cookers = [Cooker(cook)]
        decoder = None

        def batch(self, samples):
            return {
                name: torch.stack([s[name] for s in samples]) for name in ("rgb", "depth", "mask")
            } | {"key": [s["key"] for s in samples]}

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
    """Tars with the arrays' bare bytes, which DALI maps without a copy, and an index beside each."""
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
    from nvidia.dali import fn, pipeline_def, types

    tars = sorted(map(str, Path(job.data).glob("*.tar")))
    height, width = job.depth_size

    @pipeline_def(batch_size=job.batch, num_threads=job.workers, device_id=None)
    def pipeline():
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
    """The captures themselves, as the model's documentation has it: Pillow, `np.load`,
    transformers' processor, inverse depth.

    rgb is (B, 3, h, w) float32 then, normalised, and depth the normalised inverse (B, H, W)
    float32.
    """
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from transformers import DPTImageProcessor

    pictures = sorted(Path(job.data).glob("*/images/*_color.png"))[: job.samples]
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

    class Captures(Dataset):
        def __len__(self):
            return len(pictures)

        def __getitem__(self, i):
            rgb = processor(images=Image.open(pictures[i]).convert("RGB"), return_tensors="pt")[
                "pixel_values"
            ][0]
            path = (
                str(pictures[i])
                .replace("/images/", "/depth/")
                .replace("_color.png", "_rawDepth.npy")
            )
            depth_mm = np.load(path)[..., 2]
            mask = np.isfinite(depth_mm) & (depth_mm > near_mm) & (depth_mm < far_mm)
            inverse = (1 / np.where(mask, depth_mm, far_mm) - 1 / far_mm) / (
                1 / near_mm - 1 / far_mm
            )
            return rgb, inverse.astype(np.float32), mask, i

    yield from DataLoader(Captures(), batch_size=job.batch, shuffle=True, num_workers=job.workers)


# ---------------------------------------------------------------------------------------- measuring

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


def measure(job: Job) -> dict[str, Any]:
    """One epoch to warm up and one epoch timed; the loader is built anew for each.

    The raw path needs half to touch all files.
    """
    sums: Counter = Counter()
    warm = job._replace(samples=-(-job.samples // 2)) if job.loader == "raw_path" else job
    epoch(warm, lambda *batch: sums.update(totals(*batch)) if job.look else None)
    found = epoch(job, lambda *batch: None) | {"delivered": dict(sums)}
    if job.loader == "depthdist":
        start = time.perf_counter()
        next(depthdist(job, job.samples // 2))
        found["resume_s"] = time.perf_counter() - start
    return found


def epoch(job: Job, look: Callable[[Any, Any, Any], Any]) -> dict[str, Any]:
    """Time and count one epoch.

    CPU seconds are this process's and its workers', which are joined before the clock is read.
    """
    numbers, first_batch_s = Counter(), None
    cpu_before, start = cpu_seconds(), time.perf_counter()
    for rgb, depth, mask, keys in LOADERS[job.loader](job):
        first_batch_s = first_batch_s or time.perf_counter() - start
        look(rgb, depth, mask)
        numbers.update(map(int, keys))
    seconds = time.perf_counter() - start
    gc.collect()
    for worker in multiprocessing.active_children():
        worker.join(20)
    return {
        "samples": numbers.total(),
        "lost": job.samples - len(numbers),
        "repeated": numbers.total() - len(numbers),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds() - cpu_before,
        "first_batch_s": first_batch_s,
    }


def totals(rgb: Any, depth: Any, mask: Any) -> dict[str, int]:
    """Sums that do not depend on the order: of the pictures, of depth in steps, of the valid
    pixels.
    """
    rgb, depth, mask = (np.asarray(part) for part in (rgb, depth, mask))
    valid = mask.sum() if mask.dtype == bool else np.unpackbits(mask).sum()
    return {
        "rgb": int(rgb.sum(dtype=np.int64)),
        "depth": int(depth.sum(dtype=np.int64)),
        "valid": int(valid),
    }


def cpu_seconds() -> float:
    return sum(os.times()[:4])


if __name__ == "__main__":
    what, job = sys.argv[1], Job(**json.loads(sys.argv[2]))
    print(json.dumps(measure(job) if what == "measure" else CONVERT[job.loader](job)))
