"""Check that a point map is what one camera sees: rays in the image's order, in the camera's frame.

    problem = find_view_problem(xyz)  # None, or ViewProblem(text, sure)

In the view of any camera X / Z grows smoothly from left to right and Y / Z from top to bottom,
whatever the scene. What does not is named as what it looks like: a world frame, a mirrored or
transposed map, swapped axes, an array reshaped in the wrong order.

Costs a few milliseconds, whatever the size of the map: a few thousand points are looked at.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
NUM_POINTS = 2000  # that are looked at
MIN_POINTS = 100  # below it nothing is said
MIN_EXTENT = 0.1  # of the image's height and width, that the points must cover
MIN_FIELD = 1e-6  # change of a ratio over the image's width, below which it is the same everywhere
DEGREE = 3  # of the polynomials that rays follow: a lens with distortion
LENS_SHARE = 0.005  # of the image's width, or LENS_PX: rays this near to a polynomial are a lens's
LENS_PX = 2.0
NOT_A_CAMERA_SHARE = 0.1  # of the image's width: farther off is no camera's view, surely
FITTED = 0.9  # share of the points that a fit follows: the rest may be noise
EXPLAINED = 0.98  # share of the points that it must explain: flying pixels lie on their rays too
TURNED = 0.3  # tangent of the angle between X and the image's rows from which on it is said
NEAR_SHARE = 0.1  # of the points' distance: a center this near is that of a camera beside this one
AXES = "XYZ"


class ViewProblem(NamedTuple):
    """What a point map looks like that is not in its camera's frame, and whether that is sure."""

    text: str
    sure: bool


class _Points(NamedTuple):
    """Measured points of a map, and where they are in it."""

    xyz: Array  # (N, 3) float64
    columns: Array  # (N,) pixels, centers at .5
    rows: Array
    size: tuple[int, int]


class _Slopes(NamedTuple):
    """How a ratio of coordinates changes over the image: per pixel to the right, and down."""

    right: float
    down: float
    residual_px: float  # distance from the smooth surface that most points keep within


def find_view_problem(xyz: Array) -> ViewProblem | None:
    """Return what is wrong with the frame or the order of a point map, None if nothing is.

    xyz  (H, W, 3) float, not finite or 0 where nothing was measured

    None also where there are too few points to tell (fewer than MIN_POINTS, or in one corner).
    """
    points = _sample(xyz)
    if points is None:
        return None
    rays = _rays(points, depth_axis=2)
    if rays is not None and _are_smooth(rays, points):
        return _orientation_problem(rays)
    return (
        _other_order(xyz)
        or _other_depth_axis(points)
        or _world_frame(points)
        or _no_camera(rays, points)
    )


def _sample(xyz: Array) -> _Points | None:
    """Return up to NUM_POINTS measured points, None where they are too few or in one corner."""
    height, width = xyz.shape[:2]
    stride = max(1, int(np.sqrt(height * width / (20 * NUM_POINTS))))
    grid = xyz[::stride, ::stride].astype(np.float64)
    rows, columns = np.nonzero(np.isfinite(grid).all(axis=2) & (grid[..., 2] != 0))
    if len(rows) > NUM_POINTS:
        chosen = np.arange(NUM_POINTS) * len(rows) // NUM_POINTS
        rows, columns = rows[chosen], columns[chosen]
    if (
        len(rows) < MIN_POINTS
        or np.ptp(rows) * stride < MIN_EXTENT * height
        or np.ptp(columns) * stride < MIN_EXTENT * width
    ):
        return None
    return _Points(
        xyz=grid[rows, columns],
        columns=columns * stride + 0.5,
        rows=rows * stride + 0.5,
        size=(height, width),
    )


# ------------------------------------------------------------------------------------ smooth lenses


def _rays(points: _Points, depth_axis: int) -> tuple[_Slopes, _Slopes] | None:
    """Return the slopes of the two other coordinates divided by that of `depth_axis`."""
    across = [axis for axis in range(3) if axis != depth_axis]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratios = [points.xyz[:, axis] / points.xyz[:, depth_axis] for axis in across]
    first, second = (_fit_slopes(ratio, points) for ratio in ratios)
    return (first, second) if first and second else None


def _fit_slopes(ratio: Array, points: _Points) -> _Slopes | None:
    """Fit a smooth surface over the image to `ratio` (N,), None where it is the same everywhere."""
    height, width = points.size
    x = 2 * points.columns / width - 1
    y = 2 * points.rows / height - 1
    terms = [x**i * y**j for i in range(DEGREE + 1) for j in range(DEGREE + 1 - i)]
    basis = np.stack(terms, axis=1)  # (N, 10)
    kept = np.isfinite(ratio)
    if kept.sum() < MIN_POINTS:
        return None
    low, high = np.percentile(ratio[kept], (2, 98))
    margin = (high - low) / 2
    kept &= (ratio >= low - margin) & (ratio <= high + margin)
    for _ in range(3):  # without the points that the surface explains worst
        coefficients = _least_squares(basis[kept], ratio[kept])
        surface = np.einsum("np,p->n", basis, coefficients)
        error = np.abs(surface - np.nan_to_num(ratio, nan=np.inf, posinf=np.inf, neginf=np.inf))
        kept = error <= np.quantile(error, FITTED, method="lower")
        if kept.sum() < len(coefficients):
            return None
    plane = np.stack([points.columns, points.rows, np.ones(len(ratio))], axis=1)  # (N, 3)
    right, down, _ = map(float, _least_squares(plane, surface))
    steepest = max(abs(right), abs(down))
    if not steepest * width > MIN_FIELD:
        return None
    return _Slopes(right, down, float(np.quantile(error, EXPLAINED, method="lower")) / steepest)


def _least_squares(terms: Array, values: Array) -> Array:
    """Return the coefficients (P,) of terms (N, P) that fit values (N,) best.

    By normal equations, without BLAS: its threads would get in the way of other processes that
    shard, and its sums differ from machine to machine.
    """
    normal = np.einsum("np,nq->pq", terms, terms)
    ridge = 1e-12 * np.trace(normal) * np.eye(len(normal))  # where the points do not determine all
    return np.linalg.solve(normal + ridge, np.einsum("np,n->p", terms, values))


def _are_smooth(rays: tuple[_Slopes, _Slopes], points: _Points) -> bool:
    return all(slopes.residual_px <= _limit_px(points) for slopes in rays)


def _limit_px(points: _Points) -> float:
    """Return how far from a camera's model pixels may be."""
    return max(LENS_PX, LENS_SHARE * points.size[1])


def _orientation_problem(rays: tuple[_Slopes, _Slopes]) -> ViewProblem | None:
    """Return how X and Y run if not to the right and down."""
    x, y = rays
    if abs(x.down) > abs(x.right) and abs(y.right) > abs(y.down):
        x_runs = "down" if x.down > 0 else "up"
        y_runs = "to the right" if y.right > 0 else "to the left"
        return ViewProblem(
            f"looks transposed, turned by 90 degrees, or X and Y are swapped: X runs {x_runs} and Y"
            f" {y_runs}; expected X to the right and Y down",
            sure=True,
        )
    if x.right < 0 and y.down < 0:
        return ViewProblem(
            "looks turned by 180 degrees: X runs to the left and Y up; expected X to the right and"
            " Y down",
            sure=True,
        )
    if x.right < 0:
        return ViewProblem(
            "looks mirrored: X runs to the left; expected X to the right of the image", sure=True
        )
    if y.down < 0:
        return ViewProblem(
            "looks like a frame with Y up, or a map that is upside down: Y runs up; expected Y"
            " down the image",
            sure=True,
        )
    tangent = max(abs(x.down / x.right), abs(y.right / y.down))
    if tangent <= TURNED:
        return None
    degrees = np.degrees(np.arctan(tangent))
    return ViewProblem(
        f"X and Y are turned by {degrees:.0f} degrees against the image's rows and columns", False
    )


# ------------------------------------------------------------------------------- what it is instead


def _other_order(xyz: Array) -> ViewProblem | None:
    """Return the order of numbers in which the map is a camera's view, if it is in one."""
    height, width = xyz.shape[:2]
    flat = np.ascontiguousarray(xyz).reshape(-1)
    orders = {
        "points column by column in an array that was filled row by row": (
            flat.reshape(width, height, 3).transpose(1, 0, 2)
        ),
        "points row by row in an array that was filled column by column": (
            np.ascontiguousarray(xyz.transpose(1, 0, 2)).reshape(height, width, 3)
        ),
        "a (3, H, W) array that was reshaped; expected it transposed to (H, W, 3)": (
            flat.reshape(3, height, width).transpose(1, 2, 0)
        ),
        "a (3, W, H) array that was reshaped; expected it transposed to (H, W, 3)": (
            flat.reshape(3, width, height).transpose(2, 1, 0)
        ),
    }
    for text, ordered in orders.items():
        points = _sample(ordered)
        rays = _rays(points, depth_axis=2) if points else None
        if points and rays and _are_smooth(rays, points):
            return ViewProblem(f"looks scrambled: {text}", sure=True)
    return None


def _other_depth_axis(points: _Points) -> ViewProblem | None:
    """Return which axes point where, if X or Y is the depth."""
    for axis in (0, 1):
        rays = _rays(points, axis)
        if rays is None or not _are_smooth(rays, points):
            continue
        forward = float(np.median(points.xyz[:, axis]))
        across = [other for other in range(3) if other != axis]
        names = [f"{'-' if forward < 0 else '+'}{AXES[axis]} away from the lens"]
        for other, slopes in zip(across, rays):
            turns = abs(slopes.down) > abs(slopes.right)
            slope = (slopes.down if turns else slopes.right) * np.sign(forward)
            names.append(f"{'+' if slope > 0 else '-'}{AXES[other]} {'down' if turns else 'right'}")
        return ViewProblem(
            f"axes look swapped: {', '.join(names)}; expected +Z away from the lens, +X right, +Y"
            " down",
            sure=True,
        )
    return None


def _world_frame(points: _Points) -> ViewProblem | None:
    """Return where the camera stands in the points' frame, if one camera explains all pixels."""
    center = _camera_center(points)
    if center is None:
        return None
    x, y, z = (f"{value + 0.0:.0f}" for value in np.round(center))
    distance = np.median(np.linalg.norm(points.xyz - center, axis=1))
    if np.linalg.norm(center) < NEAR_SHARE * distance:
        return ViewProblem(
            f"looks like the frame of another camera: the points are seen from ({x}, {y}, {z});"
            " expected the camera that took the image at (0, 0, 0)",
            sure=False,
        )
    return ViewProblem(
        f"looks like a world frame: the points are seen from ({x}, {y}, {z}); expected the camera"
        " at (0, 0, 0) and +Z away from it",
        sure=True,
    )


def _camera_center(points: _Points) -> Array | None:
    """Return the center (3,) of the camera that projects the points to their pixels.

    None where none does. Direct linear transformation (Hartley and Zisserman 2003, 7.1) without
    the points that it explains worst.
    """
    xyz, scale, offset = _standardized(points.xyz)
    pixels, pixel_scale, _ = _standardized(np.stack([points.columns, points.rows], axis=1))
    homogeneous = np.column_stack([xyz, np.ones(len(xyz))])  # (N, 4)
    none = np.zeros_like(homogeneous)
    equations = np.stack(
        [
            np.column_stack([homogeneous, none, -pixels[:, :1] * homogeneous]),
            np.column_stack([none, homogeneous, -pixels[:, 1:] * homogeneous]),
        ],
        axis=1,
    )  # (N, 2, 12)
    kept = np.ones(len(xyz), bool)
    for _ in range(3):
        rows = equations[kept].reshape(-1, 12)
        normal = np.einsum("np,nq->pq", rows, rows)
        matrix = np.linalg.eigh(normal)[1][:, 0].reshape(3, 4)
        projected = np.einsum("np,qp->nq", homogeneous, matrix)  # (N, 3)
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.linalg.norm(projected[:, :2] / projected[:, 2:] - pixels, axis=1)
        error = np.nan_to_num(error, nan=np.inf) * pixel_scale
        kept = error <= np.quantile(error, FITTED, method="lower")
    if np.quantile(error, EXPLAINED, method="lower") > _limit_px(points):
        return None
    center = np.linalg.svd(matrix)[2][-1]
    if abs(center[3]) < 1e-9:
        return None
    return center[:3] / center[3] * scale + offset


def _standardized(values: Array) -> tuple[Array, float, Array]:
    """Return values (N, K) around 0 with standard deviation 1, and their scale and offset."""
    offset = np.median(values, axis=0)
    scale = float(np.median(np.abs(values - offset))) * 2 or 1.0
    return (values - offset) / scale, scale, offset


def _no_camera(rays: tuple[_Slopes, _Slopes] | None, points: _Points) -> ViewProblem:
    width = points.size[1]
    off_px = max(slopes.residual_px for slopes in rays) if rays else np.inf
    sure = off_px > NOT_A_CAMERA_SHARE * width
    if sure:
        return ViewProblem(
            "is no camera's view: X / Z and Y / Z do not run smoothly over the image; expected"
            " points in the camera's frame, in the order of the image's pixels",
            sure,
        )
    return ViewProblem(
        f"X / Z and Y / Z are off by {off_px:.0f} pixels from any smooth lens; expected the view"
        " of the camera that took the image",
        sure,
    )
