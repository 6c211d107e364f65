"""Groove depth in mm below the ribs beside it: what this software is made for.

    # [Groove(id=3, depths=(8.1, 7.4), ...), ...]
    found = groove_depths(labels, mask, rays, depth_mm, pred_mm)
    values = groove_metrics(found, limit_mm=1.6)

labels  (H, W) uint16: 0 no groove, else the groove that is seen there, floor or wall. Arrays are
        NumPy, depths mm

A groove is measured in patches along it. In each, a robust quadric is fitted to the ribs beside it,
and the depth is the median distance of the floor's pixels from it along its normal; the first map
decides for all others which pixels are floor, and where the patches are. The depth of a groove is
the median of its patches. The offset of a map within a patch is subtracted first, and its points
then lie on the camera's own rays: a map with a constant offset has the same grooves, and one
without any has depth 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from depthdist.evaluation.metrics.registry import TREAD_LIMIT_MM, Metric, metrics_by_name
from depthdist.geometry.camera import points_from_depth

FOUND = 0.5  # a groove counts as found from this share of its true depth
# twice the largest distance to the rim: grooves of 3 pixels and more; narrower ones show no floor
MIN_WIDTH_PX = 4.0
MIN_FLOOR, MIN_RIB = 8, 40  # pixels of a patch
PATCHES = 16  # of a groove, evenly spread
MOST_RIBS = 600  # pixels of a patch that the surface goes through, evenly spread
ROUGH_MM = 0.3  # a patch whose ribs are rougher than this is left out
# share of the depth that the floor's middle half may span, beside the ribs' roughness; a wall spans
# more
LEVEL = 0.15
STEEPEST = 0.5  # least cosine between line of sight and normal: 60 degrees
SEEN = 0.25  # share of a groove's width whose floor the camera must see past the rib before it
# floor is what lies deeper than this share of this quantile
FLOOR_QUANTILE = 0.9
FLOOR_SHARE = 0.7
# pixels a side, for that choice only: otherwise noise of the ground truth makes shallow grooves
# deeper than they are
SMOOTH = 5
Array = np.ndarray


@dataclass(frozen=True)
class Groove:
    """One measured groove: its label, width, patches that counted, and depth in mm in each map."""

    id: int
    width_px: float
    patches: int
    depths: tuple[float, ...]


GROOVE_METRICS = metrics_by_name(
    [
        Metric(
            "groove_mae_mm",
            "mm",
            "lower",
            "mean over grooves of |depth in the prediction - depth in truth|, each in mm below its"
            " ribs",
        ),
        Metric(
            "groove_bias_mm",
            "mm",
            "zero",
            "mean over grooves of depth in the prediction - depth in truth: negative is too"
            " shallow",
        ),
        Metric(
            "groove_max_mm",
            "mm",
            "lower",
            "largest |depth in the prediction - depth in truth| of the image's grooves",
        ),
        Metric(
            "groove_found",
            "",
            "higher",
            f"share of grooves at least {FOUND:g} times as deep in the prediction as in truth",
        ),
        Metric(
            "groove_decision", "", "higher", "share of grooves on the right side of the tread limit"
        ),
    ]
)


def groove_metrics(grooves: list[Groove], limit_mm: float = TREAD_LIMIT_MM) -> dict[str, float]:
    """Return GROOVE_METRICS of one image's grooves, depths (truth, prediction); NaN without any."""
    if not grooves:
        return dict.fromkeys(GROOVE_METRICS, math.nan)
    g, p = np.array([groove.depths for groove in grooves]).T
    return {
        "groove_mae_mm": float(np.abs(p - g).mean()),
        "groove_bias_mm": float((p - g).mean()),
        "groove_max_mm": float(np.abs(p - g).max()),
        "groove_found": float((p >= FOUND * g).mean()),
        "groove_decision": float(((p < limit_mm) == (g < limit_mm)).mean()),
    }


def summarize_grooves(grooves: list[Groove], limit_mm: float = TREAD_LIMIT_MM) -> dict[str, float]:
    """Return statistics of all grooves of all images together, depths (truth, prediction).

    grooves     how many there are
    bias_mm, mae_mm, found  as in GROOVE_METRICS, over grooves; NaN without any
    limit95_mm  95 % of the errors are smaller
    worn_as_worn, worn_as_good, good_as_worn, good_as_good  how many are worn (below the limit) or
                good in truth, and what the prediction takes them for
    """
    g, p = np.array([groove.depths for groove in grooves]).reshape(-1, 2).T
    off = p - g
    found: dict[str, float] = {
        "grooves": len(grooves),
        "bias_mm": float(off.mean()) if len(g) else math.nan,
        "mae_mm": float(np.abs(off).mean()) if len(g) else math.nan,
        "limit95_mm": float(np.quantile(np.abs(off), 0.95)) if len(g) else math.nan,
        "found": float((p >= FOUND * g).mean()) if len(g) else math.nan,
    }
    names = {True: "worn", False: "good"}
    for truth in (True, False):
        for pred in (True, False):
            agree = ((g < limit_mm) == truth) & ((p < limit_mm) == pred)
            found[f"{names[truth]}_as_{names[pred]}"] = int(np.count_nonzero(agree))
    return found


# ---------------------------------------------------------------------------------------- measuring


def groove_depths(labels: Array, mask: Array, rays: Array, *maps_mm: Array) -> list[Groove]:
    """Return every groove that can be measured, with its depth in each map; the first is the truth.

    mask  (H, W) bool: measured in truth;  rays  (H, W, 2) X / Z and Y / Z;  maps_mm  (H, W) each
    Left out are grooves less than MIN_WIDTH_PX wide, and patches without floor, or without ribs on
    both sides.
    """
    found = []
    ribs = mask & (ndimage.distance_transform_edt(labels == 0) > 1.5)  # off the rounded shoulder
    for i, box in enumerate(ndimage.find_objects(labels.astype(np.int32)), start=1):
        if box is None:
            continue
        mine = labels[box] == i
        width = 2 * float(ndimage.distance_transform_edt(np.pad(mine, 1)).max())
        if width < MIN_WIDTH_PX:
            continue
        reach = max(math.ceil(1.8 * width), 9)
        wide = tuple(
            slice(max(0, s.start - reach), min(n, s.stop + reach))
            for s, n in zip(box, labels.shape)
        )
        patches = _patches(
            mine=labels[wide] == i,
            rib=ribs[wide],
            mask=mask[wide],
            rays=rays[wide],
            maps=[z[wide] for z in maps_mm],
            reach=reach,
        )
        depths = [depth for depth in patches if depth is not None]
        if depths:
            found.append(Groove(i, width, len(depths), tuple(np.median(depths, axis=0).tolist())))
    return found


def _patches(
    mine: Array, rib: Array, mask: Array, rays: Array, maps: list[Array], reach: int
) -> Iterator[tuple[float, ...] | None]:
    """Yield the depths in each map, or None, of each patch along a groove."""
    floor = mine & mask
    for y, x in _anchors(mine, reach):
        near = tuple(slice(max(0, c - reach), c + reach + 1) for c in (y, x))
        yield _depths(floor[near], rib[near], rays[near], [z[near] for z in maps])


def _anchors(mine: Array, reach: int) -> list[tuple[int, int]]:
    """Return pixels in the middle of a groove, about `reach` apart, PATCHES at most.

    They are the innermost pixel of each cell of a grid.
    """
    inside = ndimage.distance_transform_edt(np.pad(mine, 1))[1:-1, 1:-1]
    rows, columns = np.nonzero(mine)
    cells: dict[tuple[int, int], tuple[float, int, int]] = {}
    for y, x in zip(rows.tolist(), columns.tolist()):
        cell = (y // reach, x // reach)
        candidate = (float(inside[y, x]), y, x)
        if cell not in cells or candidate > cells[cell]:
            cells[cell] = candidate
    best = max(d for d, _, _ in cells.values())
    # not where a cell meets only a tip
    middle = [(y, x) for d, y, x in cells.values() if d >= 0.7 * best]
    chosen = np.linspace(0, len(middle) - 1, min(PATCHES, len(middle))).round().astype(int)
    return [middle[k] for k in np.unique(chosen)]


def _depths(floor: Array, rib: Array, rays: Array, maps: list[Array]) -> tuple[float, ...] | None:
    """Return the depth of one patch in each map; None if it cannot be measured."""
    if np.count_nonzero(floor) < MIN_FLOOR or np.count_nonzero(rib) < MIN_RIB:
        return None
    truth = maps[0]
    rib = _keep(rib, _spread_evenly(int(np.count_nonzero(rib)), MOST_RIBS))
    frame, near = _frame(points_from_depth(truth[rib], rays[rib]))
    rib = _keep(rib, near)
    if not _on_both_sides(rib, floor):
        return None
    depths: list[float] = []
    deep: Array | None = None  # which floor pixels count; the first map, the truth, decides
    for z in maps:
        off = np.median((z - truth)[rib])
        on_rib = points_from_depth(z[rib] - off, rays[rib])
        on_floor = points_from_depth(z[floor] - off, rays[floor])
        centre = np.median(on_rib, axis=0)
        inside = (on_floor - centre) @ frame
        below, rough = _depth_below_ribs((on_rib - centre) @ frame, inside)
        if deep is None:
            level = _smooth(below, floor)
            deep = level > FLOOR_SHARE * np.quantile(level, FLOOR_QUANTILE)
            if np.count_nonzero(deep) < MIN_FLOOR or rough > ROUGH_MM:
                return None
            low, depth, high = np.quantile(below[deep], (0.25, 0.5, 0.75))
            if high - low > LEVEL * depth + 1.5 * rough or not _floor_is_seen(
                inside, centre @ frame, depth
            ):
                return None
        depths.append(float(np.median(below[deep])))
    return tuple(depths)


def _smooth(values: Array, where: Array) -> Array:
    """Return the values of the pixels `where`, each the mean of those around it.

    A choice made by them does not follow the noise of single pixels.
    """
    image = np.zeros(where.shape)
    image[where] = values
    total = ndimage.uniform_filter(image, SMOOTH, mode="constant")
    weight = ndimage.uniform_filter(where.astype(float), SMOOTH, mode="constant")
    return (total / np.maximum(weight, 1e-9))[where]


def _spread_evenly(num: int, most: int) -> Array:
    """Return (num,) bool, at most `most` of them True, evenly spread."""
    chosen = np.zeros(num, bool)
    chosen[np.linspace(0, num - 1, min(num, most)).round().astype(int)] = True
    return chosen


def _floor_is_seen(groove: Array, sight: Array, depth_mm: float) -> bool:
    """Return whether the camera sees SEEN of the floor's width past the rib before it.

    Otherwise the end of a wall would be taken for a floor.

    groove  (N, 3) its points in the patch's frame;  sight (3,) the line of sight there
    """
    flat = groove[:, :2] - groove[:, :2].mean(axis=0)
    spread, axes = np.linalg.eigh(flat.T @ flat / len(flat))
    width = math.sqrt(12 * max(float(spread[0]), 0.0))  # of a strip, from its standard deviation
    across = abs(float(sight[:2] @ axes[:, 0]))
    down = float(sight[2])
    return (
        down >= STEEPEST * float(np.linalg.norm(sight))
        and width - depth_mm * across / down >= SEEN * width
    )


def _keep(where: Array, chosen: Array) -> Array:
    """Return `where` with only the chosen ones of its True pixels."""
    kept = np.zeros_like(where)
    kept[where] = chosen
    return kept


def _frame(rib: Array) -> tuple[Array, Array]:
    """Return the frame of a robust plane through points (N, 3), and which points lie near it.

    The columns of the frame (3, 3) are two tangents and the normal, away from the camera.
    """
    weight = np.ones(len(rib))
    for _ in range(10):
        centre = np.average(rib, axis=0, weights=weight)
        _, axes = np.linalg.eigh((rib - centre).T @ ((rib - centre) * weight[:, None]))
        normal = axes[:, 0] if axes[2, 0] > 0 else -axes[:, 0]
        off = np.abs((rib - centre) @ normal)
        # towards the least sum of distances
        weight = 1 / np.maximum(off, 0.05 + np.median(off) / 10)
    tangents = axes[:, 1:]
    return np.column_stack([tangents, normal]), off <= 6 * max(float(np.median(off)), 0.2)


def _on_both_sides(rib: Array, floor: Array) -> bool:
    """Return whether ribs lie on both sides of the floor.

    Seen from the middle of the floor, no gap between their directions is near half a turn.
    """
    if np.count_nonzero(rib) < MIN_RIB:
        return False
    y, x = (axis.mean() for axis in np.nonzero(floor))
    rows, columns = np.nonzero(rib)
    angles = np.sort(np.arctan2(rows - y, columns - x))
    return float(np.diff(angles, append=angles[0] + 2 * math.pi).max()) < math.radians(150)


def _depth_below_ribs(rib: Array, floor: Array) -> tuple[Array, float]:
    """Return how far floor points lie below the quadric through the ribs, and the ribs' spread.

    floor (N, 3) gives (N,) mm along the quadric's normal; rib (M, 3) gives the spread in mm. Both
    are in the patch's frame: two tangents, and the normal away from the camera.
    """
    scale = max(float(np.abs(rib[:, :2]).max()), 1e-9)
    a = _quadric_terms(rib[:, :2] / scale)
    b = _quadric_terms(floor[:, :2] / scale)
    weight = np.ones(len(rib))
    for _ in range(8):  # Tukey's biweight of the residuals
        root = np.sqrt(weight)[:, None]
        c = np.linalg.lstsq(a * root, rib[:, 2] * root[:, 0], rcond=None)[0]
        off = rib[:, 2] - a @ c
        spread = max(1.4826 * float(np.median(np.abs(off))), 1e-6)
        weight = np.square(np.clip(1 - np.square(off / (4.685 * spread)), 0, None)) + 1e-9
    u = floor[:, 0] / scale
    v = floor[:, 1] / scale
    slope = np.hypot(c[1] + 2 * c[3] * u + c[4] * v, c[2] + c[4] * u + 2 * c[5] * v) / scale
    return (floor[:, 2] - b @ c) / np.sqrt(1 + slope**2), spread


def _quadric_terms(uv: Array) -> Array:
    """Return the terms (N, 6) of a quadric at positions (N, 2)."""
    u, v = uv.T
    return np.column_stack([np.ones_like(u), u, v, u * u, u * v, v * v])
