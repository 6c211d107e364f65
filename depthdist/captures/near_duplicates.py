"""Find near-duplicates: images of one view that differ in exposure, noise or a small camera motion.

    prints = np.array([fingerprint(rgb) for rgb in images], FINGERPRINT)  # (N,), 1 kB an image
    find_near_duplicates(val, train)  # [NearDuplicate(a=3, b=17, similarity=0.99, exact=False)]
    find_near_duplicates(prints)  # within one set: each image that resembles an earlier one
    found = summarize_split(val, train, val_names, train_names)
    format_warning(found)  # one line, or None

A fingerprint is the image's grey at 32 x 32, minus its local mean and divided by its local
contrast: it keeps where edges are, not how bright they are. Two fingerprints are compared by
Pearson's correlation, the maximum over shifts of a thumbnail pixel (3 % of a side). Fingerprints
are integers so small that float32 adds their products exactly: a similarity is bit for bit the
same on any machine, for any number of threads and any block size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

SIDE = 32  # pixels a side: 32 * 32 * 127 * 127 < 2^24, so sums of products are exact in float32
# pixels: hash of the whole image's grey
FINGERPRINT = np.dtype([("grey", "i1", (SIDE, SIDE)), ("pixels", "<u8")])
# Missed: 0 of 182 same poses of tires (lowest similarity 0.985), 3 of 130 real images shifted by
# 1..3 %, brightness x 0.5..2, noisy. False alarms: 0 of 3314 other poses (highest 0.49), 37 of 5739
# real pairs.
THRESHOLD = 0.8
RADIUS = 5  # thumbnail pixels: local means an area of 11 x 11
FLOOR = 0.5  # share of the whole contrast added to the local one, so flat areas stay free of noise
FAINT = 0.5  # grey levels: a thumbnail that varies less shows nothing and resembles nothing
SIGMAS = 4.0  # standard deviations of the normalized grey that 127 stands for
WORST = 3  # near-duplicates named in a summary
MOST_PAIRS = 10**8  # of a summary: 40 s on a core
BLOCK = 1024  # images a side of a block: 8 MB of float64


class Prints(Protocol):
    """(N,) FINGERPRINT: an array, or parts of one that are read when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice | np.ndarray, /) -> np.ndarray: ...


class NearDuplicate(NamedTuple):
    """Image `a` of one set resembles `b` of the other (numbers from 0) more than any other.

    `exact`: their grey is equal in every pixel.
    """

    a: int
    b: int
    similarity: float
    exact: bool


def fingerprint(rgb: np.ndarray | Image.Image) -> np.ndarray:
    """Return one FINGERPRINT of an image; its `grey` is all zeros where there is no contrast.

    rgb  (H, W, 3) uint8, or a Pillow image in RGB; its aspect ratio is not kept
    """
    image = rgb if isinstance(rgb, Image.Image) else Image.fromarray(np.ascontiguousarray(rgb))
    whole = image.convert("L")
    grey = np.asarray(whole.resize((SIDE, SIDE), Image.Resampling.BOX)).astype(np.int64)
    pixels = hashlib.sha256(repr(whole.size).encode() + whole.tobytes()).digest()[:8]
    return np.array((_edges(grey), int.from_bytes(pixels, "little")), FINGERPRINT)


def _edges(grey: np.ndarray) -> np.ndarray:
    """Return (32, 32) int8 of (32, 32) int64: minus the local mean, divided by the local contrast.

    In float64, one operation at a time, so that all machines agree.
    """
    variance = (grey**2).sum() / grey.size - (grey.sum() / grey.size) ** 2
    if variance < FAINT**2:
        return np.zeros(grey.shape, np.int8)
    count = _window_sums(np.ones_like(grey))
    mean = _window_sums(grey) / count
    local = np.maximum(_window_sums(grey**2) / count - mean**2, 0)
    x = (grey - mean) / np.sqrt(local + FLOOR**2 * variance)
    # Python's sum, because NumPy's order of additions depends on the machine's vector units
    deviation = np.sqrt(sum((x.ravel() ** 2).tolist()) / x.size)
    return np.rint(x / deviation * (127 / SIGMAS)).clip(-127, 127).astype(np.int8)


def _window_sums(x: np.ndarray) -> np.ndarray:
    """Return for each pixel the sum over the existing pixels up to RADIUS away."""
    sums = np.pad(x, ((RADIUS + 1, RADIUS), (RADIUS + 1, RADIUS))).cumsum(0).cumsum(1)
    rows = sums[2 * RADIUS + 1 :] - sums[: -2 * RADIUS - 1]
    return rows[:, 2 * RADIUS + 1 :] - rows[:, : -2 * RADIUS - 1]


def similarity(a: np.ndarray, b: np.ndarray, shift: int = 1) -> float:
    """Return the highest correlation of two fingerprints, -1 to 1, over shifts up to `shift`."""
    return float(_similarities(np.atleast_1d(a), np.atleast_1d(b), shift)[0, 0])


def find_near_duplicates(
    prints: np.ndarray,
    others: Prints | None = None,
    threshold: float = THRESHOLD,
    shift: int = 1,
) -> list[NearDuplicate]:
    """Return each of `prints` with the most similar of `others`, if above `threshold`, worst first.

    prints, others  (N,) and (M,) FINGERPRINT. Without others: within `prints`, each with an earlier
                    one
    shift           thumbnail pixels

    Of equals the first is returned. Time is proportional to N times M, 10^7 pairs take 4 s on a
    core; memory is not.
    """
    within = others is None
    if others is None:
        others = prints
    best, nearest = _most_similar(prints, others, shift, within)
    own = prints["pixels"].tolist()
    wanted = set(own)
    first: dict[int, int] = {}
    for j in range(0, len(others), BLOCK):
        for number, pixels in enumerate(others[j : j + BLOCK]["pixels"].tolist(), j):
            if pixels in wanted:
                first.setdefault(pixels, number)
    found = []
    for a, pixels in enumerate(own):
        same = first.get(pixels)
        if same is not None and (same < a or not within):
            found.append(NearDuplicate(a, same, similarity=1.0, exact=True))
        elif best[a] > threshold:
            found.append(NearDuplicate(a, int(nearest[a]), float(best[a]), exact=False))
    return sorted(found, key=lambda pair: (-pair.exact, -pair.similarity, pair.a))


def _most_similar(
    prints: np.ndarray, others: Prints, shift: int, within: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each of `prints` the highest similarity and the first of `others` that has it.

    within  the two are one set: compare each only with earlier ones
    """
    best = np.full(len(prints), -2.0)
    nearest = np.zeros(len(prints), np.int64)
    for i in range(0, len(prints), BLOCK):
        for j in range(0, i + 1 if within else len(others), BLOCK):
            found = _similarities(prints[i : i + BLOCK], others[j : j + BLOCK], shift)  # (n, m)
            if within and i == j:
                found[np.triu_indices(len(found))] = -2.0
            at = found.argmax(1)
            rows = np.arange(len(found))
            better = rows[found[rows, at] > best[i : i + BLOCK]]
            best[i + better] = found[better, at[better]]
            nearest[i + better] = j + at[better]
    return best, nearest


def _similarities(a: np.ndarray, b: np.ndarray, shift: int) -> np.ndarray:
    """Return (n, m) float64 of n and m fingerprints; at least 0 where one has no contrast."""
    best = np.full((len(a), len(b)), -1.0)
    for rows in range(-shift, shift + 1):
        for columns in range(-shift, shift + 1):
            x, sum_x, norm_x = _visible_part(a, rows, columns)
            y, sum_y, norm_y = _visible_part(b, -rows, -columns)
            found = (x @ y.T).astype(np.float64)  # (n, m), exact
            found *= x.shape[1]
            found -= sum_x[:, None] * sum_y
            found /= norm_x[:, None]
            found /= norm_y
            np.maximum(best, found, out=best)
    np.minimum(best, 1.0, out=best)
    return best


def _visible_part(
    prints: np.ndarray, rows: int, columns: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the part of each fingerprint still visible after a shift, its sum, and its norm.

    The part is (n, K) float32; the sum, and the norm of K times the deviations from the mean, are
    (n,) float64.
    """
    visible_rows, visible_columns = (slice(max(by, 0), SIDE + min(by, 0)) for by in (rows, columns))
    part = prints["grey"][:, visible_rows, visible_columns]
    x = part.reshape(len(prints), -1).astype(np.float32)
    total = x.sum(1).astype(np.float64)  # integers below 2^24: exact
    variance = x.shape[1] * np.einsum("nk,nk->n", x, x).astype(np.float64) - total**2
    return x, total, np.where(variance > 0, np.sqrt(variance), np.inf)


# ---------------------------------------------------------------------- a split into train and val


def summarize_split(
    val: Prints, train: Prints, val_names: Sequence[str], train_names: Sequence[str]
) -> dict[str, Any]:
    """Return how many of `val` have a near-duplicate in `train`, and the worst by name.

    returns  {"looked_at": 12, "val_with_twin": 2, "exact": 1, "worst": [[val name, train name,
             similarity], ...]}: at most three worst; `exact` of them are equal in every pixel

    Of a large dataset only as many images of `val`, evenly spread, are compared as make MOST_PAIRS
    pairs.
    """
    num_compared = min(len(val), max(1, MOST_PAIRS // max(len(train), 1)))
    chosen = np.linspace(0, len(val) - 1, num_compared).round().astype(int)
    found = find_near_duplicates(val[chosen], train)
    worst = [
        [val_names[chosen[pair.a]], train_names[pair.b], round(pair.similarity, 4)]
        for pair in found[:WORST]
    ]
    return {
        "looked_at": num_compared,
        "val_with_twin": len(found),
        "exact": sum(pair.exact for pair in found),
        "worst": worst,
    }


def format_warning(found: dict[str, Any], held_out: str = "validation") -> str | None:
    """Return the result of `summarize_split` as one line that says what to do, or None.

    held_out  what the split that was compared with train is called
    """
    count, exact, num_val = found["val_with_twin"], found["exact"], found["looked_at"]
    if not count:
        return None
    worst = ", ".join(f"{a} and {b} ({value:.3f})" for a, b, value in found["worst"])
    more = ", ..." if count > len(found["worst"]) else ""
    identical = f", {exact} to the pixel" if exact else ""
    return (
        f"{held_out} resembles training (near-duplicates): {count} of {num_val} {held_out} pictures"
        " have a near-duplicate in the training set (similarity"
        f" > {THRESHOLD:g}{identical}): {worst}{more}: the scores are optimistic; keep such"
        " captures on one side: --split session, and where their times do not tell, --split file"
    )
