"""Near-duplicates: pictures that show the same view, though exposure, noise or a nudge of the
camera differ.

    # (N,), about 1 kB a picture
    prints = np.array([fingerprint(rgb) for rgb in pictures], FINGERPRINT)
    find(val, train)      ->  [Twin(a=3, b=17, similarity=0.99, exact=False), ...], the worst first
    find(prints)          ->  the same within one set: each picture that resembles an earlier one
    warning(summary(val, train, val_names, train_names))  ->  one line, or None

A fingerprint is the picture's grey at 32 x 32, less its local mean and over its local contrast:
what is left is where edges are, not how bright it is. Two are compared by Pearson's correlation,
the highest over shifts of a thumbnail pixel (3 % of a side). Fingerprints are whole numbers so
small that float32 adds their products exactly: a similarity is the same to the last bit on any
machine, for any number of threads and any cut into blocks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

SIDE = 32  # pixels a side: 32 * 32 * 127 * 127 < 2^24, so sums of products are exact in float32
FINGERPRINT = np.dtype(
    [("grey", "i1", (SIDE, SIDE)), ("pixels", "<u8")]
)  # pixels: hash of the whole picture's grey
# missed: 0 of 182 same poses of tires (lowest 0.985), 3 of 130 real pictures moved 1..3 %, x
# 0.5..2, noisy; flagged: 0 of 3314 other poses (0.49), 37 of 5739 real pairs
THRESHOLD = 0.8
RADIUS = 5  # thumbnail pixels: local is 11 x 11
# of the whole thumbnail's contrast, added to the local one: flat areas are not blown up into noise
FLOOR = 0.5
FAINT = 0.5  # grey levels: a thumbnail that varies less shows nothing and resembles nothing
SIGMAS = 4.0  # of the normalised grey that 127 stands for
WORST = 3  # twins named in a summary
MOST_PAIRS = 10**8  # of a summary: 40 s on a core
BLOCK = 1024  # pictures a side of a block: 8 MB of float64


class NearDuplicate(NamedTuple):
    """Picture `a` of one set resembles `b` of the other (numbers from 0) more than any other.

    `exact`: grey for grey in every pixel.
    """

    a: int
    b: int
    similarity: float
    exact: bool


def fingerprint(rgb: np.ndarray | Image.Image) -> np.ndarray:
    """What tells a view from others: one FINGERPRINT, all zeros in `grey` where the picture has no
    contrast.

    rgb  (H, W, 3) uint8, or a picture in RGB; its shape is not kept
    """
    picture = rgb if isinstance(rgb, Image.Image) else Image.fromarray(np.ascontiguousarray(rgb))
    whole = picture.convert("L")
    grey = np.asarray(whole.resize((SIDE, SIDE), Image.Resampling.BOX)).astype(np.int64)
    pixels = hashlib.sha256(repr(whole.size).encode() + whole.tobytes()).digest()[:8]
    return np.array((_edges(grey), int.from_bytes(pixels, "little")), FINGERPRINT)


def _edges(grey: np.ndarray) -> np.ndarray:
    """(32, 32) int8 of (32, 32) whole numbers: less the local mean, over the local contrast.

    Float64 one operation at a time: no machine differs.
    """
    variance = (grey**2).sum() / grey.size - (grey.sum() / grey.size) ** 2
    if variance < FAINT**2:
        return np.zeros(grey.shape, np.int8)
    count = _around(np.ones_like(grey))
    mean = _around(grey) / count
    local = np.maximum(_around(grey**2) / count - mean**2, 0)
    x = (grey - mean) / np.sqrt(local + FLOOR**2 * variance)
    deviation = np.sqrt(
        sum((x.ravel() ** 2).tolist()) / x.size
    )  # Python's sum: NumPy's depends on the machine's vectors
    return np.rint(x / deviation * (127 / SIGMAS)).clip(-127, 127).astype(np.int8)


def _around(x: np.ndarray) -> np.ndarray:
    """For each pixel the sum over those up to RADIUS away that there are."""
    sums = np.pad(x, ((RADIUS + 1, RADIUS), (RADIUS + 1, RADIUS))).cumsum(0).cumsum(1)
    rows = sums[2 * RADIUS + 1 :] - sums[: -2 * RADIUS - 1]
    return rows[:, 2 * RADIUS + 1 :] - rows[:, : -2 * RADIUS - 1]


def similarity(a: np.ndarray, b: np.ndarray, shift: int = 1) -> float:
    """How much two fingerprints resemble each other, -1 to 1: the highest correlation over shifts
    up to `shift` thumbnail pixels.
    """
    return float(_similarities(np.atleast_1d(a), np.atleast_1d(b), shift)[0, 0])


def find_near_duplicates(
    prints: np.ndarray,
    others: np.ndarray | None = None,
    threshold: float = THRESHOLD,
    shift: int = 1,
) -> list[NearDuplicate]:
    """Each of `prints` with the one of `others` that resembles it most, where that is above
    `threshold`; the worst first.

    prints, others  (N,) and (M,) FINGERPRINT. Without others: within `prints`, each with an earlier
                    one
    Of equals the first counts. Work goes as N times M, 10^7 pairs in 4 s on a core; memory does
    not.
    """
    within, others = others is None, prints if others is None else others
    best, nearest = np.full(len(prints), -2.0), np.zeros(len(prints), np.int64)
    for i in range(0, len(prints), BLOCK):
        for j in range(0, i + 1 if within else len(others), BLOCK):
            found = _similarities(prints[i : i + BLOCK], others[j : j + BLOCK], shift)  # (n, m)
            if within and i == j:
                found[np.triu_indices(len(found))] = -2.0
            at, rows = found.argmax(1), np.arange(len(found))
            better = rows[found[rows, at] > best[i : i + BLOCK]]
            best[i + better], nearest[i + better] = found[better, at[better]], j + at[better]
    first: dict[int, int] = {}
    for number, pixels in enumerate(others["pixels"].tolist()):
        first.setdefault(pixels, number)
    twins = []
    for a, pixels in enumerate(prints["pixels"].tolist()):
        same = first.get(pixels)
        if same is not None and (same < a or not within):
            twins.append(NearDuplicate(a, same, 1.0, True))
        elif best[a] > threshold:
            twins.append(NearDuplicate(a, int(nearest[a]), float(best[a]), False))
    return sorted(twins, key=lambda twin: (-twin.exact, -twin.similarity, twin.a))


def _similarities(a: np.ndarray, b: np.ndarray, shift: int) -> np.ndarray:
    """(n, m) float64 of n and m fingerprints; 0 at least where one of them has no contrast."""
    best = np.full((len(a), len(b)), -1.0)
    for rows in range(-shift, shift + 1):
        for columns in range(-shift, shift + 1):
            x, sum_x, norm_x = _part(a, rows, columns)
            y, sum_y, norm_y = _part(b, -rows, -columns)
            found = (x @ y.T).astype(np.float64)  # (n, m), exact
            found *= x.shape[1]
            found -= sum_x[:, None] * sum_y
            found /= norm_x[:, None]
            found /= norm_y
            np.maximum(best, found, out=best)
    return np.minimum(best, 1.0, out=best)


def _part(prints: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The part of each that is still seen after a shift, (n, K) float32.

    K-fold deviations from its mean: their sum and norm, (n,) float64.
    """
    seen = [slice(max(by, 0), SIDE + min(by, 0)) for by in (rows, columns)]
    x = prints["grey"][:, seen[0], seen[1]].reshape(len(prints), -1).astype(np.float32)
    total = x.sum(1).astype(np.float64)  # whole numbers below 2^24: exact
    variance = x.shape[1] * np.einsum("nk,nk->n", x, x).astype(np.float64) - total**2
    return x, total, np.where(variance > 0, np.sqrt(variance), np.inf)


# --------------------------------------------------------------------------------------- of a split


def summarize_split(
    val: np.ndarray, train: np.ndarray, val_names: Sequence[str], train_names: Sequence[str]
) -> dict[str, Any]:
    """What an index keeps: how many of `val` have a near-twin in `train`, how many of them to the
    pixel, and the worst by name.

    returns  {"looked_at": 12, "val_with_twin": 2, "exact": 1, "worst": [[val name, train name,
             similarity], ...]}, three of them at most
    Of a large dataset as many pictures of `val` are looked at, evenly spread, as make MOST_PAIRS
    pairs.
    """
    most = min(len(val), max(1, MOST_PAIRS // max(len(train), 1)))
    chosen = np.linspace(0, len(val) - 1, most).round().astype(int)
    twins = find_near_duplicates(val[chosen], train)
    worst = [
        [val_names[chosen[t.a]], train_names[t.b], round(t.similarity, 4)] for t in twins[:WORST]
    ]
    return {
        "looked_at": most,
        "val_with_twin": len(twins),
        "exact": sum(t.exact for t in twins),
        "worst": worst,
    }


def format_warning(found: dict[str, Any]) -> str | None:
    """What `summary` found as one line that says what to do, or None."""
    count, exact, num_val = found["val_with_twin"], found["exact"], found["looked_at"]
    if not count:
        return None
    worst = ", ".join(f"{a} and {b} ({value:.3f})" for a, b, value in found["worst"]) + (
        ", ..." if count > len(found["worst"]) else ""
    )
    what = (
        f"{count} of {num_val} validation pictures have a near-twin in the training set (similarity"
        f" > {THRESHOLD:g}{f', {exact} to the pixel' if exact else ''})"
    )
    return (
        f"validation resembles training (near-duplicates): {what}: {worst}: the scores flatter;"
        " shard again with --split session, or name who belongs together: --split file"
    )
