"""What each way of storing a sample costs and changes: bytes, time, error, and the loss of a
trained run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from tools.benchmarks.captures import CaptureSettings, make_raw, say

PICTURES = [
    ("jpeg", q, s) for q, s in ((75, "420"), (90, "420"), (95, "420"), (95, "444"), (98, "444"))
] + [("png", 95, "420"), ("raw", 95, "420")]
STORED = "jpeg 95 4:2:0"  # tools/shard.py's default


@dataclass(frozen=True)
class CodecSettings(CaptureSettings):
    """Codecs"""

    run: Path | None = None
    """Also score this run with its validation captures stored each way; --raw are the captures
    it learned from."""
    raw: str = "data/tires_raw"
    "Captures for --run."

    def problems(self) -> list[str]:
        return (
            [f"--run {self.run}: expected a run's folder"]
            if self.run and not (self.run / "run.json").exists()
            else []
        )


def codecs(settings: CodecSettings) -> int:
    """Both tables."""
    from depthdist.captures.layouts import find_pairs
    from depthdist.captures.readers import read_pair
    from depthdist.core.settings import Size
    from depthdist.geometry.resampling import resize_rgb
    from depthdist.shards.encoding import encode_depth, encode_rgb, quantize

    pairs = find_pairs(make_raw(settings, settings.captures))[0]
    size = Size(756, 1260)
    raw = [
        (resize_rgb(rgb, size), np.ascontiguousarray(xyz[:, :, 2]))
        for rgb, xyz in map(read_pair, pairs)
    ]
    effect = loss_effects(settings) if settings.run else {}
    print(
        f"pictures at {size}, {len(raw)} captures, one thread, means"
        + (
            f"; loss of {settings.run} on its {effect['count']} validation captures"
            if effect
            else ""
        )
    )
    print(
        f"{'':<16}{'KiB':>8}{'encode ms':>11}{'decode ms':>11}{'PSNR dB':>9}{'loss, against lossless':>24}"
    )
    for codec, quality, subsampling in PICTURES:
        name = picture_name(codec, quality, subsampling)
        made, encode_ms = timed(
            lambda rgb: encode_rgb(rgb, size, codec, quality, subsampling), [rgb for rgb, _ in raw]
        )
        back, decode_ms = timed(decode_picture, made)
        errors = [np.square(a.astype(float) - b).mean() for a, (b, _) in zip(back, raw)]
        psnr = f"{mean(10 * np.log10(255**2 / e) for e in errors):.1f}" if max(errors) else "exact"
        print(
            f"{name:<16}{mean(map(len, made)) / 1024:>8.0f}{encode_ms:>11.1f}{decode_ms:>11.1f}{psnr:>9}{effect.get(name, ''):>24}"
        )
    print(
        f"\ndepth at {settings.capture_size}, far 4000 mm, in steps of 0.061"
        f" mm\n{'':<16}{'KiB':>8}{'encode ms':>11}{'decode ms':>11}{'most off mm':>12}{'loss, against float32':>24}"
    )
    for codec in ("npy", "png"):
        made, encode_ms = timed(
            lambda z: encode_depth(quantize(z, 0.0, 4000.0)[0], codec), [z for _, z in raw]
        )
        back, decode_ms = timed(lambda content: decode_depth(codec, content), made)
        off = max(
            float(np.nanmax(np.abs(np.where(q > 0, q * (4000 / 65535), np.nan) - z)))
            for q, (_, z) in zip(back, raw)
        )
        print(
            f"{codec:<16}{mean(map(len, made)) / 1024:>8.0f}{encode_ms:>11.1f}{decode_ms:>11.1f}{off:>12.4f}{effect.get('depth', ''):>24}"
        )
    z = [z for _, z in raw]
    print(f"{'float32 npy':<16}{mean(a.nbytes for a in z) / 1024:>8.0f}{'':>11}{'':>11}{0:>12.4f}")
    print(
        "\nencoding a depth includes quantising it; the loss of the default, jpeg 95 4:2:0 and npy,"
        " is what the last column says for both"
    )
    return 0


def picture_name(codec: str, quality: int, subsampling: str) -> str:
    return f"{codec}, lossless" if codec != "jpeg" else f"jpeg {quality} {':'.join(subsampling)}"


def timed(function: Callable[[Any], Any], inputs: list[Any]) -> tuple[list[Any], float]:
    """What the function gives for each input, and its CPU time for one, ms."""
    function(inputs[0])
    began = time.thread_time()
    found = [function(value) for value in inputs]
    return found, (time.thread_time() - began) / len(inputs) * 1000


def decode_picture(content: bytes) -> np.ndarray:
    from io import BytesIO

    import simplejpeg
    from PIL import Image

    if content[:2] == b"\xff\xd8":
        return simplejpeg.decode_jpeg(content)
    return (
        np.load(BytesIO(content))
        if content[:6] == np.lib.format.MAGIC_PREFIX
        else np.asarray(Image.open(BytesIO(content)))
    )


def decode_depth(codec: str, content: bytes) -> np.ndarray:
    from io import BytesIO

    from PIL import Image

    return np.load(BytesIO(content)) if codec == "npy" else np.asarray(Image.open(BytesIO(content)))


def loss_effects(settings: CodecSettings) -> dict[str, Any]:
    """By name of a codec the run's loss, and how far it is from the lossless one.

    "depth": the same for quantised depth.
    """
    from depthdist.core.environment import pick_device, silence_libraries
    from depthdist.data.batch import Batch
    from depthdist.data.dataset import open_dataset
    from depthdist.data.loader import Loader
    from depthdist.evaluation.predictors import network_predictor
    from depthdist.evaluation.scoring import score
    from depthdist.models.adapter import load_adapter
    from depthdist.runs.run_folder import open_run
    from depthdist.shards.build import build_shards
    from depthdist.shards.settings import ShardSettings

    silence_libraries()
    run, device = open_run(settings.run), pick_device()
    model, record = load_adapter(settings.run / "best")
    model.to(device)
    made = open_dataset(run.data).parts[0].raw["settings"]
    losses: dict[str, float] = {}

    def loss(loader: Loader, change: Callable[[Batch], Batch] = lambda batch: batch) -> float:
        batches = (change(packed.to(device)) for packed in loader.evaluate("val", 1, 0, 1))
        return score(
            network_predictor(model),
            batches,
            loader.dataset.count("val"),
            record.bounds,
            run.loss,
            device,
        )["none"].means()["loss"]

    for codec, quality, subsampling in PICTURES:
        name = picture_name(codec, quality, subsampling)
        say(f"scoring {settings.run} with {name}")
        out = settings.work / "codecs"
        how = {
            key: made[key]
            for key in ("split", "val", "seed", "session_gap", "near", "far", "depth_size")
        }
        size = type(ShardSettings().size)(*record.size)
        build_shards(
            ShardSettings(
                raw=settings.raw,
                out=str(out),
                size=size,
                rgb=codec,
                quality=quality,
                subsampling=subsampling,
                **how,
            )
        )
        loader = Loader(open_dataset(replace(run.data, data=(str(out),))), device=device)
        losses[name] = loss(loader)
        if name == STORED:
            losses["depth"], count = (
                loss(loader, lambda batch: unquantised(batch, Path(settings.raw), loader)),
                loader.dataset.count("val"),
            )
    exact = losses[picture_name("png", 95, "420")]
    effects = {name: f"{value:.6f} {value / exact - 1:+.4%}" for name, value in losses.items()}
    return {
        **effects,
        "depth": f"{losses[STORED]:.6f} {losses[STORED] / losses['depth'] - 1:+.4%}",
        "count": count,
    }


def unquantised(batch: Any, raw: Path, loader: Any) -> Any:
    """The batch with the captures' own float32 depth where it is valid."""
    import torch

    from depthdist.captures.layouts import find_pairs
    from depthdist.captures.readers import read_xyz

    clouds = {pair.stem: pair.xyz for pair in find_pairs(raw)[0]}
    z = np.stack([read_xyz(clouds[key])[:, :, 2] for key in batch.stems])
    batch.depth_mm = torch.where(batch.mask, torch.from_numpy(z).to(batch.mask.device), 0.0)
    return batch
