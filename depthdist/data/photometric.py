"""The photometric part of augmentation: exposure, color cast, gamma, sensor noise, JPEG."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import simplejpeg
from numba import njit

from depthdist.core.splitmix64 import INCREMENT, mix
from depthdist.data.augmentation import Augmentation

LEVEL = np.arange(256) / 255
# the linear light of each 8-bit level (sRGB, IEC 61966-2-1)
LINEAR = np.where(LEVEL <= 0.04045, LEVEL / 12.92, ((LEVEL + 0.055) / 1.055) ** 2.4)
# equally likely normal deviates
NORMAL = np.array([NormalDist().inv_cdf((i + 0.5) / 4096) for i in range(4096)])
NORMAL /= NORMAL.std()  # the tails beyond 3.7 sigma are missing

_mix = njit(mix)


def apply_photometric(rgb: np.ndarray, draw: Augmentation) -> np.ndarray:
    """Return the image in another light, by another camera: (h, w, 3) uint8 sRGB, as `rgb`.

    It is `rgb` itself where nothing is to do, else a new array. The GIL is released while pixels
    are processed.
    """
    if any((draw.exposure, draw.tone, *draw.colour, draw.noise)):
        deviates = (draw.noise * NORMAL).astype(np.float32)
        rgb = _apply_tone_and_noise(rgb, tone_curves(draw), deviates, np.uint64(draw.noise_key))
    if draw.jpeg:
        content = simplejpeg.encode_jpeg(rgb, draw.jpeg, colorspace="RGB", colorsubsampling="420")
        rgb = simplejpeg.decode_jpeg(content, colorspace="RGB")
    return rgb


def tone_curves(draw: Augmentation) -> np.ndarray:
    """Return (3, 256) float32: what each 8-bit level of R, G and B becomes, 0..255, not rounded.

    Linear light (sRGB, IEC 61966-2-1) * 2^exposure * (1 + colour), clipped at white, back to sRGB,
    to the power 2^tone. What was clipped at 255 in the image stays flat: its light is lost.
    """
    gain = 2**draw.exposure * (1 + np.array(draw.colour))
    light = np.minimum(gain[:, None] * LINEAR, 1)  # (3, 256)
    stored = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return (255 * stored**2**draw.tone).astype(np.float32)


@njit(nogil=True)
def _apply_tone_and_noise(
    rgb: np.ndarray, curves: np.ndarray, deviates: np.ndarray, state: np.uint64
) -> np.ndarray:
    """Apply curve and noise in one pass, rounded once.

    A pixel's noise is the next output of SplitMix64, 12 bits a channel.

    Not cached on disk: it compiles in under a second, and only where augmentation is on.
    """
    out = np.empty_like(rgb)
    for y in range(rgb.shape[0]):
        for x in range(rgb.shape[1]):
            state += INCREMENT
            bits = _mix(state)  # type: ignore[var-annotated, arg-type]  # compiled by numba
            for c in range(3):
                value = curves[c, rgb[y, x, c]] + deviates[bits & np.uint64(4095)]
                out[y, x, c] = np.uint8(
                    min(max(value, np.float32(0)), np.float32(255)) + np.float32(0.5)
                )
                bits >>= np.uint64(12)
    return out
