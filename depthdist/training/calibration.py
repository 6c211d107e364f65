"""A calibrated start: the scale and shift between what the untrained model says and what it should
say, in closed form.

The pretrained model gives about 0..10, the targets lie at 0.06..0.2 behind a frozen head: two
numbers fitted to the training set bring them together (alignment of relative depth by least
squares: Eigen et al. 2014; Ranftl et al. 2020), before any step.

    line = fit(base, loader, bounds, world)        # Line(scale=0.021, shift=0.04, explained=0.8)
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
    """What the model's raw output is multiplied by (below 0 where it grows with the distance), and
    what is added.

    explained  share of the targets' variance that is gone then, 0..1
    """

    scale: float
    shift: float
    explained: float


@torch.no_grad()
def fit_calibration(
    model: DepthModel, loader: Loader, bounds: DepthRange, world: World
) -> Calibration:
    """The least-squares line from the model's raw output to the target, over all valid pixels of
    the training set.

    At the truth's own size; every image counts the same, as in the loss. Every rank must call it.
    raises ValueError where the output is the same everywhere
    """
    sums = torch.zeros(
        6, dtype=torch.float64, device=world.device
    )  # of images, x, y, x x, x y, y y
    model.eval().to(world.device)
    batches = loader.evaluate("train", 1, world.rank, world.size)
    total = -(-loader.dataset.count("train") // world.size)
    for packed in tqdm(
        batches,
        desc="calibrating",
        total=total,
        unit="image",
        leave=False,
        disable=world.rank > 0 or not sys.stderr.isatty(),
    ):
        batch = packed.to(world.device)
        target, mask = normalize_depth(batch.depth_mm, bounds, batch.mask)
        x = model.upsampled(model.raw(batch.rgb), target.shape[-2:])[mask].double()
        y = model.inverse_activation(target)[mask].double()
        if len(x) and float(batch.weight[0]):
            sums += torch.stack(
                [
                    torch.ones((), dtype=torch.float64, device=x.device),
                    x.mean(),
                    y.mean(),
                    (x * x).mean(),
                    (x * y).mean(),
                    (y * y).mean(),
                ]
            )
    n, *totals = sum_over_ranks(sums.tolist())
    if not n:
        raise ValueError("--calibrate: no training sample has a valid pixel")
    x, y, xx, xy, yy = (total / n for total in totals)
    if xx - x * x <= 1e-12 * xx:
        raise ValueError(
            "--calibrate: the untrained model's output is the same everywhere: there is nothing to"
            " calibrate; leave --calibrate out"
        )
    scale = (xy - x * y) / (xx - x * x)
    return Calibration(
        scale, y - scale * x, scale * (xy - x * y) / (yy - y * y) if yy > y * y else 0.0
    )
