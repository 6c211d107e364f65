"""Dropout with a mask per sample: the same on any device and rank and in any micro-batch.

Whether an element is dropped is a pure function of (random bits of its sample, index of the layer,
index of the element). Nothing is kept for backward: the mask is computed again, which is cheaper
than to store and read it.

    use_sample_dropout(model.net, model.dropout_keys)  # replaces every nn.Dropout of LoRA
    pred = model(rgb, draw_keys(seed, epoch, samples))

The hash of index and key is a 32-bit one of low bias (Wellons 2018,
https://github.com/skeeto/hash-prospector); each layer's key is SplitMix64 (Steele et al. 2014) of
the sample's bits and the layer; counter-based as in Salmon et al. 2011, "Parallel random numbers".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from depthdist.models.dropout_hash import M1, M2

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes per element


def draw_keys(seed: int, epoch: int, samples: Iterable[int]) -> Tensor:
    """Return 64 random bits for each sample of an epoch, (B,) int64."""
    states = [
        np.random.SeedSequence([seed, epoch, sample]).generate_state(1, np.uint64)[0]
        for sample in samples
    ]
    return torch.from_numpy(np.array(states, np.uint64).view(np.int64))


class DropoutKeys:
    """The keys of the current batch, which all dropouts of one model share.

    num_layers  number of dropouts
    keys        (B, num_layers) int64 of 32 bits
    """

    def __init__(self) -> None:
        self.num_layers = 0
        self.keys = torch.empty(0, 0, dtype=torch.int64)

    def set(self, draws: Tensor, device: torch.device) -> None:
        """Set the keys of a batch from the random bits of its samples, (B,) int64."""
        self.keys = layer_keys(draws, self.num_layers).to(device)

    def contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return the contexts of forward and of recomputation, for torch's checkpoint.

        The second restores the keys of this batch, as another batch may have come in between.
        """
        return nullcontext(), self._restored(self.keys)

    @contextmanager
    def _restored(self, keys: Tensor) -> Iterator[None]:
        current = self.keys
        self.keys = keys
        try:
            yield
        finally:
            self.keys = current


class SampleDropout(nn.Module):
    """nn.Dropout(p) whose mask for sample i of x (B, ...) depends only on shared.keys[i, layer]."""

    def __init__(self, p: float, layer: int, shared: DropoutKeys):
        super().__init__()
        self.p = p
        self.layer = layer
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (B, ...) with some elements 0 and the others divided by 1 - p."""
        if not self.training:
            return x
        keys = self.shared.keys
        assert len(keys) == len(x), f"draws of {len(keys)} samples for a batch of {len(x)}"
        return _Dropped.apply(x, keys[:, self.layer], self.p)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows of it."""
        return f"p={self.p}, layer={self.layer}"


def use_sample_dropout(net: nn.Module, shared: DropoutKeys) -> None:
    """Replace every nn.Dropout in the LoRA layers of `net` by a SampleDropout, in place.

    They are numbered in the order of the layers.
    """
    for layer in (m for m in net.modules() if isinstance(m, LoraLayer)):
        for name, dropout in layer.lora_dropout.items():
            if isinstance(dropout, nn.Dropout):
                layer.lora_dropout[name] = SampleDropout(dropout.p, shared.num_layers, shared)
                shared.num_layers += 1


def layer_keys(draws: Tensor, num_layers: int) -> Tensor:
    """Return 32 random bits for each sample and layer, (B, num_layers) int64.

    The upper half of SplitMix64; products wrap around.
    """
    z = draws[:, None] + torch.arange(1, num_layers + 1, device=draws.device) * _signed(
        0x9E3779B97F4A7C15
    )
    z = (z ^ _right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _right(z, 27)) * _signed(0x94D049BB133111EB)
    return _right(z ^ _right(z, 31), 32)


def _right(x: Tensor, shift: int) -> Tensor:
    """Return x >> shift of an int64 that is read as unsigned."""
    return (x >> shift) & ((1 << (64 - shift)) - 1)


def _signed(value: int) -> int:
    """Return the int64 with the bits of a uint64."""
    return value - (1 << 64) if value >> 63 else value


class _Dropped(torch.autograd.Function):
    """Return x with some elements 0 and the others divided by 1 - p; the gradient likewise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keys: Tensor, p: float) -> Tensor:
        ctx.save_for_backward(keys)
        ctx.p = p
        return _dropped(x, keys, p)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (keys,) = ctx.saved_tensors
        return _dropped(grad, keys, ctx.p), None, None


def _dropped(x: Tensor, keys: Tensor, p: float) -> Tensor:
    """Return x (B, ...) with the elements dropped that `keys` (B,) choose."""
    threshold = min(round(p * 2**32), 2**32 - 1)  # a hash below it is dropped: exact to 2^-32
    y = x * (1 / (1 - p))
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return torch.where(_hashes(keys, x[0].numel()).view(x.shape) >= threshold, y, 0)
    y = y.contiguous()
    bits = y.view(INTEGERS[y.element_size()]).view(len(y), -1)  # (B, N)
    # imported here because numba takes long, and only training on a CPU needs it
    from depthdist.models.dropout_kernel import zero_dropped

    zero_dropped(bits.numpy(), keys.numpy(), np.uint32(threshold))
    return y


def _hashes(keys: Tensor, num: int) -> Tensor:
    """Return the hash of each index in each sample, (B, num) int64 of 32 bits.

    It is that of `zero_dropped`.

    torch.compile fuses it into its consumer.
    """
    index_hashes = _index_hashes if torch.compiler.is_compiling() else _cached_index_hashes
    return _mix(index_hashes(num, keys.device) ^ keys[:, None])


def _index_hashes(num: int, device: torch.device) -> Tensor:
    """Return the hashes of 0, 1, 2, ..., (num,) int64 of 32 bits."""
    x = torch.arange(num, device=device)
    x = _mix(x ^ x >> 16)
    return x ^ x >> 15


_cached_index_hashes = lru_cache(maxsize=2)(_index_hashes)


def _mix(x: Tensor) -> Tensor:
    """Return the two multiplications of the hash, of int64 that hold 32 bits."""
    x = x * M1 & 0xFFFFFFFF
    return (x ^ x >> 15) * M2 & 0xFFFFFFFF
