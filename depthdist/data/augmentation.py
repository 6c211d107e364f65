"""Augmentation that keeps depth true: another day, exposure or camera, and a mirror image.

A horizontal mirror keeps Z and negates X (and moves the intrinsics' cx); only Z is trained on, so
depth stays true. Crops, scaling and vertical shifts are left out on purpose: they change how large
an object looks at its distance, and how far the floor is at its row, and these are the only cues of
metric depth in a single image.

Everything is off by default. What is drawn is a function of (seed, epoch, sample) alone, and no
setting changes what another one draws. A decode thread does, after decoding a training sample:

    drawn = draw_augmentation(settings, seed, epoch, sample)
    if drawn.flip:
        rgb, depth, packed_mask = mirror(rgb, depth, packed_mask)
    # tones (light, color, gamma), then noise, then JPEG, as in a camera
    rgb = apply_photometric(rgb, drawn)  # photometric.py

A strong setting that still looks like a camera: `--flip 0.5 --exposure 1 --colour 0.15 --noise 6
--jpeg 40`. Where the images are bright already, exposure 1 overexposes half of them: 0.5 there.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

import numpy as np

from depthdist.data.random_streams import augmentation_words

# the highest value that each setting takes
LIMITS = {
    "flip": 1,
    "exposure": 4,
    "tone": 2,
    "colour": 1,
    "noise": 64,
}


@dataclass(frozen=True)
class AugmentSettings:
    """Augmentation (training only; off by default; drawn from seed, epoch and sample)."""

    flip: float = 0.0
    "Probability of a horizontal mirror image, of image, depth and mask together."
    exposure: float = 0.0
    "Exposure: up to this many stops (EV) up or down, in linear light (through the sRGB curve)."
    tone: float = 0.0
    """Gamma of the mid-tones: the exponent is up to 2 to the power of this, up or down, on the
    stored values."""
    colour: float = 0.0
    "Color cast: each channel's light is changed by up to this fraction, up or down."
    noise: float = 0.0
    "Gaussian noise: the highest sigma, in 8-bit levels; a sample's sigma lies between 0 and this."
    jpeg: int = 0
    """Lowest quality of a JPEG recompression (4:2:0); a sample's quality lies between this and
    99. 0: none."""

    def problems(self) -> list[str]:
        """Return what is wrong with the values, a line each."""
        found = []
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            if not 0 <= value <= limit:
                found.append(f"--{name} is {value}: expected 0..{limit}")
        if self.jpeg != 0 and not 10 <= self.jpeg <= 99:
            found.append(f"--jpeg is {self.jpeg}: expected 0 (none) or 10..99")
        return found

    @property
    def any(self) -> bool:
        """Whether any augmentation is on."""
        return any(astuple(self))


@dataclass(frozen=True)
class Augmentation:
    """The augmentation drawn for one sample."""

    flip: bool
    exposure: float  # stops
    tone: float  # log2 of the exponent
    colour: tuple[float, float, float]  # R, G, B: the light's relative change
    noise: float  # sigma, 8-bit levels
    jpeg: int  # quality, 0 for none
    noise_key: int  # 64 bits that decide the noise of every pixel


def draw_augmentation(
    settings: AugmentSettings, seed: int, epoch: int, sample: int
) -> Augmentation:
    """Draw the augmentation of one sample in one epoch.

    Every setting has random words of its own, used or not, so none depends on another.
    """
    words = augmentation_words(seed, epoch, sample, 9)
    uniform = ((words[:8] >> 11) * 2.0**-53).tolist()  # in [0, 1)
    flip, exposure, tone, red, green, blue, noise, jpeg = uniform
    return Augmentation(
        flip=flip < settings.flip,
        exposure=(2 * exposure - 1) * settings.exposure,
        tone=(2 * tone - 1) * settings.tone,
        colour=(
            (2 * red - 1) * settings.colour,
            (2 * green - 1) * settings.colour,
            (2 * blue - 1) * settings.colour,
        ),
        noise=noise * settings.noise,
        jpeg=settings.jpeg and settings.jpeg + math.floor(jpeg * (100 - settings.jpeg)),
        noise_key=int(words[8]),
    )


def mirror(
    rgb: np.ndarray, depth: np.ndarray, packed_mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return new arrays that are the mirror images along W.

    rgb          (h, w, 3) uint8
    depth        (H, W) uint16
    packed_mask  (H, ceil(W / 8)) uint8, np.packbits along W; the padding bits at the right are 0,
                 also in what is returned
    """
    # `take` copies whole pixels, twice as fast as rgb[:, ::-1]
    columns = np.arange(rgb.shape[1])[::-1]
    # bytes and the bits in them both reversed: the mirror image, with the padding first
    bits = np.unpackbits(packed_mask[:, ::-1], axis=1, bitorder="little")[:, -depth.shape[1] :]
    return (
        rgb.take(columns, axis=1),
        np.ascontiguousarray(depth[:, ::-1]),
        np.packbits(bits, axis=1),
    )
