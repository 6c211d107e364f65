"""A calibrated start: scale and shift from the untrained model's output to the targets.

The pretrained model gives about 0..10, the targets lie at 0.06..0.2 behind a frozen head: two
numbers fitted to the training set bring them together (alignment of relative depth by least
squares: Eigen et al. 2014; Ranftl et al. 2020), before any step.

    line = fit_calibration(base, loader, depth_range, world)  # scale 0.021, shift 0.04
    base.rescale(line.scale, line.shift)
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch
from tqdm import tqdm

from depthdist.data.loader import Loader
from depthdist.distributed.process_group import World, sum_over_ranks
from depthdist.geometry.depth_range import DepthRange, normalize_depth
from depthdist.models.depth_model import DepthModel


class Calibration(NamedTuple):
    """A line from the model's raw output to the target.

    scale      below 0 where the output grows with the distance
    explained  share of the targets' variance that the line explains, 0..1
    """

    scale: float
    shift: float
    explained: float


@torch.no_grad()
def fit_calibration(
    model: DepthModel, loader: Loader, depth_range: DepthRange, world: World
) -> Calibration:
    """Return the least-squares line from the raw output to the target over the training set.

    Over all valid pixels, at the ground truth's own size; every image counts the same, as in the
    loss. Every rank must call it. raises ValueError where the output is the same everywhere
    """
    # of images, x, y, x x, x y, y y
    sums = torch.zeros(6, dtype=torch.float64, device=world.device)
    model.eval().to(world.device)
    batches = tqdm(
        loader.evaluate("train", 1, world.rank, world.size),
        desc="calibrating",
        total=-(-loader.dataset.count("train") // world.size),
        unit="image",
        leave=False,
        disable=world.rank > 0 or not sys.stderr.isatty(),
    )
    for packed in batches:
        batch = packed.to(world.device)
        target, mask = normalize_depth(batch.depth_mm, depth_range, batch.mask)
        x = model.upsampled(model.raw(batch.rgb), target.shape[-2:])[mask].double()  # (N,)
        y = model.inverse_activation(target)[mask].double()
        if len(x) and float(batch.weight[0]):
            one = torch.ones((), dtype=torch.float64, device=x.device)
            means = [x.mean(), y.mean(), (x * x).mean(), (x * y).mean(), (y * y).mean()]
            sums += torch.stack([one, *means])
    num_images, *totals = sum_over_ranks(sums.tolist())
    if not num_images:
        raise ValueError("--calibrate: no training sample has a valid pixel")
    return _line(*(total / num_images for total in totals))


def _line(x: float, y: float, xx: float, xy: float, yy: float) -> Calibration:
    """Return the least-squares line, given the means of x, y and their products."""
    if xx - x * x <= 1e-12 * xx:
        raise ValueError(
            "--calibrate: the untrained model's output is the same everywhere: there is nothing to"
            " calibrate; leave --calibrate out"
        )
    scale = (xy - x * y) / (xx - x * x)
    explained = scale * (xy - x * y) / (yy - y * y) if yy > y * y else 0.0
    return Calibration(scale, y - scale * x, explained)
