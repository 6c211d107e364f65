"""Measure what storing images at the camera's size costs the faint contrast of relief."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from depthdist.core.text_table import format_table
from tools.benchmarks.codecs import ImageCodec, decode_image, timed
from tools.benchmarks.processes import print_progress

if TYPE_CHECKING:
    from depthdist.inference.loaded_model import LoadedModel

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
    run: Path | None = None
    """Also predict the captures, stored each way, with this run and its detail stage: what is lost
    in mm. They need their exact depth, and another seed than the run's."""

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        found = []
        if not self.raw.is_dir():
            found.append(f"--raw {self.raw}: expected a folder of captures")
        if self.run and not (self.run / "detail/best").is_dir():
            found.append(f"--run {self.run}: expected the folder of a run with a detail stage")
        return found


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
    from depthdist.inference.loaded_model import load

    images = []
    reliefs = []
    stems = []
    for pair in find_pairs(settings.raw)[0]:
        if pair.grooves is None:
            continue
        image = np.array(read_capture(pair).image)
        images.append(image)
        label = read_label(pair.grooves, image.shape[:2])
        reliefs.append(Relief(band_of(image), near_grooves(label)))
        stems.append(pair.stem)
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
    in_mm = None
    if settings.run:
        in_mm = partial(measure_run, load(settings.run, refine="detail"), settings.raw, stems)
        print(f"grooves as {settings.run} predicts them from those images, against exact depth")
    print(relief_table(images, reliefs, in_mm))
    return 0


def measure_run(
    model: LoadedModel, folder: Path, stems: list[str], images: list[np.ndarray]
) -> list[str]:
    """Return groove MAE in mm and the share of grooves found, predicted from images (H, W, 3)."""
    from depthdist.evaluation.metrics.grooves import summarize_grooves
    from depthdist.evaluation.metrics.registry import TREAD_LIMIT_MM
    from depthdist.evaluation.relief.measures import measure_grooves

    grooves = []
    for stem, image in zip(stems, images):
        pred_mm = model.predict(image).depth_mm
        grooves += measure_grooves(folder, stem, {"detail": pred_mm})["detail"]
    found = summarize_grooves(grooves, TREAD_LIMIT_MM)
    return [f"{found['mae_mm']:.2f}", f"{found['found']:.2f}"]


def relief_table(
    images: list[np.ndarray],
    reliefs: list[Relief],
    in_mm: Callable[[list[np.ndarray]], list[str]] | None = None,
) -> str:
    """Return a row for each way to store images: size, times, error of the band on treads.

    in_mm  what a run makes of the images, two more columns; asked once for all lossless ways
    """
    rows = []
    exact: list[str] = []
    for name, encode in _encoders().items():
        encoded, encode_ms = timed(encode, images)
        decoded, decode_ms = timed(decode_image, encoded)
        shares = []
        for image, relief in zip(decoded, reliefs):
            error = (band_of(image) - relief.band)[relief.tread]
            shares.append(_rms(error) / _rms(relief.band[relief.tread]))
        megabytes = f"{mean(map(len, encoded)) / 1e6:.2f}"
        is_exact = not max(shares)
        share = "exact" if is_exact else f"{mean(shares):.1%}"
        of_run: list[str] = []
        if in_mm:
            print_progress(f"{name} ...")
            of_run = exact if is_exact and exact else in_mm(decoded)
            exact = of_run if is_exact else exact
        rows.append([name, megabytes, f"{encode_ms:.0f}", f"{decode_ms:.1f}", share, *of_run])
    header = ["", "MB", "encode ms", "decode ms", "error / signal"]
    return format_table(header + (["groove MAE mm", "found"] if in_mm else []), rows)


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
