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

A groove that is only painted on has no floor to be found: `relief_depths` measures what a map draws
under its label, which is all taken for floor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from depthdist.evaluation.metrics.registry import TREAD_LIMIT_MM, Metric, metrics_by_name
from depthdist.geometry.camera import points_from_depth

LEAST_SPREAD = 1e-12  # mm^2: depths that vary less are equal
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
            "groove_balanced_decision",
            "",
            "higher",
            "mean of two shares on the right side of the tread limit: among the grooves that are"
            " worn in truth, and among the good; chance is 0.5",
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
        "groove_balanced_decision": balanced_decision(g, p, limit_mm),
    }


def balanced_decision(truth_mm: Array, pred_mm: Array, limit_mm: float) -> float:
    """Return the mean of the shares decided right among worn and among good grooves (N,).

    A map without grooves calls all of them worn, and one with deep grooves all good: both get 0.5,
    however many are worn. NaN where only one kind is there.
    """
    is_right = (pred_mm < limit_mm) == (truth_mm < limit_mm)
    kinds = [is_right[truth_mm < limit_mm], is_right[truth_mm >= limit_mm]]
    return float(np.mean([kind.mean() if kind.size else math.nan for kind in kinds]))


def fit_depths(truth_mm: Array, pred_mm: Array) -> tuple[float, float]:
    """Return slope and correlation of predicted on true depths (N,), least squares.

    Depths that are not finite are left out. The slope is NaN where fewer than two different true
    depths are left, the correlation also where all predicted ones are equal.
    """
    known = np.isfinite(truth_mm) & np.isfinite(pred_mm)
    if np.count_nonzero(known) < 2:
        return math.nan, math.nan
    g = truth_mm[known] - truth_mm[known].mean()
    p = pred_mm[known] - pred_mm[known].mean()
    spread_g = float(g @ g)
    spread_p = float(p @ p)
    if spread_g <= LEAST_SPREAD * len(g):
        return math.nan, math.nan
    slope = float(g @ p) / spread_g
    if spread_p <= LEAST_SPREAD * len(g):
        return slope, math.nan
    return slope, float(g @ p) / math.sqrt(spread_g * spread_p)


def say_mean_depth(by_image: Mapping[str, Sequence[Groove]]) -> list[Groove]:
    """Return the grooves as one sees them who knows where they are and always says the mean depth.

    Every groove gets the mean true depth of the other images' grooves: what anybody scores who sees
    a pattern and no depth. Empty where no other image has grooves.

    by_image  depths (truth, ...);  returns depths (truth, that mean)
    """
    sums = {key: sum(g.depths[0] for g in grooves) for key, grooves in by_image.items()}
    total = sum(sums.values())
    num = sum(map(len, by_image.values()))
    found = []
    for key, grooves in by_image.items():
        num_others = num - len(grooves)
        if num_others:
            mean_mm = (total - sums[key]) / num_others
            found += [replace(groove, depths=(groove.depths[0], mean_mm)) for groove in grooves]
    return found


def summarize_grooves(grooves: list[Groove], limit_mm: float = TREAD_LIMIT_MM) -> dict[str, float]:
    """Return statistics of all grooves of all images together, depths (truth, prediction).

    grooves     how many there are
    bias_mm, mae_mm, found  as in GROOVE_METRICS, over grooves; NaN without any
    limit95_mm  95 % of the errors are smaller
    slope, correlation  of predicted on true depth, as in `fit_depths`: a map that draws every
                groove alike has a slope of 0
    balanced_decision  as in GROOVE_METRICS
    worn_as_worn, worn_as_good, good_as_worn, good_as_good  how many are worn (below the limit) or
                good in truth, and what the prediction takes them for
    """
    g, p = np.array([groove.depths for groove in grooves]).reshape(-1, 2).T
    off = p - g
    slope, correlation = fit_depths(g, p)
    found: dict[str, float] = {
        "grooves": len(grooves),
        "bias_mm": float(off.mean()) if len(g) else math.nan,
        "mae_mm": float(np.abs(off).mean()) if len(g) else math.nan,
        "limit95_mm": float(np.quantile(np.abs(off), 0.95)) if len(g) else math.nan,
        "found": float((p >= FOUND * g).mean()) if len(g) else math.nan,
        "slope": slope,
        "correlation": correlation,
        "balanced_decision": balanced_decision(g, p, limit_mm),
    }
    names = {True: "worn", False: "good"}
    for truth in (True, False):
        for pred in (True, False):
            agree = ((g < limit_mm) == truth) & ((p < limit_mm) == pred)
            found[f"{names[truth]}_as_{names[pred]}"] = int(np.count_nonzero(agree))
    return found


def summarize_mean_depth(
    by_image: Mapping[str, Sequence[Groove]], limit_mm: float = TREAD_LIMIT_MM
) -> dict[str, float]:
    """Return `summarize_grooves` of `say_mean_depth`, without slope and correlation.

    What an image's own grooves are left out of is less the deeper they are: a slope of the
    arithmetic, not of sight.
    """
    summary = summarize_grooves(say_mean_depth(by_image), limit_mm)
    return summary | {"slope": math.nan, "correlation": math.nan}


# ---------------------------------------------------------------------------------------- measuring


def groove_depths(labels: Array, mask: Array, rays: Array, *maps_mm: Array) -> list[Groove]:
    """Return every groove that can be measured, with its depth in each map; the first is the truth.

    mask  (H, W) bool: measured in truth;  rays  (H, W, 2) X / Z and Y / Z;  maps_mm  (H, W) each
    Left out are grooves less than MIN_WIDTH_PX wide, and patches without floor, or without ribs on
    both sides.
    """
    return _measure(labels, mask, rays, maps_mm, has_floor=True)


def relief_depths(labels: Array, mask: Array, rays: Array, *maps_mm: Array) -> list[Groove]:
    """Return the relief of each map under every label, for labels of what has none in the truth.

    All pixels under a label count as its floor: a groove that is painted on has depth 0 in the
    truth, and in a prediction what it draws there, negative where that stands out. Arguments as in
    `groove_depths`; labels that are narrow, or lack ribs on both sides, are left out alike.
    """
    return _measure(labels, mask, rays, maps_mm, has_floor=False)


def _measure(
    labels: Array, mask: Array, rays: Array, maps_mm: Sequence[Array], has_floor: bool
) -> list[Groove]:
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
            has_floor=has_floor,
        )
        depths = [depth for depth in patches if depth is not None]
        if depths:
            found.append(Groove(i, width, len(depths), tuple(np.median(depths, axis=0).tolist())))
    return found


def _patches(
    mine: Array,
    rib: Array,
    mask: Array,
    rays: Array,
    maps: list[Array],
    reach: int,
    has_floor: bool,
) -> Iterator[tuple[float, ...] | None]:
    """Yield the depths in each map, or None, of each patch along a groove."""
    floor = mine & mask
    for y, x in _anchors(mine, reach):
        near = tuple(slice(max(0, c - reach), c + reach + 1) for c in (y, x))
        yield _depths(floor[near], rib[near], rays[near], [z[near] for z in maps], has_floor)


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


def _depths(
    floor: Array, rib: Array, rays: Array, maps: list[Array], has_floor: bool
) -> tuple[float, ...] | None:
    """Return the depth of one patch in each map; None if it cannot be measured.

    has_floor  look for the deepest pixels in the truth; otherwise all of `floor` are
    """
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
            deep = _deep_pixels(below, floor) if has_floor else np.ones(len(below), bool)
            if np.count_nonzero(deep) < MIN_FLOOR or rough > ROUGH_MM:
                return None
            low, depth, high = np.quantile(below[deep], (0.25, 0.5, 0.75))
            is_level = not has_floor or high - low <= LEVEL * depth + 1.5 * rough
            if not is_level or not _floor_is_seen(inside, centre @ frame, depth):
                return None
        depths.append(float(np.median(below[deep])))
    return tuple(depths)


def _deep_pixels(below: Array, floor: Array) -> Array:
    """Return which of the pixels `floor` are a groove's floor and not its walls, (N,) bool.

    below  (N,) how far they lie below the ribs, mm
    """
    level = _smooth(below, floor)
    deep: Array = level > FLOOR_SHARE * np.quantile(level, FLOOR_QUANTILE)
    return deep


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
