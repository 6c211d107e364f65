"""What the networks of the second stages compute in."""

from __future__ import annotations

import contextlib

import torch


def best_dtype(device: torch.device) -> torch.dtype:
    """Return what the network's inner layers compute in: half precision where it is fast.

    On a GPU float16; on a CPU bfloat16 where it has units for it (AVX512-BF16, AMX).
    """
    if device.type == "cuda":
        return torch.float16
    if device.type == "cpu" and has_bf16_units():
        return torch.bfloat16
    return torch.float32


def has_bf16_units() -> bool:
    """Return whether this machine's CPU multiplies matrices in bfloat16."""
    cpu = torch.cpu
    with contextlib.suppress(AttributeError):  # private in torch
        return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())
    return False
