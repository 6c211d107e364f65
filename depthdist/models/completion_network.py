"""The network of the completion stage: depth behind the holes of what a camera measured.

    network = CompletionNetwork().begin(seed)
    log_depth, log_spread = network(channels, guesses)      # (B, h, w) each

A small convolutional network (after U-Net, Ronneberger et al. 2015) on the maps of
completion_maps.py. It mixes the guesses, pixel by pixel, with weights that add up to 1, and adds a
correction. Its second output is how unsure it is: the natural logarithm of the mean absolute error
of log depth, in UNITs (the scale of a Laplace distribution, learned as its likelihood).
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depthdist.models.completion_maps import NUM_CHANNELS, NUM_GUESSES, UNIT
from depthdist.models.depth_model import Float32Conv2d
from depthdist.models.detail_network import Block, ChannelNorm

SHRINK = 2  # the first scale's pixels are so many pixels of the maps a side
WIDTHS = (32, 64, 96, 96, 96)  # channels of each scale
# of the first weights; with the usual 2**0.5 it soon says the same for every pixel, and stays so
GAIN = 3**-0.5
LOG_SPREAD = (-6.0, 6.0)  # lowest and highest


class CompletionNetwork(nn.Module):
    """See the module's docstring.

    widths  channels of each scale: a half, a quarter, ... of the maps' size
    """

    def __init__(self, widths: tuple[int, ...] = WIDTHS):
        super().__init__()
        self.widths = tuple(widths)
        pairs = list(pairwise(widths))
        self.stem = nn.Conv2d(NUM_CHANNELS * SHRINK**2, widths[0], 3, padding=1)
        self.down = nn.ModuleList(Block(width) for width in widths)
        self.shrink = nn.ModuleList(nn.Conv2d(fine, wide, 2, stride=2) for fine, wide in pairs)
        self.grow = nn.ModuleList(nn.Conv2d(wide, fine, 1) for fine, wide in pairs)
        self.up = nn.ModuleList(Block(width) for width in widths[:-1])
        self.norm = ChannelNorm(widths[0])
        self.head = Float32Conv2d(widths[0], SHRINK**2 * (2 + NUM_GUESSES), 3, padding=1)

    def begin(self, seed: int) -> CompletionNetwork:
        """Draw the weights from `seed`; the guesses have one weight then, nothing is added."""
        generator = torch.Generator().manual_seed(seed)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                fan_in = part.weight[0].numel()
                with torch.no_grad():
                    part.weight.normal_(0.0, GAIN * fan_in**-0.5, generator=generator)
                nn.init.zeros_(cast(Tensor, part.bias))
        nn.init.zeros_(self.head.weight)
        return self

    def forward(self, channels: Tensor, guesses: Tensor) -> tuple[Tensor, Tensor]:
        """Return log depth in mm (B, h, w) and the logarithm of its mean error in UNITs (B, h, w).

        channels  (B, NUM_CHANNELS, h, w) float32
        guesses   (B, NUM_GUESSES, h, w) float32
        """
        height, width = guesses.shape[-2:]
        multiple = SHRINK * 2 ** (len(self.widths) - 1)
        x = F.pad(channels, (0, -width % multiple, 0, -height % multiple))
        x = self.stem(F.pixel_unshuffle(x, SHRINK))
        kept = []
        for block, shrink in zip(self.down, self.shrink):
            x = block(x)
            kept.append(x)
            x = shrink(x)
        x = self.down[-1](x)
        for block, grow in zip(reversed(list(self.up)), reversed(list(self.grow))):
            x = block(kept.pop() + F.interpolate(grow(x), scale_factor=2.0, mode="nearest"))
        with torch.autocast(x.device.type, enabled=False):
            out = F.pixel_shuffle(self.head(F.relu(self.norm(x.float()))), SHRINK)
            correction, spread, *mix = out[..., :height, :width].unbind(1)
            weights = torch.softmax(torch.stack(mix, 1), 1)
            log_depth = (weights * guesses.float()).sum(1) + UNIT * correction
            return log_depth, spread.clamp(*LOG_SPREAD)
