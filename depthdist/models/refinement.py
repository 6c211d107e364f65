"""Predictions at the image's full size that are sharper than plain upsampling.

    # (H, W) normalized inverse depth, H and W of the image
    target = refine_by_guided_filter(pred, image)

`guided` fits the coarse prediction, window by window, as a
linear function of the image's brightness and evaluates it at full size (guided filter, He et al.
2010; He & Sun 2015): edges of depth move onto edges of the image. `tiles` also shows the network
overlapping tiles of the image, each resized as the whole image was. A tile's prediction is fitted
to that of the whole image by one scale and shift and blended smoothly, so that no seam is visible;
of the result only fine detail is used, because a tile alone does not show its surroundings.
`average_with_mirror` averages the predictions for an image and its mirror image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from depthdist.geometry.image_resizing import resize_rgb
from depthdist.geometry.resampling import upsample

# chosen on training captures: RMSE, and F1 of edges of 4 to 32 mm
RADIUS = 2  # of the guided filter's window, in pixels of the network's input
EPS = 1e-3  # variance of brightness (0..1) below which a window counts as flat
OVERLAP = 0.25  # share of a tile that its neighbor covers too
FINE = 8  # radius of the windows whose means tiles do not change, in pixels of the network's input
Network = Callable[[Tensor], Tensor]  # images (B, h, w, 3) uint8 -> (B, h, w) float32


def average_with_mirror(network: Network) -> Network:
    """Return `network` averaged with its prediction for the mirror image."""
    return lambda rgb: (network(rgb) + network(rgb.flip(2)).flip(2)) / 2


def refine_by_guided_filter(pred: Tensor, image: Tensor) -> Tensor:
    """Return `pred` (h, w) at the size of `image` (H, W, 3) uint8, with the image's edges.

    In each window of the small size pred = a * brightness + b; the mean a and b of a pixel's
    windows are upsampled.
    """
    to_brightness = image.new_tensor([0.299, 0.587, 0.114], dtype=torch.float32)
    light = image.float() @ to_brightness / 255  # (H, W)
    small = F.interpolate(
        light[None, None], size=pred.shape, mode="bicubic", antialias=True, align_corners=False
    )[0, 0]  # (h, w)
    mean_light = _window_mean(small, RADIUS)
    mean_pred = _window_mean(pred, RADIUS)
    covariance = _window_mean(small * pred, RADIUS) - mean_light * mean_pred
    variance = _window_mean(small * small, RADIUS) - mean_light * mean_light
    a = covariance / (variance + EPS)
    b = _window_mean(mean_pred - a * mean_light, RADIUS)
    a = _window_mean(a, RADIUS)
    size = (light.shape[0], light.shape[1])
    return upsample(a[None], size, "bilinear")[0] * light + upsample(b[None], size, "bilinear")[0]


def _window_mean(values: Tensor, radius: int) -> Tensor:
    """Return the (h, w) means over windows of 2 radius + 1 pixels, cut at the border."""
    for window in ((2 * radius + 1, 1), (1, 2 * radius + 1)):
        values = F.avg_pool2d(
            values[None, None],
            window,
            stride=1,
            padding=(window[0] // 2, window[1] // 2),
            count_include_pad=False,
        )[0, 0]
    return values


def tile_starts(length: int, tile: int) -> list[int]:
    """Return where tiles of `tile` begin that cover `length` evenly, overlapping by >= OVERLAP."""
    if length <= tile:
        return [0]
    num = -(-(length - tile) // max(1, int(tile * (1 - OVERLAP)))) + 1
    return [round(i * (length - tile) / (num - 1)) for i in range(num)]


def refine_by_tiles(
    network: Network, whole: Tensor, image: Tensor, size: tuple[int, int]
) -> Tensor:
    """Return `whole` (H, W) with detail from tiles of `image` (H, W, 3) uint8, each seen at `size`.

    Each tile's prediction is fitted to `whole` by scale and shift, with a weight that falls to 0 at
    the tile's border. Means over windows of FINE stay those of `whole`. Returns `whole` if the
    image is no larger than `size`.
    """
    height, width = image.shape[:2]
    if height <= size[0] and width <= size[1]:
        return whole
    tile = (min(size[0], height), min(size[1], width))
    fade = _fade(tile, whole.device)
    total = torch.zeros_like(whole)
    weight = torch.zeros_like(whole)
    for top in tile_starts(height, tile[0]):
        for left in tile_starts(width, tile[1]):
            here = slice(top, top + tile[0]), slice(left, left + tile[1])
            rgb = torch.from_numpy(resize_rgb(image[here].cpu().numpy(), size)).to(image.device)
            pred = upsample(network(rgb[None]), tile)[0]
            total[here] += fade * _fit_to(pred, whole[here])
            weight[here] += fade
    blended = total / weight
    radius = round(FINE * max(height / size[0], width / size[1]))
    return blended + _window_mean(_window_mean(whole - blended, radius), radius)


def _fade(tile: tuple[int, int], device: torch.device) -> Tensor:
    """Return weights (h, w) in (0, 1]: 1 in the middle, smoothly to nearly 0 at the border."""
    rows, columns = (
        torch.sin(torch.pi * (torch.arange(n, device=device) + 0.5) / n).square() + 1e-3
        for n in tile
    )
    return rows[:, None] * columns


def _fit_to(pred: Tensor, whole: Tensor) -> Tensor:
    """Return scale * pred + shift that is closest to `whole` (least squares), with scale >= 0.

    A negative scale would turn relief inside out.
    """
    x = pred.double()
    y = whole.double()
    spread = (x - x.mean()).square().mean()
    scale = torch.zeros_like(spread)
    if spread > 1e-18:
        scale = ((x - x.mean()) * (y - y.mean())).mean() / spread
    scale = scale.clamp(min=0.0)
    return (scale * (x - x.mean()) + y.mean()).float()
