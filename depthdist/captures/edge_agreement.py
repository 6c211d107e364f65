"""Check that an image and its depth map show the same: edges must lie at the same places.

    scores = edge_scores(image, depth_mm)  # None, or EdgeScores
    text = describe_capture(scores)  # None, or a mirrored or shifted image
    text = describe_dataset(list_of_scores)  # None, or edges that agree in hardly any capture

Where depth jumps or bends the image has an edge more often than elsewhere. The correlation of both
edge maps is computed for every shift of one against the other; how far it stands out at no shift,
in standard deviations, is the score. Mirrored images get scores as well. Costs some milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

WIDTH = 200  # pixels of the maps that are compared
SAMPLES = 3  # pixels that are read in each direction of a map's cell
EDGE_SHARE = 0.04  # of the map: the strongest bends of the depth
MIN_MEASURED = 0.3  # share of a cell's samples; a mean of fewer moves on a slanted plane
MIN_BEND = 0.01  # second difference of inverse depth, as a share of it
MIN_EDGES = 60  # pixels of the map; with fewer nothing is said
MEAN_WINDOW = 21  # pixels; only what changes faster counts
CONTRAST_WINDOW = 31  # pixels; an image edge counts relative to those around it
TOLERANCE = 2  # pixels that edges may lie apart
TURNS = ("as it is", "mirrored left to right", "upside down", "turned by 180 degrees")
AGREE = 2.5  # from this score on edges agree; the lowest of 130 real captures has 2.9
BETTER_BY = 4.0  # scores: so much better another position must be to be named
SURE = 7.0  # the score from which on another position is named
MIN_CAPTURES = 4  # of a dataset, to speak of it as a whole

Array = np.ndarray


class EdgeScores(NamedTuple):
    """How well edges of image and depth agree, in standard deviations.

    turned  score without a shift, for each of TURNS
    best    of the image as it is, at the shift that fits best
    shift   (down, right): by how much the image's content must move for that, as shares of its
            height and width
    """

    turned: tuple[float, float, float, float]
    best: float
    shift: tuple[float, float]


def edge_scores(image: Image.Image, depth_mm: Array) -> EdgeScores | None:
    """Return how well the edges agree, None where depth has too few to tell.

    image     RGB, of any size
    depth_mm  (H, W) float; not finite or <= 0 where nothing was measured
    """
    bends = _depth_edges(depth_mm)
    if bends is None:
        return None
    edges = _image_edges(image, bends.shape)
    turned = (edges, edges[:, ::-1], edges[::-1], edges[::-1, ::-1])
    spectrum = np.conj(np.fft.rfft2(bends))
    correlations = [_correlate(spectrum, one) for one in turned]
    found = tuple(_around_no_shift(one) for one in correlations)
    here = correlations[0]
    height, width = here.shape
    row, column = np.unravel_index(int(here.argmax()), here.shape)
    return EdgeScores(
        turned=(found[0], found[1], found[2], found[3]),
        best=round(float(here.max()), 2),
        shift=(
            -((row + height // 2) % height - height // 2) / height,
            -((column + width // 2) % width - width // 2) / width,
        ),
    )


def describe_capture(scores: EdgeScores | None) -> str | None:
    """Return in what other position the image fits the depth far better, None if in none."""
    if scores is None or scores.turned[0] >= AGREE:
        return None
    other = max(scores.turned[1:])
    if other >= SURE and other >= scores.turned[0] + BETTER_BY:
        how = TURNS[scores.turned.index(other)]
        return (
            f"the image looks {how} against the points: edges agree with a score of {other:.1f}"
            f" there, of {scores.turned[0]:.1f} as it is"
        )
    if scores.best >= SURE + 1 and scores.best >= scores.turned[0] + BETTER_BY:
        down, right = (round(100 * share) for share in scores.shift)
        return (
            "the image looks shifted against the points: its edges agree when it is moved down by"
            f" {down} % and to the right by {right} % of its size"
        )
    return None


def describe_dataset(all_scores: Sequence[EdgeScores | None]) -> str | None:
    """Return what most captures of a dataset have in common, None if edges agree as they should."""
    return describe_scores(np.array([scores.turned for scores in all_scores if scores]))


def describe_scores(known: Array) -> str | None:
    """Return `describe_dataset` of scores for each of TURNS, (N, 4) float64."""
    if len(known) < MIN_CAPTURES:
        return None
    means = known.mean(axis=0)
    best = int(means.argmax())
    if best and means[best] >= AGREE and means[best] > means[0] + 1:
        return (
            f"the images look {TURNS[best]} against the points in all captures together: edges"
            f" agree with a mean score of {means[best]:.1f} there, of {means[0]:.1f} as they are"
        )
    agreeing = int((known[:, 0] >= AGREE).sum())
    if 2 * agreeing >= len(known):
        return None
    return (
        f"edges of image and depth agree in only {agreeing} of {len(known)} captures (mean score"
        f" {means[0]:.1f}; expected {AGREE:g} or more): do images and point maps belong together?"
    )


# ---------------------------------------------------------------------------------------- edge maps


def _depth_edges(depth_mm: Array) -> Array | None:
    """Return the map of depth edges (h, w), around 0; None where there are too few.

    An edge is where inverse depth bends: a plane, however slanted, has none.
    """
    height, width = depth_mm.shape
    cell = max(1, round(width / WIDTH))
    size = (height // cell, width // cell)
    if min(size) < MEAN_WINDOW:
        return None
    step = -(-cell // SAMPLES)
    whole = depth_mm[: size[0] * cell, : size[1] * cell]
    cells = whole.reshape(size[0], cell, size[1], cell)[:, ::step, :, ::step].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where((cells > 0) & (cells < np.inf), 1 / cells, 0)
    per_cell = cells.shape[1]
    counts = (inverse > 0).sum(axis=(1, 3))
    known = counts >= max(1, MIN_MEASURED * per_cell**2)
    if not known.any():
        return None
    mean = np.where(known, inverse.sum(axis=(1, 3)) / np.maximum(counts, 1), np.nan)
    bends = np.zeros(size)
    bends[:, 1:-1] = _bend(mean[:, :-2], mean[:, 1:-1], mean[:, 2:])
    bends[1:-1] = np.maximum(bends[1:-1], _bend(mean[:-2], mean[1:-1], mean[2:]))
    strong = max(float(np.quantile(bends[known], 1 - EDGE_SHARE)), MIN_BEND)
    edges = np.minimum(bends / strong, 1) * (bends > 0.3 * strong)
    if np.count_nonzero(edges) < MIN_EDGES:
        return None
    return edges - _local_mean(edges, MEAN_WINDOW)


def _bend(before: Array, here: Array, after: Array) -> Array:
    """Return the second difference as a share of the value, 0 where one is not known."""
    return np.nan_to_num(np.abs(before - 2 * here + after) / here)


def _image_edges(image: Image.Image, size: tuple[int, int]) -> Array:
    """Return the map of image edges (h, w), around 0: gradients relative to those around them."""
    small = image.resize(size[::-1], Image.Resampling.BOX, reducing_gap=1.0).convert("L")
    grey = np.log(np.asarray(small, np.float64) + 8)
    padded = np.pad(grey, 1, mode="edge")
    down = _smooth(padded[2:] - padded[:-2], axis=1)
    right = _smooth(padded[:, 2:] - padded[:, :-2], axis=0)
    gradient = np.hypot(down, right)
    relative = gradient / (_local_mean(gradient, CONTRAST_WINDOW) + 0.05)
    edges = np.minimum(relative, 4)
    return edges - _local_mean(edges, MEAN_WINDOW)


def _smooth(values: Array, axis: int) -> Array:
    """Return the sums 1 2 1 of three neighbors along an axis: Sobel's second direction."""
    count = values.shape[axis] - 2
    parts = [np.take(values, range(start, start + count), axis) for start in range(3)]
    return parts[0] + 2 * parts[1] + parts[2]


def _local_mean(values: Array, window: int) -> Array:
    """Return the mean of the window around each pixel; edges are repeated outwards."""
    half = window // 2
    for axis in (0, 1):
        pads = [(0, 0), (0, 0)]
        pads[axis] = (half + 1, half)
        sums = np.cumsum(np.pad(values, pads, mode="edge"), axis=axis)
        count = values.shape[axis]
        upper = np.take(sums, range(window, window + count), axis)
        values = (upper - np.take(sums, range(count), axis)) / window
    return values


def _correlate(spectrum: Array, edges: Array) -> Array:
    """Return the circular cross-correlation in standard deviations over all shifts, (h, w).

    spectrum  conjugate of the transform of the map that `edges` (h, w) is compared with
    """
    correlation = np.fft.irfft2(np.fft.rfft2(edges) * spectrum, s=edges.shape)
    spread = float(correlation.std())
    return (correlation - correlation.mean()) / (spread or 1.0)


def _around_no_shift(correlation: Array) -> float:
    """Return the best score within TOLERANCE of no shift, to two decimals."""
    near = np.arange(-TOLERANCE, TOLERANCE + 1)
    return round(float(correlation[near[:, None], near].max()), 2)
