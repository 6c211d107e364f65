"""Dropout that draws for each sample alone: the same mask on any device and rank, in any
micro-batch, at any repetition.

Whether an element is dropped is a pure function of (draw of its sample, number of the layer, place
of the element). Nothing is kept for the way back: the mask is computed again there, which is
cheaper than to store and read it.

    draw_per_sample(model.net, model.draws)  # every nn.Dropout of LoRA becomes a SampleDropout
    pred = model(rgb, draw_keys(seed, epoch, samples))

The hash of place and key is a 32-bit one of least bias (Wellons 2018,
https://github.com/skeeto/hash-prospector), each layer's key is SplitMix64 (Steele et al. 2014) of
draw and layer; counter-based as in Salmon et al. 2011, "Parallel random numbers".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache

import numpy as np
import torch
from numba import njit
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

M1, M2 = (
    0x21F0AAAD,
    0x735A2D97,
    # below 2^31: times 32 bits they stay inside an int64, whose overflow a C++ compiler may assume
    # away
)
u32 = np.uint32
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes an element


def draw_keys(seed: int, epoch: int, samples: Iterable[int]) -> Tensor:
    """(B,) int64: 64 random bits for each sample of an epoch."""
    states = [
        np.random.SeedSequence([seed, epoch, sample]).generate_state(1, np.uint64)[0]
        for sample in samples
    ]
    return torch.from_numpy(np.array(states, np.uint64).view(np.int64))


class DropoutKeys:
    """What the dropouts of one model share.

    num_layers  how many they are
    keys        (B, num_layers) int64 of 32 bits, of the batch at hand
    """

    def __init__(self) -> None:
        self.num_layers, self.keys = 0, torch.empty(0, 0, dtype=torch.int64)

    def set(self, draws: Tensor, device: torch.device) -> None:
        """Draw for the batch whose samples have the numbers `draws` (B,) int64."""
        self.keys = layer_keys(draws, self.num_layers).to(device)

    def contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """For torch's checkpoint, (forward, again): the second draws as for this batch though
        another came in between.
        """
        return nullcontext(), self._again(self.keys)

    @contextmanager
    def _again(self, keys: Tensor) -> Iterator[None]:
        now, self.keys = self.keys, keys
        try:
            yield
        finally:
            self.keys = now


class SampleDropout(nn.Module):
    """nn.Dropout(p), but sample i of x (B, ...) has the mask of draws.keys[i, layer] whatever
    stands beside it.
    """

    def __init__(self, p: float, layer: int, draws: DropoutKeys):
        super().__init__()
        self.p, self.layer, self.draws = p, layer, draws

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        assert len(self.draws.keys) == len(x), (
            f"draws of {len(self.draws.keys)} samples for a batch of {len(x)}"
        )
        return _Dropped.apply(x, self.draws.keys[:, self.layer], self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}, layer={self.layer}"


def use_sample_dropout(net: nn.Module, draws: DropoutKeys) -> None:
    """Replace every nn.Dropout in the LoRA layers of `net` by a SampleDropout, numbered in their
    order; in place.
    """
    for layer in (m for m in net.modules() if isinstance(m, LoraLayer)):
        for name, dropout in layer.lora_dropout.items():
            if isinstance(dropout, nn.Dropout):
                layer.lora_dropout[name] = SampleDropout(dropout.p, draws.num_layers, draws)
                draws.num_layers += 1


def layer_keys(draws: Tensor, num_layers: int) -> Tensor:
    """(B, num_layers) int64 of 32 random bits for each sample and layer: the upper half of
    SplitMix64. Products wrap around.
    """
    z = draws[:, None] + torch.arange(1, num_layers + 1, device=draws.device) * _signed(
        0x9E3779B97F4A7C15
    )
    z = (z ^ _right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _right(z, 27)) * _signed(0x94D049BB133111EB)
    return _right(z ^ _right(z, 31), 32)


def _right(x: Tensor, shift: int) -> Tensor:
    """int64 x >> shift as if it had no sign."""
    return (x >> shift) & ((1 << (64 - shift)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


class _Dropped(torch.autograd.Function):
    """x with some elements 0 and the others divided by 1 - p; the gradient likewise."""

    @staticmethod
    def forward(ctx, x: Tensor, keys: Tensor, p: float) -> Tensor:
        ctx.save_for_backward(keys)
        ctx.p = p
        return _dropped(x, keys, p)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return _dropped(grad, *ctx.saved_tensors, ctx.p), None, None


def _dropped(x: Tensor, keys: Tensor, p: float) -> Tensor:
    threshold = min(round(p * 2**32), 2**32 - 1)  # a hash below it is dropped: exact to 2^-32
    y = x * (1 / (1 - p))
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return torch.where(_hashes(keys, x[0].numel()).view(x.shape) >= threshold, y, 0)
    y = y.contiguous()
    _zero(y.view(INTEGERS[y.element_size()]).view(len(y), -1).numpy(), keys.numpy(), u32(threshold))
    return y


def _hashes(keys: Tensor, num: int) -> Tensor:
    """(B, num) int64 of 32 bits: the hash of each place in each sample, as in `_zero`.

    A compiler fuses it into what uses it.
    """
    places = (_places if torch.compiler.is_compiling() else _places_kept)(num, keys.device)
    return _stirred(places ^ keys[:, None])


def _places(num: int, device: torch.device) -> Tensor:
    """(num,) int64 of 32 bits: the hashes of 0, 1, 2, ..."""
    x = torch.arange(num, device=device)
    x = _stirred(x ^ x >> 16)
    return x ^ x >> 15


_places_kept = lru_cache(maxsize=2)(_places)


def _stirred(x: Tensor) -> Tensor:
    x = x * M1 & 0xFFFFFFFF
    return (x ^ x >> 15) * M2 & 0xFFFFFFFF


@njit(nogil=True, error_model="numpy")
def _stir(x):
    x = u32(x * u32(M1))
    return u32(u32(x ^ u32(x >> u32(15))) * u32(M2))


@njit(cache=True, nogil=True, error_model="numpy")
def _zero(bits, keys, threshold):
    """Zero what is dropped in bits (B, N), of any integer type.

    One pass in registers: a fifth of nn.Dropout's time.
    """
    for sample in range(bits.shape[0]):
        row, key = bits[sample], u32(keys[sample])
        for place in range(bits.shape[1]):  # a loop that the compiler makes vectors of
            x = u32(place)
            x = _stir(u32(x ^ u32(x >> u32(16))))
            x = _stir(u32(x ^ u32(x >> u32(15)) ^ key))
            row[place] = row[place] if x >= threshold else 0
