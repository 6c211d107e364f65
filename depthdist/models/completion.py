"""Depth for the pixels that a camera missed, and how sure it is.

    filled_mm = fill_depth(pred_mm, measured_mm)                    # without a trained stage
    filled = complete(completion, rgb, pred, pred_mm, measured_mm, bounds)

A trained completion stage lies in completion.safetensors and completion.json (stage_files.py); the
second holds a CompletionRecord.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from depthdist.geometry.depth_range import DepthRange
from depthdist.geometry.measured import is_measured
from depthdist.models.completion_maps import (
    UNIT,
    NetworkInputs,
    network_inputs,
    to_full_size,
    working_maps,
)
from depthdist.models.completion_network import CompletionNetwork
from depthdist.models.half_precision import best_dtype
from depthdist.models.harmonic_fill import fill_harmonic
from depthdist.models.seen_range import SeenRange
from depthdist.models.stage_files import find_stage, load_stage

NAME = "completion"
SILHOUETTE_MM = 25.0  # steps at a rim that are more than a surface's slope


@dataclass(frozen=True)
class CompletionRecord:
    """What a completion stage needs besides its weights, and how it was trained.

    adapter          SHA-256 of the adapter's weights whose predictions it completes
    widths           channels of the network's scales
    camera           height and width of the images that it was trained on, pixels
    step             optimizer steps
    eval_loss        loss on validation images, None without validation
    filled_sigma     sigma of filled pixels is this times the network's mean error; measured on
                     punched validation holes
    predicted_sigma  the same for images of which nothing is measured
    brightness       lowest and highest mean level of the training images, 0..255
    depth_mm         their lowest and highest measured depth (seen_range.py)
    """

    adapter: str
    widths: tuple[int, ...]
    camera: tuple[int, int]
    step: int
    eval_loss: float | None = None
    filled_sigma: float = 1.0
    predicted_sigma: float = 1.0
    brightness: tuple[float, ...] = ()
    depth_mm: tuple[float, ...] = ()

    @property
    def seen(self) -> SeenRange | None:
        """What the training images were like, None where that was not noted."""
        if len(self.brightness) != 2 or len(self.depth_mm) != 2:
            return None
        darkest, brightest = self.brightness
        nearest, farthest = self.depth_mm
        return SeenRange((darkest, brightest), (nearest, farthest))


@dataclass(frozen=True)
class Completion:
    """A completion stage, ready to fill."""

    network: CompletionNetwork
    record: CompletionRecord

    def to(self, device: torch.device) -> Completion:
        """Return a copy of the stage on a device."""
        return replace(self, network=deepcopy(self.network).to(device))


class Completed(NamedTuple):
    """Depth with its holes filled.

    depth_mm  (H, W) float32, measured pixels as they were
    sigma_mm  (H, W) float32, standard deviation of the error; 0 where measured
    """

    depth_mm: np.ndarray
    sigma_mm: np.ndarray


def load_completion(folder: Path) -> Completion | None:
    """Return the completion stage of a run or of an adapter's folder, None where there is none.

    raises ValueError: damaged, or trained on another adapter
    """
    adapter, stage = find_stage(folder, NAME)
    if not (stage / f"{NAME}.json").exists():
        return None
    return Completion(
        *load_stage(NAME, CompletionRecord, _build, stage, adapter, without=f"remove {stage}")
    )


def describe_filling(completion: Completion | None) -> str:
    """Return what fills holes, for a printed line."""
    if completion is None:
        return "the prediction, moved to what was measured at each hole's rim"
    return f"the completion stage, trained for {completion.record.step} steps"


def _build(record: CompletionRecord) -> CompletionNetwork:
    return CompletionNetwork(record.widths)


@torch.no_grad()
def run_network(completion: Completion, inputs: NetworkInputs) -> tuple[np.ndarray, np.ndarray]:
    """Return log depth in mm (h, w) and the mean error of log depth (h, w), as the network says."""
    network = completion.network
    device = next(network.parameters()).device
    dtype = best_dtype(device)
    channels, guesses = (torch.from_numpy(maps)[None].to(device) for maps in inputs)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        log_depth, spread = network(channels, guesses)
    return log_depth[0].cpu().numpy(), UNIT * spread[0].exp().cpu().numpy()


def complete(
    completion: Completion,
    rgb: np.ndarray,
    pred: Tensor,
    pred_mm: np.ndarray,
    measured_mm: np.ndarray | None,
    bounds: DepthRange,
) -> Completed:
    """Return depth whose holes are filled by the stage, or a prediction with how sure it is.

    rgb          (H, W, 3) uint8
    pred         (h, w) float32 normalized inverse depth of the whole image, the adapter's
    pred_mm      (H, W) float32 mm, that prediction at the image's size, refined or not
    measured_mm  (H, W) mm, NaN or 0 where nothing was measured; None, or nothing measured: the
                 depth stays `pred_mm`
    bounds       of the normalization
    """
    size = pred_mm.shape[0], pred_mm.shape[1]
    measured = np.zeros(size, bool) if measured_mm is None else is_measured(measured_mm)
    known_mm = np.zeros(size, np.float32)
    if measured_mm is not None:
        known_mm[measured] = measured_mm[measured]
    maps = working_maps(rgb, known_mm, pred, bounds)
    log_depth, error = run_network(completion, network_inputs(maps))
    record = completion.record
    if measured.any():
        better = pred_mm * np.exp(to_full_size(log_depth - maps.log_pred, size))
        depth_mm, scale = continue_from_rims(better, known_mm), record.filled_sigma
    else:
        depth_mm, scale = pred_mm, record.predicted_sigma
    sigma_mm = np.where(measured, 0.0, depth_mm * to_full_size(scale * error, size))
    return Completed(depth_mm, sigma_mm.astype(np.float32))


def continue_from_rims(filled_mm: np.ndarray, known_mm: np.ndarray) -> np.ndarray:
    """Return (H, W) float32 mm: what is known as it is, what is filled without steps at its rims.

    filled_mm  (H, W) mm, whose steps at rims are right where they are silhouettes
    known_mm   (H, W) float32 mm, 0 in holes

    A hole's outermost pixels get the depth of the known ones beside them, if that is less than
    SILHOUETTE_MM away; the correction, as a ratio, is carried inwards harmonically.
    """
    known = known_mm > 0
    sums = np.zeros(known.shape, np.float32)
    count = np.zeros(known.shape, np.uint8)
    for axis in (0, 1):
        to, source = (np.swapaxes(array, 0, axis) for array in (sums, known_mm))
        number, is_known = (np.swapaxes(array, 0, axis) for array in (count, known))
        for here, there in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
            to[here] += source[there]
            number[here] += is_known[there]
    rim = (count > 0) & ~known
    beside = sums[rim] / count[rim]
    ratios = np.zeros(known.shape)
    on_surface = np.abs(beside - filled_mm[rim]) < SILHOUETTE_MM
    ratios[rim] = np.where(on_surface, np.log(beside / filled_mm[rim]), 0.0)
    # what is known counts as 0 here, and no hole touches it but by its rim
    corrected = filled_mm * np.exp(fill_harmonic(ratios, known | rim))
    return np.where(known, known_mm, corrected).astype(np.float32)


def fill_depth(pred_mm: np.ndarray, measured_mm: np.ndarray) -> np.ndarray:
    """Return (H, W) float32 mm: what was measured as it is, elsewhere the prediction, moved to it.

    pred_mm      (H, W) mm, predicted
    measured_mm  (H, W) mm, NaN or 0 where nothing was measured

    log(measured / predicted) is carried into the holes harmonically from their rims, so that there
    is no step at a rim. Without any measured pixel it is the prediction.
    """
    measured = is_measured(measured_mm)
    if not measured.any():
        return pred_mm.astype(np.float32)
    pred = pred_mm.astype(np.float64)
    ratio = np.log(np.where(measured, measured_mm, 1.0) / pred)
    filled = pred * np.exp(fill_harmonic(ratio, measured))
    return np.where(measured, measured_mm, filled).astype(np.float32)
