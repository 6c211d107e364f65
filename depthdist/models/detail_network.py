"""The network of the detail stage: relief and contours from the image at its full size.

    network = DetailNetwork()
    log_depth = network(rgb, coarse_log)    # (B, H, W, 3) uint8, (B, H, W) -> (B, H, W)

A small convolutional network of four scales (after U-Net, Ronneberger et al. 2015) on the image and
the coarse depth; it is fully convolutional, so it is trained on crops and used on whole images. It
begins at a residual of 0. Each pixel's channels are normalized by themselves (Ba et al. 2016), so
nothing depends on what else is in a batch. Rubber is dark, and a groove is little darker: the image
enters as a logarithm, less its mean around.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depthdist.models.depth_model import Float32Conv2d

SHRINK = 4  # the first scale's pixels are so many image pixels a side
MULTIPLE = 32  # image pixels of the last scale's pixels: sides are padded to a multiple
UNIT = 0.005  # the residual's unit: natural logarithm of depth
WIDTHS = (48, 64, 96, 96)  # channels of each scale
LOG_FLOOR = 0.02  # added to the image, 0..1, before the logarithm
# rough mean and spread of log(image + LOG_FLOOR), and of log(depth in mm)
LOG_IMAGE = (-1.6, 0.8)
LOG_DEPTH = (7.3, 0.3)
WINDOW = 17  # of the first scale's pixels a side: grooves are seen against what is around them
CONTRAST = 5.0  # what a groove's contrast is multiplied by
MOST = 3.0  # of an input: edges of light and depth are much larger than relief
SLOPE_SPREAD = 0.01  # of log depth from one of the first scale's pixels to the next


class ChannelNorm(nn.Module):
    """Normalize the channels of each pixel of (B, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) with mean 0 and variance 1 over C, scaled and shifted."""
        channels_last = x.permute(0, 2, 3, 1)
        shape = (x.shape[1],)
        return F.layer_norm(channels_last, shape, self.weight, self.bias).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Two convolutions whose result is added to their input."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        return x + self.conv2(F.relu(self.conv1(self.norm(x))))


def _window_mean(image: Tensor) -> Tensor:
    """Return the means of (B, C, H, W) over WINDOW x WINDOW pixels, cut at the border."""
    for window in ((WINDOW, 1), (1, WINDOW)):
        padding = (window[0] // 2, window[1] // 2)
        image = F.avg_pool2d(image, window, 1, padding, count_include_pad=False)
    return image


class UNet(nn.Module):
    """Scales down and up again (Ronneberger et al. 2015); its last layer is float32.

    inputs   channels of the first convolution's input
    widths   channels of each scale, each half as large as the one before
    outputs  channels of the last convolution
    """

    def __init__(self, inputs: int, widths: tuple[int, ...], outputs: int):
        super().__init__()
        self.widths = tuple(widths)
        pairs = list(pairwise(widths))
        self.stem = nn.Conv2d(inputs, widths[0], 3, padding=1)
        self.down = nn.ModuleList(Block(width) for width in widths)
        self.shrink = nn.ModuleList(nn.Conv2d(fine, wide, 2, stride=2) for fine, wide in pairs)
        self.grow = nn.ModuleList(nn.Conv2d(wide, fine, 1) for fine, wide in pairs)
        self.up = nn.ModuleList(Block(width) for width in widths[:-1])
        self.norm = ChannelNorm(widths[0])
        # in bf16 its 8 bits would round a correction of 150 mm to 1 mm
        self.head = Float32Conv2d(widths[0], outputs, 3, padding=1)

    def draw(self, seed: int, gain: Callable[[nn.Conv2d], float]) -> None:
        """Draw the weights from `seed`, those of the last convolution are 0.

        gain  standard deviation of a convolution's weights, times the root of its inputs
        """
        generator = torch.Generator().manual_seed(seed)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                fan_in = part.weight[0].numel()
                with torch.no_grad():
                    part.weight.normal_(0.0, gain(part) * fan_in**-0.5, generator=generator)
                nn.init.zeros_(cast(Tensor, part.bias))
        nn.init.zeros_(self.head.weight)

    def through_scales(self, x: Tensor) -> Tensor:
        """Return (B, outputs, h, w) float32 of (B, inputs, h, w)."""
        x = self.stem(x)
        kept = []
        for block, shrink in zip(self.down, self.shrink):
            x = block(x)
            kept.append(x)
            x = shrink(x)
        x = self.down[-1](x)
        for block, grow in zip(reversed(list(self.up)), reversed(list(self.grow))):
            x = block(kept.pop() + F.interpolate(grow(x), scale_factor=2.0, mode="nearest"))
        with torch.autocast(x.device.type, enabled=False):
            return cast(Tensor, self.head(F.relu(self.norm(x.float()))))


class DetailNetwork(UNet):
    """See the module's docstring.

    widths  channels of each scale: a quarter, an eighth, ... of the image's size
    """

    brightness: Tensor  # (256,) what each of the image's levels is to the network

    def __init__(self, widths: tuple[int, ...] = WIDTHS):
        super().__init__(3 * SHRINK**2 + 3 + 3, widths, SHRINK**2)
        mean, spread = LOG_IMAGE
        levels = torch.arange(256) / 255
        brightness = ((levels + LOG_FLOOR).log() - mean) / spread
        self.register_buffer("brightness", brightness, persistent=False)

    def begin(self, seed: int) -> DetailNetwork:
        """Draw the weights from `seed`; the residual is 0 everywhere then."""

        def gain(part: nn.Conv2d) -> float:
            return 2**0.5 if part.kernel_size == (3, 3) and part is not self.stem else 1.0

        self.draw(seed, gain)
        return self

    def inputs(self, rgb: Tensor, log_depth: Tensor) -> Tensor:
        """Return what the first convolution gets, (B, 54, H/4, W/4), in its precision.

        The image's logarithm less its mean around, 4 x 4 pixels as channels; that mean; the
        coarse depth's logarithm, and its two slopes.
        """
        device = rgb.device.type
        dtype = self.stem.weight.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        batch, height, width, colors = rgb.shape
        tiles = rgb.view(batch, height // SHRINK, SHRINK, width // SHRINK, SHRINK, colors)
        levels = tiles.permute(0, 1, 3, 5, 2, 4).flatten(4)  # (B, H/4, W/4, 3, 16)
        light = self.brightness.index_select(0, levels.flatten().int()).view(levels.shape)
        around = _window_mean(light.mean(4).permute(0, 3, 1, 2).contiguous()).permute(0, 2, 3, 1)
        contrast = (light - around.unsqueeze(4)).mul_(CONTRAST).clamp_(-MOST, MOST)
        right = F.pad(log_depth[..., 1:] - log_depth[..., :-1], (0, 1))
        down = F.pad(log_depth[..., 1:, :] - log_depth[..., :-1, :], (0, 0, 0, 1))
        mean, spread = LOG_DEPTH
        slopes = (slope.div(SLOPE_SPREAD).clamp(-MOST, MOST) for slope in (right, down))
        depth = torch.stack([(log_depth - mean) / spread, *slopes], -1)
        parts = [contrast.flatten(3), around, depth]
        return torch.cat([part.to(dtype) for part in parts], -1).permute(0, 3, 1, 2)

    def forward(self, rgb: Tensor, coarse_log: Tensor) -> Tensor:
        """Return the natural logarithm of the refined depth in mm, (B, H, W) float32.

        rgb         (B, H, W, 3) uint8
        coarse_log  (B, H, W) float32, natural logarithm of the coarse depth in mm
        """
        height, width = rgb.shape[1:3]
        below, right = (-side % MULTIPLE for side in (height, width))
        quarter = F.avg_pool2d(coarse_log, SHRINK, ceil_mode=True)
        quarter = F.pad(quarter, (0, right // SHRINK, 0, below // SHRINK), mode="replicate")
        residual = self.residual(F.pad(rgb, (0, 0, 0, right, 0, below)), quarter)
        return torch.add(coarse_log, residual[:, :height, :width], alpha=UNIT)

    def residual(self, rgb: Tensor, log_depth: Tensor) -> Tensor:
        """Return the residual (B, H, W) float32 of log depth, in UNITs.

        rgb        (B, H, W, 3) uint8, H and W multiples of MULTIPLE
        log_depth  (B, H/4, W/4) float32, natural logarithm of the coarse depth in mm
        """
        fine = self.through_scales(self.inputs(rgb, log_depth))  # (B, 16, H/4, W/4)
        return F.pixel_shuffle(fine, SHRINK).squeeze(1)
