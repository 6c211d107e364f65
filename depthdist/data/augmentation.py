"""Augmentation that keeps depth true: what another day, exposure or camera would have changed, and
a mirror image.

A horizontal mirror keeps Z and negates X (and moves the intrinsics' cx); only Z is trained on, so
depth stays true. Crops, scaling and vertical shifts are left out on purpose: they change how large
a thing looks at its distance, and how far the floor is at its row, which is all that one picture
tells about metric depth.

Everything is off by default. What is drawn is a function of (seed, epoch, sample) alone, and no
setting changes what another one draws. A decode thread does, after unpacking a training sample:

    drawn = draw(settings, seed, epoch, sample)
    if drawn.flip:
        rgb, depth, packed_mask = mirrored(rgb, depth, packed_mask)
    # tones (light, colour, gamma), then noise, then JPEG, as in a camera
    rgb = photometric(rgb, drawn)

A strong setting that still looks like a camera: `--flip 0.5 --exposure 1 --colour 0.15 --noise 6
--jpeg 40`. Where the pictures are bright already, exposure 1 washes half of them out: 0.5 there.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from statistics import NormalDist

import numpy as np
import simplejpeg
from numba import njit

LIMITS = {
    "flip": 1,
    "exposure": 4,
    "tone": 2,
    "colour": 1,
    "noise": 64,
}  # the highest value that each setting takes
LEVEL = np.arange(256) / 255
LINEAR = np.where(
    LEVEL <= 0.04045, LEVEL / 12.92, ((LEVEL + 0.055) / 1.055) ** 2.4
)  # the light each level stands for
NORMAL = np.array(
    [NormalDist().inv_cdf((i + 0.5) / 4096) for i in range(4096)]
)  # equally likely normal deviates
NORMAL /= NORMAL.std()  # it lacks the tails beyond 3.7 sigma


@dataclass(frozen=True)
class AugmentSettings:
    """Augmentation (training only; off unless asked for; drawn from seed, epoch and sample)"""

    flip: float = 0.0
    "Probability of a horizontal mirror image, of picture, depth and mask together."
    exposure: float = 0.0
    "Exposure: up to this many stops (EV) up or down, in linear light (through the sRGB curve)."
    tone: float = 0.0
    """Gamma of the mid-tones: the exponent is up to 2 to the power of this, up or down, on the
    stored values."""
    colour: float = 0.0
    "Colour cast: each channel's light is changed by up to this fraction, up or down."
    noise: float = 0.0
    "Gaussian noise: the highest sigma, in 8-bit levels; a sample's sigma lies between 0 and this."
    jpeg: int = 0
    """Lowest quality of a JPEG recompression (4:2:0); a sample's quality lies between this and
    99. 0: none."""

    def problems(self) -> list[str]:
        given = {name: getattr(self, name) for name in LIMITS}
        found = [
            f"--{name} is {value}: expected 0..{LIMITS[name]}"
            for name, value in given.items()
            if not 0 <= value <= LIMITS[name]
        ]
        return (
            found
            if self.jpeg == 0 or 10 <= self.jpeg <= 99
            else [*found, f"--jpeg is {self.jpeg}: expected 0 (none) or 10..99"]
        )

    @property
    def any(self) -> bool:
        """Whether anything is asked for."""
        return any(astuple(self))


@dataclass(frozen=True)
class Augmentation:
    """What was drawn for one sample."""

    flip: bool
    exposure: float  # stops
    tone: float  # log2 of the exponent
    colour: tuple[float, float, float]  # R, G, B: the light's relative change
    noise: float  # sigma, 8-bit levels
    jpeg: int  # quality, 0 for none
    noise_key: int  # 64 bits that stand for the noise of every pixel


def draw_augmentation(
    settings: AugmentSettings, seed: int, epoch: int, sample: int
) -> Augmentation:
    """The draw for one sample of one epoch.

    Every setting has its own words of Philox's raw stream, used or not, so none depends on another.
    NumPy promises that stream for good, which it does not for what `Generator` makes of it. The 1
    keeps clear of the epoch's order (same key).
    """
    words = np.random.Philox(key=[seed, epoch], counter=[0, 0, sample, 1]).random_raw(9)
    flip, exposure, tone, *colour, noise, jpeg = (
        (words[:8] >> 11) * 2.0**-53
    ).tolist()  # uniform in [0, 1)
    return Augmentation(
        flip=flip < settings.flip,
        exposure=(2 * exposure - 1) * settings.exposure,
        tone=(2 * tone - 1) * settings.tone,
        colour=tuple((2 * c - 1) * settings.colour for c in colour),
        noise=noise * settings.noise,
        jpeg=settings.jpeg and settings.jpeg + math.floor(jpeg * (100 - settings.jpeg)),
        noise_key=int(words[8]),
    )


def apply_photometric(rgb: np.ndarray, draw: Augmentation) -> np.ndarray:
    """The picture in another light, by another camera: (h, w, 3) uint8 for (h, w, 3) uint8, sRGB.

    `rgb` itself where nothing is to do, else a new array; the GIL is free while pixels are worked
    on.
    """
    if any((draw.exposure, draw.tone, *draw.colour, draw.noise)):
        deviates = (draw.noise * NORMAL).astype(np.float32)
        rgb = _toned_and_noisy(rgb, tone_curves(draw), deviates, np.uint64(draw.noise_key))
    if draw.jpeg:
        content = simplejpeg.encode_jpeg(rgb, draw.jpeg, colorspace="RGB", colorsubsampling="420")
        rgb = simplejpeg.decode_jpeg(content, colorspace="RGB")
    return rgb


def tone_curves(draw: Augmentation) -> np.ndarray:
    """(3, 256) float32: what each 8-bit level of R, G and B becomes, 0..255, not rounded.

    Linear light (sRGB, IEC 61966-2-1) * 2^exposure * (1 + colour), clipped at white, back to sRGB,
    to the power 2^gamma. What was clipped at 255 in the picture stays flat: its light is lost.
    """
    gain = 2**draw.exposure * (1 + np.array(draw.colour))
    light = np.minimum(gain[:, None] * LINEAR, 1)  # (3, 256)
    stored = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return (255 * stored**2**draw.tone).astype(np.float32)


@njit(nogil=True)
def _toned_and_noisy(
    rgb: np.ndarray, curves: np.ndarray, deviates: np.ndarray, state: np.uint64
) -> np.ndarray:
    """Curve and noise in one pass, rounded once.

    A pixel's noise is SplitMix64 (Steele et al., 2014), 12 bits a channel.

    Not cached on disk: it compiles in under a second, and only where augmentation is on.
    """
    out = np.empty_like(rgb)
    for y in range(rgb.shape[0]):
        for x in range(rgb.shape[1]):
            state += np.uint64(0x9E3779B97F4A7C15)
            bits = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            bits ^= bits >> np.uint64(31)
            for c in range(3):
                value = curves[c, rgb[y, x, c]] + deviates[bits & np.uint64(4095)]
                out[y, x, c] = np.uint8(
                    min(max(value, np.float32(0)), np.float32(255)) + np.float32(0.5)
                )
                bits >>= np.uint64(12)
    return out


def mirror(
    rgb: np.ndarray, depth: np.ndarray, packed_mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mirror images along W, new arrays.

    rgb          (h, w, 3) uint8
    depth        (H, W) uint16
    packed_mask  (H, ceil(W / 8)) uint8, np.packbits along W; the padding bits at the right are 0,
                 also in what comes back
    """
    columns = np.arange(rgb.shape[1])[
        ::-1
    ]  # `take` copies whole pixels, twice as fast as rgb[:, ::-1]
    # bytes and the bits in them both reversed: the mirror image, with the padding first
    bits = np.unpackbits(packed_mask[:, ::-1], axis=1, bitorder="little")[:, -depth.shape[1] :]
    return (
        rgb.take(columns, axis=1),
        np.ascontiguousarray(depth[:, ::-1]),
        np.packbits(bits, axis=1),
    )
