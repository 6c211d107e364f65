"""Measure what storing images at the camera's size costs the faint contrast of relief."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np

from depthdist.core.text_table import format_table
from tools.benchmarks.codecs import ImageCodec, decode_image, timed

LONGEST_PX = 20.0  # wavelength; the shortest that an image has is 2 px
NEAR_GROOVE_PX = 20
CODECS = (
    ImageCodec("jpeg", 90, "420"),
    ImageCodec("jpeg", 90, "444"),
    ImageCodec("jpeg", 95, "420"),
    ImageCodec("jpeg", 95, "444"),
    ImageCodec("jpeg", 98, "420"),
    ImageCodec("jpeg", 98, "444"),
    ImageCodec("jpeg", 100, "444"),
    ImageCodec("png"),
    ImageCodec("raw"),
)


@dataclass(frozen=True)
class ReliefSettings:
    """Relief."""

    raw: Path = Path("data/tires_raw")
    "Captures with groove labels, as depthdist.synthetic makes them."

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        return [] if self.raw.is_dir() else [f"--raw {self.raw}: expected a folder of captures"]


class Relief(NamedTuple):
    """The relief of one image: the band of its log brightness, and where there are treads.

    band   (H, W) float64
    tread  (H, W) bool
    """

    band: np.ndarray
    tread: np.ndarray


def measure_relief(settings: ReliefSettings) -> int:
    """Print the table."""
    from depthdist.captures.layouts import find_pairs
    from depthdist.captures.readers import read_capture, read_label

    images = []
    reliefs = []
    for pair in find_pairs(settings.raw)[0]:
        if pair.grooves is None:
            continue
        image = np.array(read_capture(pair).image)
        images.append(image)
        label = read_label(pair.grooves, image.shape[:2])
        reliefs.append(Relief(band_of(image), near_grooves(label)))
    if not images:
        raise ValueError(
            f"{settings.raw}: no capture has a groove label; expected name_grooves.png"
        )
    share = mean(float(relief.tread.mean()) for relief in reliefs)
    signal = mean(_rms(relief.band[relief.tread]) for relief in reliefs)
    print(
        f"{len(images)} captures of {images[0].shape[0]}x{images[0].shape[1]}, one thread, means;"
        f" treads are the {share:.1%} of pixels within {NEAR_GROOVE_PX} px of a groove; their band"
        f" of 2..{LONGEST_PX:g} px has an RMS of {signal:.4f} in log brightness"
    )
    print(relief_table(images, reliefs))
    return 0


def relief_table(images: list[np.ndarray], reliefs: list[Relief]) -> str:
    """Return a row for each way to store images: size, times, error of the band on treads."""
    rows = []
    for name, encode in _encoders().items():
        encoded, encode_ms = timed(encode, images)
        decoded, decode_ms = timed(decode_image, encoded)
        shares = []
        for image, relief in zip(decoded, reliefs):
            error = (band_of(image) - relief.band)[relief.tread]
            shares.append(_rms(error) / _rms(relief.band[relief.tread]))
        megabytes = f"{mean(map(len, encoded)) / 1e6:.2f}"
        share = f"{mean(shares):.1%}" if max(shares) else "exact"
        rows.append([name, megabytes, f"{encode_ms:.0f}", f"{decode_ms:.1f}", share])
    return format_table(["", "MB", "encode ms", "decode ms", "error / signal"], rows)


def _encoders() -> dict[str, Callable[[np.ndarray], bytes]]:
    """Return what encodes an image, by the name of the way."""
    from depthdist.shards.encoding import encode_rgb

    found: dict[str, Callable[[np.ndarray], bytes]] = {
        str(codec): partial(
            encode_rgb,
            size=None,
            codec=codec.codec,
            quality=codec.quality,
            subsampling=codec.subsampling,
        )
        for codec in CODECS
    }
    found["webp 95 (not in shards)"] = partial(_as_webp, quality=95, lossless=False)
    found["webp, lossless (not in shards)"] = partial(_as_webp, quality=50, lossless=True)
    return found


def _as_webp(image: np.ndarray, quality: int, lossless: bool) -> bytes:
    from PIL import Image

    file = BytesIO()
    Image.fromarray(image).save(file, "WEBP", quality=quality, lossless=lossless, method=2)
    return file.getvalue()


def band_of(image: np.ndarray) -> np.ndarray:
    """Return (H, W) float64: wavelengths of 2..LONGEST_PX of an image's log brightness.

    image  (H, W, 3) uint8; its brightness is 1 + the mean of the channels
    """
    from scipy.ndimage import gaussian_filter

    brightness = np.log1p(image.mean(axis=2))
    smooth: np.ndarray = gaussian_filter(brightness, LONGEST_PX / (2 * np.pi))
    return brightness - smooth


def near_grooves(label: np.ndarray) -> np.ndarray:
    """Return (H, W) bool: pixels within NEAR_GROOVE_PX, along rows and columns, of a groove.

    label  (H, W), 0 where no groove is
    """
    from scipy.ndimage import maximum_filter

    near: np.ndarray = maximum_filter(label > 0, 2 * NEAR_GROOVE_PX + 1)
    return near


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values).mean()))
