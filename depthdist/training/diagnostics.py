"""Warnings from a run's own numbers: one line with the figures and what to do, or None.

Plain numbers and tensors go in; the caller decides when to look and where to print.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

FELL = 0.02  # of the eval loss in the last fifth of the run: less is taken for convergence
# of the pixels; where errors are spread exponentially 19 % carry half, where they are Gaussian 24 %
FEW = 0.02


def budget_exhausted(losses: Sequence[float], lrs: Sequence[float]) -> str | None:
    """Warn where the run ended because its learning rate did, while the eval loss still fell.

    losses  of every evaluation, oldest first
    lrs     learning rate of every optimizer step of the run

    Still falling: each of the last fifth of the evaluations (at least 2) is below all before them,
    the last is not above the first of them, and the fall from the one before them to the last is
    above 2 %. Mere noise around a level meets the first condition once in 455 runs of 15 epochs,
    whatever its size. Ended: the last rate is at most a fifth of the highest. Adam moves a weight
    by at most about its learning rate a step (Kingma & Ba, 2015, section 2.1), so in a run by about
    their sum.
    """
    count = max(2, len(losses) // 5)
    before, last = losses[:-count], losses[-count:]
    if not before or not lrs or lrs[-1] > max(lrs) / 5 or not all(map(math.isfinite, losses)):
        return None
    if not (max(last) < min(before) and last[-1] <= last[0] and last[-1] < (1 - FELL) * before[-1]):
        return None
    fell = (
        f"it fell {100 * (1 - last[-1] / before[-1]):.1f} % over the last {count} evaluations,"
        f" {before[-1]:.4g} to {last[-1]:.4g}"
    )
    budget = f"Adam can move a weight by at most about the sum of the rates, {sum(lrs):.2e}"
    return (
        f"learning-rate budget exhausted and eval loss still falling: {fell}, while the rate ran"
        f" out, and {budget}: raise --epochs or --lr"
    )


def nothing_moved(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> str | None:
    """Warn about LoRA weights that did not change, to within the rounding of float32.

    before, now  fp32 masters by name, with two optimizer steps or more between: in the first, A has
                 no gradient, for B is still 0
    """
    names = [name for name in before if "lora_" in name]
    still = [
        name
        for name in names
        if _same(before[name].float(), now[name].float().to(before[name].device))
    ]
    if not still:
        return None
    which = ", ".join(still[:3]) + (", ..." if len(still) > 3 else "")
    what = (
        "no LoRA weight moved"
        if len(still) == len(names)
        else f"{len(still)} of {len(names)} LoRA weights did not move"
    )
    return (
        f"{what} while training ran ({which}): see that train/grad_norm is above 0, and raise --lr"
    )


def _same(x: Tensor, y: Tensor) -> bool:
    return bool(((x - y).abs() <= torch.finfo(torch.float32).eps * x.abs()).all())


def dominated(loss_map: Tensor, mask: Tensor) -> str | None:
    """Warn where no more than 2 % of the valid pixels carry half of an image's loss.

    loss_map  (H, W) absolute loss of each pixel, whatever outside the mask;  mask  (H, W) bool
    """
    values = loss_map[mask].double()  # (N,)
    largest, order = values.topk(int(FEW * len(values)))
    few = int(torch.searchsorted(largest.cumsum(0), values.sum() / 2)) + 1
    if not values.sum() > 0 or few > len(largest):
        return None
    rows, columns = (axis[order[:few]] for axis in torch.nonzero(mask, as_tuple=True))
    where = (
        f"rows {rows.min()}..{rows.max()}, columns {columns.min()}..{columns.max()}, most at"
        f" ({rows[0]}, {columns[0]})"
    )
    found = (
        f"{100 * few / len(values):.2g} % of the pixels: half of it comes from {few:,} of"
        f" {len(values):,} ({where})"
    )
    return (
        f"loss is dominated by {found}; look there for silhouettes or a wrong truth, or try a"
        " smaller --gamma"
    )
