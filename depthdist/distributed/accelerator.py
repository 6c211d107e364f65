"""DeepSpeed, imported without a warning: it must be told where there is no GPU."""

from __future__ import annotations

import os
from typing import Any


def load_deepspeed() -> Any:
    """Return the module deepspeed; nothing else imports it.

    It reads DS_ACCELERATOR while it is imported, and prints a warning where that is not set and
    it finds no GPU.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    return deepspeed


def accelerator() -> Any:
    """Return DeepSpeed's accelerator; "cpu" where torch sees no GPU."""
    return load_deepspeed().accelerator.get_accelerator()


def run_launcher(words: list[str]) -> None:
    """Run DeepSpeed's launcher in this process, as the command `deepspeed` does.

    It ends the process with the exit code of the first rank that failed.
    """
    load_deepspeed()
    from deepspeed.launcher.runner import main

    main(words)
