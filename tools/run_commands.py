"""Commands that a tool runs one after the other, each shown as it would be typed."""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_shown(*words: object) -> None:
    """Print a command and run it from the repository's root; raise ValueError if it fails.

    A first word that ends in .py is a script, run by this Python. The command's output is shown.
    """
    line = [str(word) for word in words]
    print(f"$ {shlex.join(line)}", flush=True)
    python = [sys.executable] if line[0].endswith(".py") else []
    if subprocess.run([*python, *line], cwd=ROOT).returncode:
        raise ValueError(
            f"`{shlex.join(line[-12:])}` failed; its error is printed above. Finished steps are"
            " kept: the same command continues from there"
        )


def deepspeed_launcher(ranks: int) -> list[object]:
    """Return the words that start DeepSpeed's launcher of this environment on `ranks` processes.

    1 rank: the launcher takes all GPUs. The port is a free one, so that runs side by side do not
    disturb each other.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        Path(sys.executable).with_name("deepspeed"),
        "--master_port",
        port,
        *(["--num_accelerators", ranks] if ranks > 1 else []),
    ]


def flags(**settings: object) -> list[object]:
    """Return settings as words of a command line.

    `flags(lr=0.1, relative=True, details=False)` gives --lr 0.1 --relative --no-details.
    """
    words: list[object] = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", value]
    return words
