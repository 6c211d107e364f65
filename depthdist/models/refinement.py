"""Sharper than plain upsampling: what the picture at its full size adds to a prediction made at the
network's.

    # (H, W) normalised inverse depth, H and W the picture's
    target = refined("tiles", see, pred, picture)

`plain` is bicubic, as in training. `guided` fits the coarse prediction, window by window, as a line
of the picture's brightness and draws the lines at full size (He et al. 2010; He & Sun 2015):
depth's edges move onto the picture's. `tiles` also shows the network overlapping pieces of the
picture, each as large as the whole was shown; a piece is brought to the whole by one scale and
shift and faded in, so that no seam shows, and of the result only the fine relief is taken: a piece
alone does not see what stands where. `mirrored` averages with the mirror image's prediction.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from depthdist.geometry.resampling import resize_rgb, upsample
from depthdist.models.settings import Refinement

# chosen on training captures: RMSE, and F1 of edges of 4 to 32 mm
RADIUS = 2  # of the guided filter's window, in pixels of the network's picture
EPS = 1e-3  # variance of brightness (0..1) below which a window counts as flat
OVERLAP = 0.25  # share of a tile that its neighbour covers too
# relief that tiles may change: within windows of this radius, in pixels of the network's picture
FINE = 8
Network = Callable[[Tensor], Tensor]  # pictures (B, h, w, 3) uint8 -> (B, h, w) float32


def average_with_mirror(see: Network) -> Network:
    """`see`, averaged with what it says of the mirror image."""
    return lambda rgb: (see(rgb) + see(rgb.flip(2)).flip(2)) / 2


def refine_by_guided_filter(pred: Tensor, picture: Tensor) -> Tensor:
    """(H, W) of `pred` (h, w): per window of the small size pred = a * brightness + b, the mean a
    and b drawn at the picture's size.

    picture  (H, W, 3) uint8
    """
    light = (
        picture.float() @ picture.new_tensor([0.299, 0.587, 0.114], dtype=torch.float32) / 255
    )  # (H, W)
    small = F.interpolate(
        light[None, None], size=pred.shape, mode="bicubic", antialias=True, align_corners=False
    )[0, 0]
    mean_i, mean_p = _mean(small, RADIUS), _mean(pred, RADIUS)
    a = (_mean(small * pred, RADIUS) - mean_i * mean_p) / (
        _mean(small * small, RADIUS) - mean_i * mean_i + EPS
    )
    a, b = _mean(a, RADIUS), _mean(mean_p - a * mean_i, RADIUS)
    a, b = (upsample(t[None], light.shape, "bilinear")[0] for t in (a, b))
    return a * light + b


def _mean(values: Tensor, radius: int) -> Tensor:
    """(h, w) means over a window of 2 radius + 1 pixels, at the rim over what of it there is: of
    columns, then of rows.
    """
    for way in ((2 * radius + 1, 1), (1, 2 * radius + 1)):
        values = F.avg_pool2d(
            values[None, None],
            way,
            stride=1,
            padding=(way[0] // 2, way[1] // 2),
            count_include_pad=False,
        )[0, 0]
    return values


def tile_starts(length: int, tile: int) -> list[int]:
    """Where tiles of `tile` begin so that they cover `length` evenly and overlap by at least
    OVERLAP.
    """
    if length <= tile:
        return [0]
    num = -(-(length - tile) // max(1, int(tile * (1 - OVERLAP)))) + 1
    return [round(i * (length - tile) / (num - 1)) for i in range(num)]


def refine_by_tiles(see: Network, whole: Tensor, picture: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W): `whole` (H, W) with detail from tiles of the picture (H, W, 3) uint8, each seen at
    `size`.

    Every tile's prediction t becomes s t + c, least squares against `whole` over the tile; its
    share falls to 0 at its rim. Means over windows of FINE stay those of `whole`. Where the picture
    is no larger than `size` there is nothing to add, and `whole` comes back.
    """
    height, width = picture.shape[:2]
    if height <= size[0] and width <= size[1]:
        return whole
    tile = min(size[0], height), min(size[1], width)
    fade = _fade(tile, whole.device)
    total, weight = torch.zeros_like(whole), torch.zeros_like(whole)
    for top in tile_starts(height, tile[0]):
        for left in tile_starts(width, tile[1]):
            here = slice(top, top + tile[0]), slice(left, left + tile[1])
            found = see(
                torch.from_numpy(resize_rgb(picture[here].cpu().numpy(), size)).to(picture.device)[
                    None
                ]
            )
            found = _onto(upsample(found, tile)[0], whole[here])
            total[here] += fade * found
            weight[here] += fade
    fine, radius = total / weight, round(FINE * max(height / size[0], width / size[1]))
    return fine + _mean(_mean(whole - fine, radius), radius)


def _fade(tile: tuple[int, int], device: torch.device) -> Tensor:
    """(h, w) in (0, 1]: 1 in the middle, smoothly to nearly 0 at the rim."""
    rows, columns = (
        torch.sin(torch.pi * (torch.arange(n, device=device) + 0.5) / n).square() + 1e-3
        for n in tile
    )
    return rows[:, None] * columns


def _onto(found: Tensor, whole: Tensor) -> Tensor:
    """`found` with the scale and shift that bring it closest to `whole`.

    Never a scale below 0, which would turn relief inside out.
    """
    x, y = found.double(), whole.double()
    spread = (x - x.mean()).square().mean()
    scale = (
        ((x - x.mean()) * (y - y.mean())).mean() / spread
        if spread > 1e-18
        else torch.zeros_like(spread)
    )
    scale = scale.clamp(min=0.0)
    return (scale * (x - x.mean()) + y.mean()).float()


def refine(
    way: Refinement, see: Network, pred: Tensor, picture: Tensor, upsampling: str = "bicubic"
) -> Tensor:
    """(H, W) normalised inverse depth at the size of `picture` (H, W, 3) uint8.

    see   the network
    pred  (h, w): what it says of the whole picture at its own size
    """
    if way == "guided":
        return refine_by_guided_filter(pred, picture)
    whole = upsample(pred[None], picture.shape[:2], upsampling)[0]
    return refine_by_tiles(see, whole, picture, pred.shape) if way == "tiles" else whole
