"""Images and depth maps at another size."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def resize_rgb(rgb: np.ndarray | Image.Image, size: tuple[int, int]) -> np.ndarray:
    """`rgb` (H, W, 3) uint8, or a picture in RGB, as (*size, 3) uint8: bicubic, aspect not kept.

    Pillow's antialiased bicubic on uint8, which is what transformers' DPTImageProcessor does
    (keep_aspect_ratio=False).
    """
    height, width = size
    image = rgb if isinstance(rgb, Image.Image) else Image.fromarray(rgb)
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC))


def upsample(
    pred: Tensor, size: tuple[int, int], way: Literal["bicubic", "bilinear"] = "bicubic"
) -> Tensor:
    """(B, h, w) resampled bicubically (a = -0.75, align_corners=False, as F.interpolate does) or
    bilinearly in float32 to (B, H, W).

    Rows and columns are weighted sums of at most four others, so the way there and back are two
    small sparse products: three times as fast as F.interpolate's on a CPU, and without the atomics
    of its way back on a GPU, whose sums differ from run to run.
    """
    pred = pred.float()
    if pred.shape[-2:] == tuple(size):
        return pred
    rows, columns = (
        _resampling(old, new, way, pred.device) for old, new in zip(pred.shape[-2:], size)
    )
    return _Resample.apply(pred, rows, columns)


class _Taps(NamedTuple):
    """A sparse matrix (new, old) by its rows: `index` and `weight`, both (new, taps), and the same
    of its transpose.
    """

    index: Tensor
    weight: Tensor
    index_back: Tensor
    weight_back: Tensor


class _Resample(torch.autograd.Function):
    """(B, h, w) -> (B, H, W) along both axes.

    Linear, so its way back is the transposed matrices.
    """

    @staticmethod
    def forward(ctx, pred: Tensor, rows: _Taps, columns: _Taps) -> Tensor:
        ctx.taps = rows, columns
        return torch.stack(
            [
                _sums(_sums(image.T, columns.index, columns.weight).T, rows.index, rows.weight)
                for image in pred
            ]
        )

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        rows, columns = ctx.taps
        return (
            torch.stack(
                [
                    _sums(
                        _sums(image, rows.index_back, rows.weight_back).T,
                        columns.index_back,
                        columns.weight_back,
                    ).T
                    for image in grad
                ]
            ),
            None,
            None,
        )


def _sums(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Row i of what comes back is the sum over k of weight[i, k] * table[index[i, k]], always added
    in that order.
    """
    return F.embedding_bag(index, table.contiguous(), per_sample_weights=weight, mode="sum")


@lru_cache(maxsize=16)
def _resampling(old: int, new: int, way: str, device: torch.device) -> _Taps:
    """Weights from `old` to `new` pixels, in float64 until the end: F.interpolate itself, asked
    what it does to each unit vector.
    """
    unit = torch.eye(old, dtype=torch.float64)[None, None]
    matrix = F.interpolate(unit, size=(new, old), mode=way, align_corners=False)[0, 0]
    return _Taps(*(part.to(device) for part in (*_sparse(matrix), *_sparse(matrix.T))))


def _sparse(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's nonzero columns in rising order, and their values.

    Shorter rows are filled up with zeros.
    """
    taps = int((matrix != 0).sum(1).max())
    index = matrix.abs().topk(taps, dim=1).indices.sort(dim=1).values
    return index, matrix.gather(1, index).float()
