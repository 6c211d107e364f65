"""The network of the completion stage: depth behind the holes of what a camera measured.

    network = CompletionNetwork().begin(seed)
    log_depth, log_spread = network(channels, guesses)      # (B, h, w) each

A small convolutional network (after U-Net, Ronneberger et al. 2015) on the maps of
completion_maps.py. It mixes the guesses, pixel by pixel, with weights that add up to 1, and adds a
correction. Its second output is how unsure it is: the natural logarithm of the mean absolute error
of log depth, in UNITs (the scale of a Laplace distribution, learned as its likelihood).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from depthdist.models.completion_maps import NUM_CHANNELS, NUM_GUESSES, UNIT
from depthdist.models.detail_network import UNet

SHRINK = 2  # the first scale's pixels are so many pixels of the maps a side
WIDTHS = (32, 64, 96, 96, 96)  # channels of each scale
# of the first weights; with the usual 2**0.5 it soon says the same for every pixel, and stays so
GAIN = 3**-0.5
LOG_SPREAD = (-6.0, 6.0)  # lowest and highest


class CompletionNetwork(UNet):
    """See the module's docstring.

    widths  channels of each scale: a half, a quarter, ... of the maps' size
    """

    def __init__(self, widths: tuple[int, ...] = WIDTHS):
        super().__init__(NUM_CHANNELS * SHRINK**2, widths, SHRINK**2 * (2 + NUM_GUESSES))

    def begin(self, seed: int) -> CompletionNetwork:
        """Draw the weights from `seed`; the guesses have one weight then, nothing is added."""
        self.draw(seed, lambda part: GAIN)
        return self

    def forward(self, channels: Tensor, guesses: Tensor) -> tuple[Tensor, Tensor]:
        """Return log depth in mm (B, h, w) and the logarithm of its mean error in UNITs (B, h, w).

        channels  (B, NUM_CHANNELS, h, w) float32
        guesses   (B, NUM_GUESSES, h, w) float32
        """
        height, width = guesses.shape[-2:]
        multiple = SHRINK * 2 ** (len(self.widths) - 1)
        x = F.pad(channels, (0, -width % multiple, 0, -height % multiple))
        out = F.pixel_shuffle(self.through_scales(F.pixel_unshuffle(x, SHRINK)), SHRINK)
        correction, spread, *mix = out[..., :height, :width].unbind(1)
        weights = torch.softmax(torch.stack(mix, 1), 1)
        log_depth = (weights * guesses.float()).sum(1) + UNIT * correction
        return log_depth, spread.clamp(*LOG_SPREAD)
