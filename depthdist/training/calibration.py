"""A calibrated start: scale and shift from the untrained model's output to the targets.

The pretrained model gives about 0..10, the targets lie at 0.06..0.2 behind a frozen head: two
numbers fitted to the training set bring them together (alignment of relative depth by least
squares: Eigen et al. 2014; Ranftl et al. 2020), before any step.

    line = fit_calibration(base, loader, depth_range, world)  # scale 0.021, shift 0.04
    base.rescale(line.scale, line.shift)
"""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

import torch
from tqdm import tqdm

from depthdist.data.loader import Loader
from depthdist.data.sample_order import evenly_spread
from depthdist.distributed.process_group import World, gather_from_all_ranks
from depthdist.geometry.depth_range import DepthRange, normalize_depth
from depthdist.models.depth_model import DepthModel

MAX_IMAGES = 256  # two numbers need no more


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

    Over all valid pixels, at the ground truth's own size, of at most MAX_IMAGES images, evenly
    spread; every image counts the same, as in the loss. The same on any number of ranks, to the
    last bit. The output of a fresh decoder says nothing yet: it is shifted alone. Every rank must
    call it. raises ValueError where no pixel is valid
    """
    means: list[list[float]] = []  # of an image: x, y, x x, x y, y y
    model.eval().to(world.device)
    samples = evenly_spread(loader.dataset.count("train"), MAX_IMAGES)
    batches = tqdm(
        loader.evaluate("train", 1, world.rank, world.size, samples),
        desc="calibrating",
        total=-(-len(samples) // world.size),
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
            products = torch.stack([x, y, x * x, x * y, y * y])  # (5, N)
            means.append(products.mean(1).tolist())
    of_all_images = [values for part in gather_from_all_ranks(means) for values in part]
    if not of_all_images:
        raise ValueError(f"--calibrate: none of {len(samples)} training samples has a valid pixel")
    # fsum rounds once: the order of the images, and so the number of ranks, does not matter
    mean = [math.fsum(values) / len(of_all_images) for values in zip(*of_all_images)]
    if not all(map(math.isfinite, mean)):
        raise ValueError(f"--model {model.name}: what the untrained model gives is not finite")
    return _shift(*mean) if model.fresh_decoder else _line(*mean)


def _shift(x: float, y: float, *_: float) -> Calibration:
    """Return the shift alone, where x says nothing of y."""
    return Calibration(1.0, y - x, 0.0)


def _line(x: float, y: float, xx: float, xy: float, yy: float) -> Calibration:
    """Return the least-squares line, given the means of x, y and their products."""
    if xx - x * x <= 1e-12 * xx:
        return _shift(x, y)
    scale = (xy - x * y) / (xx - x * x)
    explained = scale * (xy - x * y) / (yy - y * y) if yy > y * y else 0.0
    return Calibration(scale, y - scale * x, explained)
