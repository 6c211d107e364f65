"""Whether depth jumps where it does in truth: boundary scores of the field, with a validity mask,
and edges in millimetres.

An edge counts only between two measured pixels: without that a hole is an edge as strong as they
come. All take one image, pred_mm and depth_mm (H, W) float64 mm and mask (H, W) bool, and give
{name: value}; NaN where the truth has no edge to find.

    # of several predictions, the truth's own edges are found once
    values, = edge_metrics([pred_mm], depth_mm, mask)

Definitions: Bochkovskii et al. 2024 (Depth Pro), Wang et al. 2025 (MoGe), Koch et al. 2018
(iBims-1, DBE). Their thresholds begin at 5 % of the depth, 75 mm at 1.5 m: no groove is among them.
Ours, edge_*_mm, go down to 2 mm; see grooves.py for what counts most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from skimage.feature import canny

from depthdist.evaluation.metrics.registry import Metric

RATIOS = 1 + np.linspace(0.05, 0.25, 10)
STEPS_MM = (2.0, 4.0, 8.0, 16.0, 32.0)
NEAR_PX = 10.0  # theta of the DBE
PERCENTILES = (
    1,
    99,
)  # the range that Canny's thresholds are shares of; min and max would follow one wild pixel
Array = np.ndarray
Counts = dict[tuple[int, int], Array]  # (3, 10), over RATIOS
Edges = list[tuple[Array, Array]]  # bool: where a map steps one way, and what is near that


def edge_metrics(preds_mm: Sequence[Array], depth_mm: Array, mask: Array) -> list[dict[str, float]]:
    """All of METRICS of each prediction."""
    found = boundary_errors(preds_mm, depth_mm, mask)
    for values, counts in zip(found, ratio_edges(preds_mm, depth_mm, mask)):
        values |= {
            "depth_pro_f1": depth_pro_f1(counts),
            **{f"moge_f1_r{r}": moge_f1(counts, r) for r in (1, 2, 3)},
        }
    jumps, jumps_g = [jumps_of(pred_mm, mask) for pred_mm in preds_mm], jumps_of(depth_mm, mask)
    for step in STEPS_MM:
        truth = edges_of(jumps_g, step)
        for values, jumps_p in zip(found, jumps):
            values |= {
                f"edge_{name}@{step:g}mm": value
                for name, value in edge_scores(edges_of(jumps_p, step), truth).items()
            }
    return found


def _metrics() -> dict[str, Metric]:
    rows = [
        (
            "depth_pro_f1",
            "",
            "higher",
            (
                "Depth Pro's boundary F1 over ratios 1.05 .. 1.25, between measured pixels; 0 where"
                " truth has no edge, as there"
            ),
        )
    ]
    rows += [
        (
            f"moge_f1_r{r}",
            "",
            "higher",
            f"MoGe's boundary F1, radius {r}, over ratios 1.05 .. 1.25, between measured pixels",
        )
        for r in (1, 2, 3)
    ]
    canny_words = (
        f"Canny (sigma sqrt 2, 0.1, 0.2) on depth scaled by its {PERCENTILES[0]}st and"
        f" {PERCENTILES[1]}th percentiles"
    )
    rows += [
        (
            "dbe_acc_px",
            "px",
            "lower",
            (
                "iBims DBE accuracy: mean distance of predicted edges to the truth's within"
                f" {NEAR_PX:g} px, {NEAR_PX:g} where none is; {canny_words}"
            ),
        ),
        (
            "dbe_comp_paper_px",
            "px",
            "lower",
            (
                "iBims DBE completeness as the paper has it: mean of both distances, each at most"
                f" {NEAR_PX:g} px"
            ),
        ),
        (
            "dbe_comp_script_px",
            "px",
            "lower",
            (
                "iBims DBE completeness as its script has it: mean distance of the truth's edges to"
                " predicted ones, not cut; the image's diagonal where nothing is predicted"
            ),
        ),
    ]
    words = (
        "of steps > {:g} mm between neighbours, beyond the local slope, same direction, within 1 px"
    )
    for step in STEPS_MM:
        rows += [
            (f"edge_{name}@{step:g}mm", "", "higher", f"{what} {words.format(step)}")
            for name, what in (("precision", "precision"), ("recall", "recall"), ("f1", "F1"))
        ]
    return {row[0]: Metric(*row) for row in rows}


EDGE_METRICS = _metrics()


# ------------------------------------------------------------------------------------------- ratios


def ratio_edges(preds_mm: Sequence[Array], depth_mm: Array, mask: Array) -> list[Counts]:
    """For each prediction, by way (rows, columns) to a neighbour within 3 pixels: how many
    neighbours are farther by each ratio in both maps, in the prediction, and in truth.

    Only between measured pixels.
    """
    counts: list[Counts] = [{} for _ in preds_mm]
    reach = range(-3, 4)
    for way in ((y, x) for y in reach for x in reach if 0 < y * y + x * x <= 9):
        a, b = _pairs(mask.shape, way)
        valid = mask[a] & mask[b]
        g = np.divide(depth_mm[b], depth_mm[a], out=np.zeros(valid.shape), where=valid)
        of_g = _above(g)
        for found, pred_mm in zip(counts, preds_mm):
            p = np.divide(pred_mm[b], pred_mm[a], out=np.zeros(valid.shape), where=valid)
            found[way] = np.array([_above(np.minimum(p, g)), _above(p), of_g])
    return counts


def _above(ratios: Array) -> list[int]:
    high = ratios[ratios > RATIOS[0]]
    return [np.count_nonzero(high > t) for t in RATIOS]


def depth_pro_f1(counts: Counts) -> float:
    """Depth Pro's: precision and recall are means over four directions, F1 over ten ratios weighted
    by the ratio.
    """
    recall, precision = np.zeros(10), np.zeros(10)
    for way in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        both, of_p, of_g = counts[way]
        recall += both / np.maximum(of_g, 1) / 4
        precision += both / np.maximum(of_p, 1) / 4
    return float((RATIOS / RATIOS.sum()) @ _harmonic(precision, recall))


def moge_f1(counts: Counts, radius: int) -> float:
    """MoGe's: pooled over all neighbours within `radius`, F1 over ten ratios weighted by ratio - 1.

    NaN where truth has no edge.
    """
    both, of_p, of_g = sum(
        found for (y, x), found in counts.items() if x * x + y * y <= radius * radius
    )
    if not of_g.any():
        return math.nan
    return float(
        np.average(
            _harmonic(both / np.maximum(of_p, 1), both / np.maximum(of_g, 1)), weights=RATIOS - 1
        )
    )


def _pairs(
    shape: tuple[int, int], way: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where both pixels of a pair lie: slices of the first, and of its neighbour `way` from it."""
    first = tuple(slice(max(0, -d), n - max(0, d)) for d, n in zip(way, shape))
    return first, tuple(slice(max(0, d), n + min(0, d)) for d, n in zip(way, shape))


def _harmonic(a: Array, b: Array) -> Array:
    return np.divide(2 * a * b, a + b, out=np.zeros_like(a), where=a + b > 0)


# -------------------------------------------------------------------------------------- millimetres


def jumps_of(z_mm: Array, mask: Array, slope: bool = True) -> tuple[Array, Array]:
    """How far depth jumps between neighbours in a column, then in a row, mm.

    slope  take off what the tangent plane of the surface beside the step accounts for
    """
    return _jumps(z_mm, mask, 0, slope), _jumps(z_mm, mask, 1, slope)


def edges_of(jumps: tuple[Array, Array], step_mm: float, radius: int = 1) -> Edges:
    """Where a map steps by more than `step_mm`, by axis and direction, and what lies within
    `radius` pixels of that.
    """
    square = np.ones((2 * radius + 1,) * 2, bool)
    return [
        (where, ndimage.binary_dilation(where, square))
        for along in jumps
        for where in (along > step_mm, along < -step_mm)
    ]


def edge_scores(pred: Edges, truth: Edges) -> dict[str, float]:
    """precision, recall and f1: how many edges of each have one of the other's near, which must
    step the same way.
    """
    hits_p, hits_g = (
        sum(np.count_nonzero(where & near) for (where, _), (_, near) in zip(one, other))
        for one, other in ((pred, truth), (truth, pred))
    )
    total_p, total_g = (sum(np.count_nonzero(where) for where, _ in one) for one in (pred, truth))
    if not total_g:
        return {"precision": math.nan, "recall": math.nan, "f1": math.nan}
    precision, recall = hits_p / max(total_p, 1), hits_g / total_g
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
    }


def _jumps(z: Array, mask: Array, axis: int, slope: bool) -> Array:
    """Z of the next pixel along `axis` minus what is expected there, mm.

    0 where one of the two was not measured.

    Expected is the same Z or, with `slope`, Z on the tangent plane. A plane's 1/Z is linear in the
    pixel (pinhole), so its slope is that of 1/Z just before the pair, or just after it: the smaller
    one where they have one sign, none where they do not. Where only one side is known it counts as
    far as the pair itself goes on like it: else a step beside a hole would be taken for a slope.
    """
    z, mask = np.moveaxis(z, axis, -1), np.moveaxis(mask, axis, -1)
    valid = mask[..., 1:] & mask[..., :-1]
    inverse = np.divide(1.0, z, out=np.zeros(z.shape), where=mask)
    expected = inverse[..., :-1].copy()
    if slope:
        steps = np.where(valid, np.diff(inverse, axis=-1), np.nan)
        empty = np.full((*steps.shape[:-1], 1), np.nan)
        before, after = (
            np.concatenate([empty, steps[..., :-1]], -1),
            np.concatenate([steps[..., 1:], empty], -1),
        )
        alone = np.isnan(before) & np.isnan(after)
        before, after = (
            np.where(alone, 0.0, np.where(np.isnan(side), steps, side)) for side in (before, after)
        )
        smaller = np.where(np.abs(before) < np.abs(after), before, after)
        expected += np.where(before * after > 0, smaller, 0.0)
    expected = np.divide(1.0, expected, out=np.zeros(expected.shape), where=expected > 0)
    return np.moveaxis(np.where(valid & (expected > 0), z[..., 1:] - expected, 0.0), -1, axis)


# ---------------------------------------------------------------------------------------- distances


def boundary_errors(
    preds_mm: Sequence[Array], depth_mm: Array, mask: Array
) -> list[dict[str, float]]:
    """IBims' depth boundary errors, px, of Canny's edges in each prediction and in truth.

    Both definitions of completeness in circulation.
    """
    names, g, found = (
        ("dbe_acc_px", "dbe_comp_paper_px", "dbe_comp_script_px"),
        _canny(depth_mm, mask),
        [],
    )
    to_g = ndimage.distance_transform_edt(~g)
    for pred_mm in preds_mm:
        if not g.any():
            found.append(dict.fromkeys(names, math.nan))
            continue
        p = _canny(pred_mm, mask)
        to_p = (
            ndimage.distance_transform_edt(~p)
            if p.any()
            else np.full(p.shape, math.hypot(*mask.shape))
        )
        near = to_g[p & (to_g < NEAR_PX)]
        paper = (np.minimum(to_g[p], NEAR_PX).sum() + np.minimum(to_p[g], NEAR_PX).sum()) / (
            p.sum() + g.sum()
        )
        found.append(
            dict(
                zip(
                    names,
                    (
                        float(near.mean()) if near.size else NEAR_PX,
                        float(paper),
                        float(to_p[g].mean()),
                    ),
                )
            )
        )
    return found


def _canny(z: Array, mask: Array) -> Array:
    low, high = np.percentile(z[mask], PERCENTILES) if mask.any() else (0.0, 0.0)
    if high <= low:
        return np.zeros(mask.shape, bool)
    return canny(np.where(mask, (z - low) / (high - low), 0.0), math.sqrt(2), 0.1, 0.2, mask=mask)
