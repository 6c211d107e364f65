"""How deep each groove is, in mm below the ribs beside it: what this software is bought for and no
other metric sees.

    # [Groove(id=3, depths=(8.1, 7.4), ...), ...]
    found = groove_depths(labels, mask, rays, depth_mm, pred_mm)
    values = groove_metrics(found, limit_mm=1.6)

labels  (H, W) uint16: 0 no groove, else the groove that is seen there, floor or wall. Arrays are
        NumPy, depths mm

A groove is measured in patches along it. In each, a robust quadric goes through the ribs beside it,
and the depth is the median distance of the floor's pixels from it along its normal; which pixels
are floor, and where the patch lies, the first map decides for all others. A groove's depth is the
median of its patches. What a map is off by as a whole in a patch is taken off first, and then its
points lie on the camera's own rays: a map that is off by a constant has the same grooves, and one
without any has depth 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from depthdist.evaluation.metrics.registry import TREAD_LIMIT_MM, Metric
from depthdist.geometry.camera import points_from_depth

FOUND = 0.5  # share of the true depth from which on a groove counts as found
# twice the largest distance to the rim: grooves of 3 pixels and more; narrower ones show no floor
MIN_WIDTH_PX = 4.0
MIN_FLOOR, MIN_RIB = 8, 40  # pixels of a patch
PATCHES = 16  # of a groove, evenly spread
MOST_RIBS = 600  # pixels of a patch that the surface goes through, evenly spread
ROUGH_MM = 0.3  # ribs that lie farther from their surface say nothing of a groove
# share of the depth that a floor's middle half may span, beside the ribs' own roughness: a wall
# spans more
LEVEL = 0.15
STEEPEST = 0.5  # least cosine between line of sight and normal: 60 degrees
SEEN = 0.25  # share of a groove's width whose floor the camera must see past the rib before it
FLOOR_QUANTILE, FLOOR_SHARE = 0.9, 0.7  # floor is what lies deeper than this share of this quantile
# pixels a side, for that choice alone: else the truth's own noise makes shallow grooves deeper than
# they are
SMOOTH = 5
Array = np.ndarray


@dataclass(frozen=True)
class Groove:
    """One measured groove: its label, width in pixels, patches that counted, and depth in mm in
    each map.
    """

    id: int
    width_px: float
    patches: int
    depths: tuple[float, ...]


GROOVE_METRICS = {
    row[0]: Metric(*row)
    for row in [
        (
            "groove_mae_mm",
            "mm",
            "lower",
            (
                "mean over grooves of |depth in the prediction - depth in truth|, each in mm below"
                " its ribs"
            ),
        ),
        (
            "groove_bias_mm",
            "mm",
            "zero",
            (
                "mean over grooves of depth in the prediction - depth in truth: negative is too"
                " shallow"
            ),
        ),
        (
            "groove_max_mm",
            "mm",
            "lower",
            "largest |depth in the prediction - depth in truth| of the image's grooves",
        ),
        (
            "groove_found",
            "",
            "higher",
            f"share of grooves at least {FOUND:g} times as deep in the prediction as in truth",
        ),
        ("groove_decision", "", "higher", "share of grooves on the right side of the tread limit"),
    ]
}


def groove_metrics(grooves: list[Groove], limit_mm: float = TREAD_LIMIT_MM) -> dict[str, float]:
    """METRICS of one image's grooves, depths (truth, prediction); NaN where there is none."""
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
    """Of all grooves of all images together: their number, bias_mm, mae_mm, limit95_mm (95 % of
    errors are smaller), found, and

    worn_as_worn, worn_as_good, good_as_worn, good_as_good: how many of those that truth calls worn
    (below the limit) or good the prediction calls what
    """
    g, p = np.array([groove.depths for groove in grooves]).reshape(-1, 2).T
    off, names = p - g, {True: "worn", False: "good"}
    found = {
        "grooves": len(grooves),
        "bias_mm": float(off.mean()) if len(g) else math.nan,
        "mae_mm": float(np.abs(off).mean()) if len(g) else math.nan,
        "limit95_mm": float(np.quantile(np.abs(off), 0.95)) if len(g) else math.nan,
        "found": float((p >= FOUND * g).mean()) if len(g) else math.nan,
    }
    pairs = [(a, b) for a in (True, False) for b in (True, False)]
    return found | {
        f"{names[a]}_as_{names[b]}": int(
            np.count_nonzero(((g < limit_mm) == a) & ((p < limit_mm) == b))
        )
        for a, b in pairs
    }


# ---------------------------------------------------------------------------------------- measuring


def groove_depths(labels: Array, mask: Array, rays: Array, *maps_mm: Array) -> list[Groove]:
    """Every groove that can be measured, with its depth in each map; the first map is the truth.

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
        depths = [
            d
            for d in _patches(
                labels[wide] == i,
                ribs[wide],
                mask[wide],
                rays[wide],
                [z[wide] for z in maps_mm],
                reach,
            )
            if d is not None
        ]
        if depths:
            found.append(Groove(i, width, len(depths), tuple(np.median(depths, axis=0).tolist())))
    return found


def _patches(
    mine: Array, rib: Array, mask: Array, rays: Array, maps: list[Array], reach: int
) -> Iterator[tuple[float, ...] | None]:
    """Depths in each map, or None, of each patch along a groove."""
    floor = mine & mask
    for y, x in _anchors(mine, reach):
        near = tuple(slice(max(0, c - reach), c + reach + 1) for c in (y, x))
        yield _depths(floor[near], rib[near], rays[near], [z[near] for z in maps])


def _anchors(mine: Array, reach: int) -> list[tuple[int, int]]:
    """Pixels in the middle of a groove, about `reach` apart, PATCHES at most: one in each cell of a
    grid, the innermost.
    """
    inside = ndimage.distance_transform_edt(np.pad(mine, 1))[1:-1, 1:-1]
    rows, columns = np.nonzero(mine)
    cells: dict[tuple[int, int], tuple[float, int, int]] = {}
    for y, x in zip(rows.tolist(), columns.tolist()):
        cell, candidate = (y // reach, x // reach), (float(inside[y, x]), y, x)
        if candidate > cells.get(cell, (0.0,)):
            cells[cell] = candidate
    best = max(d for d, _, _ in cells.values())
    middle = [
        (y, x) for d, y, x in cells.values() if d >= 0.7 * best
    ]  # not where a cell meets only a tip
    return [
        middle[k]
        for k in np.unique(
            np.linspace(0, len(middle) - 1, min(PATCHES, len(middle))).round().astype(int)
        )
    ]


def _depths(floor: Array, rib: Array, rays: Array, maps: list[Array]) -> tuple[float, ...] | None:
    """One patch's depth in each map."""
    if np.count_nonzero(floor) < MIN_FLOOR or np.count_nonzero(rib) < MIN_RIB:
        return None
    truth = maps[0]
    rib = _at(rib, _every(np.count_nonzero(rib), MOST_RIBS))
    frame, near = _frame(points_from_depth(truth[rib], rays[rib]))
    rib = _at(rib, near)
    if not _around(rib, floor):
        return None
    depths, deep = [], None
    for z in maps:
        off = np.median((z - truth)[rib])
        on_rib, on_floor = (
            points_from_depth(z[where] - off, rays[where]) for where in (rib, floor)
        )
        centre = np.median(on_rib, axis=0)
        inside = (on_floor - centre) @ frame
        below, rough = _below((on_rib - centre) @ frame, inside)
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
    """`values` of the pixels `where`, each the mean of those around it: what is chosen by them is
    not chosen by a pixel's own noise.
    """
    image, weight = np.zeros(where.shape), where.astype(float)
    image[where] = values
    return (
        ndimage.uniform_filter(image, SMOOTH, mode="constant")
        / np.maximum(ndimage.uniform_filter(weight, SMOOTH, mode="constant"), 1e-9)
    )[where]


def _every(num: int, most: int) -> Array:
    """(num,) bool, at most `most` of them True, evenly spread."""
    chosen = np.zeros(num, bool)
    chosen[np.linspace(0, num - 1, min(num, most)).round().astype(int)] = True
    return chosen


def _floor_is_seen(groove: Array, sight: Array, depth_mm: float) -> bool:
    """Whether the camera looks down steeply enough to see SEEN of the floor's width past the rib
    before it; else a wall's end would pass for a floor.

    groove  (N, 3) its points in the patch's frame;  sight (3,) the line of sight there
    """
    flat = groove[:, :2] - groove[:, :2].mean(axis=0)
    spread, axes = np.linalg.eigh(flat.T @ flat / len(flat))
    width = math.sqrt(12 * max(float(spread[0]), 0.0))  # of a strip, from its standard deviation
    across, down = abs(float(sight[:2] @ axes[:, 0])), float(sight[2])
    return (
        down >= STEEPEST * float(np.linalg.norm(sight))
        and width - depth_mm * across / down >= SEEN * width
    )


def _at(where: Array, chosen: Array) -> Array:
    """`where`, of whose True pixels only the chosen ones stay."""
    kept = np.zeros_like(where)
    kept[where] = chosen
    return kept


def _frame(rib: Array) -> tuple[Array, Array]:
    """(3, 3) whose columns are two tangents and the normal, away from the camera, of a robust
    plane; and which points lie near it.
    """
    weight = np.ones(len(rib))
    for _ in range(10):
        centre = np.average(rib, axis=0, weights=weight)
        _, axes = np.linalg.eigh((rib - centre).T @ ((rib - centre) * weight[:, None]))
        normal = axes[:, 0] if axes[2, 0] > 0 else -axes[:, 0]
        off = np.abs((rib - centre) @ normal)
        weight = 1 / np.maximum(
            off, 0.05 + np.median(off) / 10
        )  # towards the least sum of distances
    tangents = axes[:, 1:]
    return np.column_stack([tangents, normal]), off <= 6 * max(float(np.median(off)), 0.2)


def _around(rib: Array, floor: Array) -> bool:
    """Whether ribs lie on both sides: seen from the floor's middle, no gap between their directions
    comes near half a turn.
    """
    if np.count_nonzero(rib) < MIN_RIB:
        return False
    y, x = (axis.mean() for axis in np.nonzero(floor))
    rows, columns = np.nonzero(rib)
    angles = np.sort(np.arctan2(rows - y, columns - x))
    return float(np.diff(angles, append=angles[0] + 2 * math.pi).max()) < math.radians(150)


def _below(rib: Array, floor: Array) -> tuple[Array, float]:
    """(N,) mm that each floor point (N, 3) lies below the quadric through the ribs (M, 3), along
    its normal there; and the ribs' spread about it.

    Both in the patch's frame: two tangents, and the normal away from the camera.
    """
    scale = max(float(np.abs(rib[:, :2]).max()), 1e-9)
    a, b = (_terms(part[:, :2] / scale) for part in (rib, floor))
    weight = np.ones(len(rib))
    for _ in range(8):  # Tukey's biweight, from what a first fit leaves
        root = np.sqrt(weight)[:, None]
        c = np.linalg.lstsq(a * root, rib[:, 2] * root[:, 0], rcond=None)[0]
        off = rib[:, 2] - a @ c
        spread = max(1.4826 * float(np.median(np.abs(off))), 1e-6)
        weight = np.square(np.clip(1 - np.square(off / (4.685 * spread)), 0, None)) + 1e-9
    u, v = floor[:, 0] / scale, floor[:, 1] / scale
    slope = np.hypot(c[1] + 2 * c[3] * u + c[4] * v, c[2] + c[4] * u + 2 * c[5] * v) / scale
    return (floor[:, 2] - b @ c) / np.sqrt(1 + slope**2), spread


def _terms(uv: Array) -> Array:
    u, v = uv.T
    return np.column_stack([np.ones_like(u), u, v, u * u, u * v, v * v])
