"""DeepSpeed's accelerator: which kind of device there is, chosen without a warning."""

from __future__ import annotations

import os
from typing import Any


def accelerator() -> Any:
    """Return DeepSpeed's accelerator; "cpu" where torch sees no GPU.

    DeepSpeed reads DS_ACCELERATOR when it is imported, and warns where it is not set and it finds
    no GPU. Call this before any other use of DeepSpeed.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.accelerator import get_accelerator

    return get_accelerator()
