"""Tensors and files from rank 0 to all ranks: one tensor, or one piece of a file, at a time.

tensors = broadcast_tensors(tensors)            # {name: tensor on the CPU}, rank 0's, on every rank
for piece in broadcast_file(path): ...          # the bytes of rank 0's file, on every rank

Nothing is pickled but names, shapes and types: beside the result, a rank and its device need memory
for the largest tensor, or for one piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from depthdist.distributed.accelerator import accelerator
from depthdist.distributed.process_group import broadcast_from_rank_0, exchanging

PIECE = 16 * 2**20  # bytes of a file that are sent at a time


def broadcast_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return rank 0's tensors, equal to the bit, on the CPU; the others' are not looked at."""
    if dist.get_world_size() == 1:
        return dict(tensors)
    mine = [(name, list(t.shape), t.dtype) for name, t in tensors.items()]
    found = {}
    for name, shape, dtype in broadcast_from_rank_0(mine):
        if dist.get_rank() == 0:
            found[name] = tensors[name].detach().cpu().contiguous()
        else:
            found[name] = torch.empty(shape, dtype=dtype)
        if found[name].numel():  # bytes, as not every type can be sent
            _broadcast_bytes(found[name].reshape(-1).view(torch.uint8))
    return found


def broadcast_file(path: Path) -> Iterator[bytes]:
    """Yield the bytes of rank 0's file, piece by piece; every rank must take them all."""
    size = broadcast_from_rank_0(path.stat().st_size if dist.get_rank() == 0 else 0)
    file = open(path, "rb") if dist.get_rank() == 0 else None  # noqa: SIM115
    try:
        for first in range(0, size, PIECE):
            content = bytearray(min(PIECE, size - first))
            if file and file.readinto(content) != len(content):
                raise OSError(f"{path}: became shorter while it was sent to the other ranks")
            _broadcast_bytes(torch.frombuffer(content, dtype=torch.uint8))
            yield bytes(content)
    finally:
        if file:
            file.close()


def _broadcast_bytes(content: Tensor) -> None:
    """Fill `content` (N,) uint8, on the CPU, with rank 0's."""
    device = torch.device(accelerator().current_device_name())
    there = content.to(device)  # the same memory on a CPU
    with exchanging():
        dist.broadcast(there, src=0)
    if there is not content:
        content.copy_(there)
