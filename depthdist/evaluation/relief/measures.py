"""What is measured of one capture: grooves, painted treads, edges and errors of several maps.

    measured = measure_capture(folder, stem, {"plain": plain_mm, "detail": detail_mm})

The truth of grooves, painted treads and errors is the exact depth where the camera measured
something; that of edges is the camera's own depth, as in an evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from depthdist.evaluation.metrics.edges import step_metrics
from depthdist.evaluation.metrics.grooves import Groove, groove_depths, relief_depths
from depthdist.evaluation.relief.captures import CaptureTruth, read_truth

CAMERA = "camera"  # the row of the camera's own depth
STEPS_MM = (2.0, 4.0, 8.0, 16.0)
EDGES = tuple(f"edge_f1@{step:g}mm" for step in STEPS_MM)
NEAR_MM = 1500.0
Array = np.ndarray
GroovesByRow = dict[str, list[Groove]]  # depths (truth, row)


class MeasuredCapture(NamedTuple):
    """What was measured of one capture, by row.

    values  EDGES, rmse_mm and rmse_near_mm (of what is nearer than NEAR_MM); NaN without any pixel
    """

    grooves: GroovesByRow
    painted: GroovesByRow
    values: dict[str, dict[str, float]]


def measure_capture(folder: Path, stem: str, preds_mm: Mapping[str, Array]) -> MeasuredCapture:
    """Return what there is to measure of a capture of a folder, the camera's own depth included.

    preds_mm  predictions (H, W) mm by row
    """
    truth = read_truth(folder, stem)
    maps = _maps(truth, preds_mm)
    is_plain = truth.groove == 0  # a rib beside a painted groove is no real groove's floor
    return MeasuredCapture(
        _by_row(
            maps, groove_depths(truth.groove, truth.mask, truth.rays, *_with_truth(truth, maps))
        ),
        _by_row(
            maps,
            relief_depths(
                truth.painted, truth.mask & is_plain, truth.rays, *_with_truth(truth, maps)
            ),
        ),
        _errors_and_edges(truth, maps),
    )


def measure_grooves(folder: Path, stem: str, preds_mm: Mapping[str, Array]) -> GroovesByRow:
    """Return the grooves of a capture of a folder alone, the camera's own depth included."""
    truth = read_truth(folder, stem)
    maps = _maps(truth, preds_mm)
    found = groove_depths(truth.groove, truth.mask, truth.rays, *_with_truth(truth, maps))
    return _by_row(maps, found)


def _maps(truth: CaptureTruth, preds_mm: Mapping[str, Array]) -> dict[str, Array]:
    """Return all maps to measure, (H, W) float64 mm by row."""
    maps = {row: pred_mm.astype(np.float64) for row, pred_mm in preds_mm.items()}
    return {**maps, CAMERA: truth.camera_mm}


def _with_truth(truth: CaptureTruth, maps: Mapping[str, Array]) -> list[Array]:
    return [truth.exact_mm, *maps.values()]


def _by_row(maps: Mapping[str, Array], found: list[Groove]) -> GroovesByRow:
    """Return grooves with depths (truth, map) of each map, from those with the depths of all."""
    return {
        row: [replace(groove, depths=(groove.depths[0], groove.depths[k])) for groove in found]
        for k, row in enumerate(maps, start=1)
    }


def _errors_and_edges(
    truth: CaptureTruth, maps: Mapping[str, Array]
) -> dict[str, dict[str, float]]:
    mask = truth.mask
    is_near = mask & (truth.exact_mm < NEAR_MM)
    edges = step_metrics(list(maps.values()), truth.camera_mm, mask, STEPS_MM)
    return {
        row: {
            **{name: of_map[name] for name in EDGES},
            "rmse_mm": _rmse(z_mm[mask] - truth.exact_mm[mask]),
            "rmse_near_mm": _rmse(z_mm[is_near] - truth.exact_mm[is_near]),
        }
        for (row, z_mm), of_map in zip(maps.items(), edges)
    }


def _rmse(errors: Array) -> float:
    return float(np.sqrt(np.square(errors).mean())) if errors.size else float("nan")
