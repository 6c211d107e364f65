"""Commands that a tool runs one after the other, each shown as it would be typed."""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def do(*words: object) -> None:
    """Run a command, of Python where it is a script of ours, from the repository's root.

    What it prints is shown. ValueError where it fails.
    """
    line = [str(word) for word in words]
    print(f"$ {shlex.join(line)}", flush=True)
    if subprocess.run(
        [sys.executable, *line] if line[0].endswith(".py") else line, cwd=ROOT
    ).returncode:
        raise ValueError(
            f"`{shlex.join(line[-12:])}` failed; its error stands above. What is finished is kept:"
            " the same command goes on"
        )


def launcher(ranks: int) -> list[object]:
    """DeepSpeed's launcher of this environment, meeting at a port that nobody uses: runs side by
    side do not get in each other's way.
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
