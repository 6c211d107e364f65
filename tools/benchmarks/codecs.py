"""Measure what each way of storing a sample costs and changes: bytes, time, error, a run's loss."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np

from depthdist.core.text_table import format_table
from tools.benchmarks.captures import IMAGE_SIZE, CaptureSettings, make_raw
from tools.benchmarks.processes import print_progress

if TYPE_CHECKING:
    from depthdist.data.batch import Batch
    from depthdist.data.loader import Loader
    from depthdist.shards.settings import ShardSettings

T = TypeVar("T")
U = TypeVar("U")


class ImageCodec(NamedTuple):
    """A way to store images, as tools/shard.py's --rgb, --quality and --subsampling."""

    codec: Literal["jpeg", "png", "raw"]
    quality: int = 95
    subsampling: Literal["420", "444"] = "420"

    def __str__(self) -> str:
        if self.codec == "jpeg":
            return f"jpeg {self.quality} {':'.join(self.subsampling)}"
        return f"{self.codec}, lossless"


DEFAULT = ImageCodec("jpeg", 95, "420")  # tools/shard.py's
LOSSLESS = ImageCodec("png")
IMAGE_CODECS = (
    ImageCodec("jpeg", 75, "420"),
    ImageCodec("jpeg", 90, "420"),
    DEFAULT,
    ImageCodec("jpeg", 95, "444"),
    ImageCodec("jpeg", 98, "444"),
    LOSSLESS,
    ImageCodec("raw"),
)
FAR_MM = 4000.0


@dataclass(frozen=True)
class CodecSettings(CaptureSettings):
    """Codecs."""

    run: Path | None = None
    """Also score this run with its validation captures stored each way; --raw are the captures
    that it was trained on."""
    raw: str = "data/tires_raw"
    "Captures for --run."

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        if self.run and not (self.run / "run.json").exists():
            return [f"--run {self.run}: expected a run's folder"]
        return []


def compare_codecs(settings: CodecSettings) -> int:
    """Print both tables."""
    from depthdist.captures.layouts import find_pairs
    from depthdist.captures.readers import read_capture
    from depthdist.geometry.image_resizing import resize_rgb

    images = []
    depths_mm = []
    for pair in find_pairs(make_raw(settings, settings.captures))[0]:
        capture = read_capture(pair)
        images.append(resize_rgb(capture.image, IMAGE_SIZE))
        depths_mm.append(np.ascontiguousarray(capture.xyz[:, :, 2]))
    effects: dict[str, str] = {}
    of_run = ""
    if settings.run:
        effects, count = loss_effects(settings, settings.run)
        of_run = f"; loss of {settings.run} on its {count} validation captures"
    print(f"images at {IMAGE_SIZE}, {len(images)} captures, one thread, means{of_run}")
    print(image_table(images, effects))
    print(f"\ndepth at {settings.capture_size}, far 4000 mm, in steps of 0.061 mm")
    print(depth_table(depths_mm, effects))
    print(
        "\nencoding depth includes quantizing it; the loss of the default, jpeg 95 4:2:0 and npy,"
        " is what the last column says for both"
    )
    return 0


def image_table(images: list[np.ndarray], effects: dict[str, str]) -> str:
    """Return a row for each way to store images."""
    from depthdist.shards.encoding import encode_rgb

    rows = []
    for codec in IMAGE_CODECS:
        encode = partial(
            encode_rgb,
            size=IMAGE_SIZE,
            codec=codec.codec,
            quality=codec.quality,
            subsampling=codec.subsampling,
        )
        encoded, encode_ms = timed(encode, images)
        decoded, decode_ms = timed(decode_image, encoded)
        errors = [np.square(a.astype(float) - b).mean() for a, b in zip(decoded, images)]
        psnr = "exact"
        if max(errors):
            psnr = f"{mean(10 * np.log10(255**2 / e) for e in errors):.1f}"
        times = [f"{encode_ms:.1f}", f"{decode_ms:.1f}"]
        rows.append([codec, _mean_kib(encoded), *times, psnr, effects.get(str(codec), "")])
    header = ["", "KiB", "encode ms", "decode ms", "PSNR dB", "loss, against lossless"]
    return format_table(header, rows)


def depth_table(depths_mm: list[np.ndarray], effects: dict[str, str]) -> str:
    """Return a row for each way to store depth."""
    from depthdist.shards.encoding import encode_depth, quantize

    def encode(depth_mm: np.ndarray, codec: Literal["npy", "png"]) -> bytes:
        return encode_depth(quantize(depth_mm, 0.0, FAR_MM)[0], codec)

    rows = []
    codecs: tuple[Literal["npy", "png"], ...] = ("npy", "png")
    for codec in codecs:
        encoded, encode_ms = timed(partial(encode, codec=codec), depths_mm)
        decoded, decode_ms = timed(partial(decode_depth, codec), encoded)
        error_mm = 0.0
        for steps, depth_mm in zip(decoded, depths_mm):
            stored_mm = np.where(steps > 0, steps * (FAR_MM / 65535), np.nan)
            error_mm = max(error_mm, float(np.nanmax(np.abs(stored_mm - depth_mm))))
        times = [f"{encode_ms:.1f}", f"{decode_ms:.1f}"]
        loss = effects.get("depth", "")
        rows.append([codec, _mean_kib(encoded), *times, f"{error_mm:.4f}", loss])
    float32_kib = mean(depth_mm.nbytes for depth_mm in depths_mm) / 1024
    rows.append(["float32 npy", f"{float32_kib:.0f}", "", "", f"{0:.4f}", ""])
    header = ["", "KiB", "encode ms", "decode ms", "max error mm", "loss, against float32"]
    return format_table(header, rows)


def _mean_kib(encoded: list[bytes]) -> str:
    return f"{mean(map(len, encoded)) / 1024:.0f}"


def timed(function: Callable[[T], U], inputs: list[T]) -> tuple[list[U], float]:
    """Return what the function gives for each input, and its mean CPU time, ms."""
    function(inputs[0])
    start = time.thread_time()
    outputs = [function(value) for value in inputs]
    return outputs, (time.thread_time() - start) / len(inputs) * 1000


def decode_image(content: bytes) -> np.ndarray:
    """Return the RGB image of a JPEG, PNG or .npy."""
    import simplejpeg
    from PIL import Image

    if content[:2] == b"\xff\xd8":
        return np.asarray(simplejpeg.decode_jpeg(content))
    if content[:6] == np.lib.format.MAGIC_PREFIX:
        return np.asarray(np.load(BytesIO(content)))
    return np.asarray(Image.open(BytesIO(content)))


def decode_depth(codec: str, content: bytes) -> np.ndarray:
    """Return the quantized depth of a .npy or PNG."""
    from PIL import Image

    return np.asarray(np.load(BytesIO(content)) if codec == "npy" else Image.open(BytesIO(content)))


# ------------------------------------------------------------------------------ the loss of a run


def loss_effects(settings: CodecSettings, run_folder: Path) -> tuple[dict[str, str], int]:
    """Return the run's loss by name of the codec, and the number of validation captures.

    Each is a text with the difference from the lossless one; "depth" is that of quantized depth
    from float32.
    """
    from depthdist.core.environment import pick_device, silence_libraries
    from depthdist.data.dataset import open_dataset
    from depthdist.data.loader import Loader
    from depthdist.evaluation.predictors import network_predictor
    from depthdist.evaluation.scoring import score
    from depthdist.models.adapter import load_adapter
    from depthdist.runs.run_folder import open_run
    from depthdist.shards.build import build_shards

    silence_libraries()
    run = open_run(run_folder)
    device = pick_device()
    model, record = load_adapter(run_folder / "best")
    model.to(device)
    original: dict[str, Any] = open_dataset(run.data).parts[0].raw["settings"]
    losses: dict[str, float] = {}
    float32_loss = 0.0
    count = 0

    def loss(loader: Loader, change: Callable[[Batch], Batch] = lambda batch: batch) -> float:
        batches = (change(encoded.to(device)) for encoded in loader.evaluate("val", 1, 0, 1))
        scores = score(
            network_predictor(model),
            batches,
            loader.dataset.count("val"),
            record.bounds,
            run.loss,
            device,
        )
        return scores["none"].means()["loss"]

    for codec in IMAGE_CODECS:
        print_progress(f"scoring {run_folder} with {codec}")
        out = settings.work / "codecs"
        build_shards(shard_settings(codec, settings.raw, out, original, record.size))
        loader = Loader(open_dataset(replace(run.data, data=(str(out),))), device=device)
        losses[str(codec)] = loss(loader)
        if codec == DEFAULT:
            float32_loss = loss(loader, with_float32_depth(Path(settings.raw)))
            count = loader.dataset.count("val")
    lossless = losses[str(LOSSLESS)]
    effects = {name: f"{value:.6f} {value / lossless - 1:+.4%}" for name, value in losses.items()}
    quantized = losses[str(DEFAULT)]
    effects["depth"] = f"{quantized:.6f} {quantized / float32_loss - 1:+.4%}"
    return effects, count


def shard_settings(
    codec: ImageCodec, raw: str, out: Path, original: dict[str, Any], size: tuple[int, int]
) -> ShardSettings:
    """Return the settings of shards with that codec, split and cut as the `original` ones."""
    from depthdist.core.settings import Size
    from depthdist.shards.settings import ShardSettings

    names = ("split", "val", "seed", "session_gap", "near", "far", "depth_size")
    return ShardSettings(
        raw=raw,
        out=str(out),
        size=Size(*size),
        rgb=codec.codec,
        quality=codec.quality,
        subsampling=codec.subsampling,
        **{name: original[name] for name in names},
    )


def with_float32_depth(raw: Path) -> Callable[[Batch], Batch]:
    """Return a function that gives a batch the captures' own float32 depth where it is valid."""
    import torch

    from depthdist.captures.layouts import find_pairs
    from depthdist.captures.readers import read_xyz

    point_maps = {pair.stem: pair.xyz for pair in find_pairs(raw)[0]}

    def change(batch: Batch) -> Batch:
        depth_mm = np.stack([read_xyz(point_maps[key])[:, :, 2] for key in batch.stems])
        stored = torch.from_numpy(depth_mm).to(batch.mask.device)
        batch.depth_mm = torch.where(batch.mask, stored, 0.0)
        return batch

    return change
