"""Metrics of depth edges: boundary scores of the literature with a mask, and edges in millimetres.

An edge counts only between two measured pixels: otherwise the rim of every hole would be a strong
edge. All functions take one image, pred_mm and depth_mm (H, W) float64 mm and mask (H, W) bool, and
return {name: value}; NaN where the ground truth has no edge to find.

    # for several predictions, the edges of the ground truth are found once
    values, = edge_metrics([pred_mm], depth_mm, mask)

Definitions: Bochkovskii et al. 2024 (Depth Pro), Wang et al. 2025 (MoGe), Koch et al. 2018
(iBims-1, DBE). Their thresholds begin at 5 % of the depth, 75 mm at 1.5 m: no groove is that deep.
Ours, edge_*_mm, go down to 2 mm; grooves.py measures the grooves themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from skimage.feature import canny

from depthdist.evaluation.metrics.registry import Metric, metrics_by_name

RATIOS = 1 + np.linspace(0.05, 0.25, 10)
STEPS_MM = (2.0, 4.0, 8.0, 16.0, 32.0)
NEAR_PX = 10.0  # theta of the DBE
# the range that Canny's thresholds are shares of; min and max would follow one outlier
PERCENTILES = (1, 99)
Array = np.ndarray
# by offset (rows, columns) to the neighbour: (3, 10) of both maps, prediction, truth over RATIOS
Counts = dict[tuple[int, int], Array]
# per axis and direction: (H, W) bool where a map steps that way, and what is near such a step
Edges = list[tuple[Array, Array]]


_CANNY = (
    f"Canny (sigma sqrt 2, 0.1, 0.2) on depth scaled by its {PERCENTILES[0]}st and"
    f" {PERCENTILES[1]}th percentiles"
)
EDGE_METRICS = metrics_by_name(
    [
        Metric(
            "depth_pro_f1",
            "",
            "higher",
            "Depth Pro's boundary F1 over ratios 1.05 .. 1.25, between measured pixels; 0 where"
            " truth has no edge, as there",
        ),
        *(
            Metric(
                f"moge_f1_r{r}",
                "",
                "higher",
                f"MoGe's boundary F1, radius {r}, over ratios 1.05 .. 1.25, between measured"
                " pixels",
            )
            for r in (1, 2, 3)
        ),
        Metric(
            "dbe_acc_px",
            "px",
            "lower",
            "iBims DBE accuracy: mean distance of predicted edges to the truth's within"
            f" {NEAR_PX:g} px, {NEAR_PX:g} where none is; {_CANNY}",
        ),
        Metric(
            "dbe_comp_paper_px",
            "px",
            "lower",
            "iBims DBE completeness as the paper has it: mean of both distances, each at most"
            f" {NEAR_PX:g} px",
        ),
        Metric(
            "dbe_comp_script_px",
            "px",
            "lower",
            "iBims DBE completeness as its script has it: mean distance of the truth's edges to"
            " predicted ones, not cut; the image's diagonal where nothing is predicted",
        ),
        *(
            Metric(
                f"edge_{name}@{step:g}mm",
                "",
                "higher",
                f"{title} of steps > {step:g} mm between neighbours, beyond the local slope, same"
                " direction, within 1 px",
            )
            for step in STEPS_MM
            for name, title in (("precision", "precision"), ("recall", "recall"), ("f1", "F1"))
        ),
    ]
)


def edge_metrics(preds_mm: Sequence[Array], depth_mm: Array, mask: Array) -> list[dict[str, float]]:
    """Return EDGE_METRICS of each prediction."""
    found = boundary_errors(preds_mm, depth_mm, mask)
    for values, counts in zip(found, ratio_edges(preds_mm, depth_mm, mask)):
        values["depth_pro_f1"] = depth_pro_f1(counts)
        values |= {f"moge_f1_r{r}": moge_f1(counts, r) for r in (1, 2, 3)}
    for values, steps in zip(found, step_metrics(preds_mm, depth_mm, mask)):
        values |= steps
    return found


def step_metrics(
    preds_mm: Sequence[Array],
    depth_mm: Array,
    mask: Array,
    steps_mm: Sequence[float] = STEPS_MM,
) -> list[dict[str, float]]:
    """Return edge_precision, edge_recall and edge_f1 of each prediction, at steps in mm alone."""
    found: list[dict[str, float]] = [{} for _ in preds_mm]
    jumps_g = jumps_of(depth_mm, mask)
    jumps = [jumps_of(pred_mm, mask) for pred_mm in preds_mm]
    for step in steps_mm:
        truth = edges_of(jumps_g, step)
        for values, jumps_p in zip(found, jumps):
            scores = edge_scores(edges_of(jumps_p, step), truth)
            values |= {f"edge_{name}@{step:g}mm": value for name, value in scores.items()}
    return found


# ------------------------------------------------------------------------------------------- ratios


def ratio_edges(preds_mm: Sequence[Array], depth_mm: Array, mask: Array) -> list[Counts]:
    """Return, for each prediction, how many neighbours are farther by each of RATIOS.

    Counted for every offset (rows, columns) to a neighbour within 3 pixels: in both maps, in the
    prediction, and in the ground truth, only between measured pixels.
    """
    counts: list[Counts] = [{} for _ in preds_mm]
    reach = range(-3, 4)
    offsets = [(y, x) for y in reach for x in reach if 0 < y * y + x * x <= 9]
    for offset in offsets:
        a, b = _pair_slices(mask.shape, offset)
        valid = mask[a] & mask[b]
        g = np.divide(depth_mm[b], depth_mm[a], out=np.zeros(valid.shape), where=valid)
        of_g = _count_above(g)
        for found, pred_mm in zip(counts, preds_mm):
            p = np.divide(pred_mm[b], pred_mm[a], out=np.zeros(valid.shape), where=valid)
            found[offset] = np.array([_count_above(np.minimum(p, g)), _count_above(p), of_g])
    return counts


def _count_above(ratios: Array) -> list[int]:
    """Return how many ratios are above each of RATIOS."""
    high = ratios[ratios > RATIOS[0]]
    return [int(np.count_nonzero(high > t)) for t in RATIOS]


def depth_pro_f1(counts: Counts) -> float:
    """Return Depth Pro's boundary F1 over ten ratios, weighted by the ratio.

    Precision and recall are means over four directions.
    """
    recall = np.zeros(10)
    precision = np.zeros(10)
    for offset in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        both, of_p, of_g = counts[offset]
        recall += both / np.maximum(of_g, 1) / 4
        precision += both / np.maximum(of_p, 1) / 4
    return float((RATIOS / RATIOS.sum()) @ _harmonic(precision, recall))


def moge_f1(counts: Counts, radius: int) -> float:
    """Return MoGe's boundary F1 over ten ratios, weighted by ratio - 1.

    Counts are pooled over all neighbours within `radius`. NaN where the ground truth has no edge.
    """
    near = [found for (y, x), found in counts.items() if x * x + y * y <= radius * radius]
    both, of_p, of_g = np.sum(near, axis=0)
    if not of_g.any():
        return math.nan
    f1 = _harmonic(both / np.maximum(of_p, 1), both / np.maximum(of_g, 1))
    return float(np.average(f1, weights=RATIOS - 1))


def _pair_slices(
    shape: tuple[int, ...], offset: tuple[int, int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return slices of the first pixels and of their neighbours at `offset`, both in the image."""
    first = tuple(slice(max(0, -d), n - max(0, d)) for d, n in zip(offset, shape))
    second = tuple(slice(max(0, d), n + min(0, d)) for d, n in zip(offset, shape))
    return first, second


def _harmonic(a: Array, b: Array) -> Array:
    """Return the harmonic mean, 0 where both are 0."""
    return np.divide(2 * a * b, a + b, out=np.zeros_like(a), where=a + b > 0)


# -------------------------------------------------------------------------------------- millimetres


def jumps_of(z_mm: Array, mask: Array, slope: bool = True) -> tuple[Array, Array]:
    """Return how far depth jumps between neighbours in a column, and in a row, in mm.

    slope  subtract what the tangent plane of the surface beside the step accounts for
    """
    return _jumps(z_mm, mask, 0, slope), _jumps(z_mm, mask, 1, slope)


def edges_of(jumps: tuple[Array, Array], step_mm: float, radius: int = 1) -> Edges:
    """Return where a map steps by more than step_mm, by axis and direction.

    With each comes what lies within `radius` pixels of such a step.
    """
    square = np.ones((2 * radius + 1,) * 2, bool)
    return [
        (where, ndimage.binary_dilation(where, square))
        for along in jumps
        for where in (along > step_mm, along < -step_mm)
    ]


def edge_scores(pred: Edges, truth: Edges) -> dict[str, float]:
    """Return precision, recall and f1; all NaN where the ground truth has no edge.

    An edge counts as a hit if the other map has an edge in the same direction near it.
    """
    hits_p = _count_hits(pred, truth)
    hits_g = _count_hits(truth, pred)
    total_p = sum(np.count_nonzero(where) for where, _ in pred)
    total_g = sum(np.count_nonzero(where) for where, _ in truth)
    if not total_g:
        return {"precision": math.nan, "recall": math.nan, "f1": math.nan}
    precision = hits_p / max(total_p, 1)
    recall = hits_g / total_g
    total = precision + recall
    f1 = 2 * precision * recall / total if total else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}


def _count_hits(edges: Edges, others: Edges) -> int:
    """Return how many edges have one of the others near."""
    return sum(int(np.count_nonzero(where & near)) for (where, _), (_, near) in zip(edges, others))


def _jumps(z: Array, mask: Array, axis: int, slope: bool) -> Array:
    """Return Z of the next pixel along `axis` minus the expected Z, mm; 0 if one is not measured.

    Expected is the same Z or, with `slope`, Z on the tangent plane. 1/Z of a plane is linear in the
    pixel (pinhole), so its slope is that of 1/Z just before the pair, or just after it: the smaller
    one where they have one sign, none where they do not. Where only one side is known, the pair
    itself stands in for the other: otherwise a step beside a hole would be taken for a slope.
    """
    z = np.moveaxis(z, axis, -1)
    mask = np.moveaxis(mask, axis, -1)
    valid = mask[..., 1:] & mask[..., :-1]
    inverse = np.divide(1.0, z, out=np.zeros(z.shape), where=mask)
    expected = inverse[..., :-1].copy()
    if slope:
        steps = np.where(valid, np.diff(inverse, axis=-1), np.nan)
        empty = np.full((*steps.shape[:-1], 1), np.nan)
        before = np.concatenate([empty, steps[..., :-1]], -1)
        after = np.concatenate([steps[..., 1:], empty], -1)
        alone = np.isnan(before) & np.isnan(after)
        before = np.where(alone, 0.0, np.where(np.isnan(before), steps, before))
        after = np.where(alone, 0.0, np.where(np.isnan(after), steps, after))
        smaller = np.where(np.abs(before) < np.abs(after), before, after)
        expected += np.where(before * after > 0, smaller, 0.0)
    expected = np.divide(1.0, expected, out=np.zeros(expected.shape), where=expected > 0)
    return np.moveaxis(np.where(valid & (expected > 0), z[..., 1:] - expected, 0.0), -1, axis)


# ---------------------------------------------------------------------------------------- distances


def boundary_errors(
    preds_mm: Sequence[Array], depth_mm: Array, mask: Array
) -> list[dict[str, float]]:
    """Return the depth boundary errors of iBims in px, of Canny's edges in each prediction.

    Completeness has two definitions: the paper's and the script's.
    """
    g = _canny(depth_mm, mask)
    if not g.any():
        names = ("dbe_acc_px", "dbe_comp_paper_px", "dbe_comp_script_px")
        return [dict.fromkeys(names, math.nan) for _ in preds_mm]
    found = []
    to_g = ndimage.distance_transform_edt(~g)
    for pred_mm in preds_mm:
        p = _canny(pred_mm, mask)
        if p.any():
            to_p = ndimage.distance_transform_edt(~p)
        else:
            to_p = np.full(p.shape, math.hypot(*mask.shape))
        near = to_g[p & (to_g < NEAR_PX)]
        paper = (np.minimum(to_g[p], NEAR_PX).sum() + np.minimum(to_p[g], NEAR_PX).sum()) / (
            p.sum() + g.sum()
        )
        found.append(
            {
                "dbe_acc_px": float(near.mean()) if near.size else NEAR_PX,
                "dbe_comp_paper_px": float(paper),
                "dbe_comp_script_px": float(to_p[g].mean()),
            }
        )
    return found


def _canny(z: Array, mask: Array) -> Array:
    """Return Canny's edges (H, W) bool of a map scaled to its PERCENTILES."""
    low, high = np.percentile(z[mask], PERCENTILES) if mask.any() else (0.0, 0.0)
    if high <= low:
        return np.zeros(mask.shape, bool)
    return canny(np.where(mask, (z - low) / (high - low), 0.0), math.sqrt(2), 0.1, 0.2, mask=mask)
