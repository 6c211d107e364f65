"""Commands that a benchmark runs, and how far it is."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def print_progress(text: str) -> None:
    """Print a line to stderr: the results alone go to stdout."""
    print(text, file=sys.stderr, flush=True)


def run(command: list[object], limit_s: float = 3600, cwd: Path | None = None) -> str:
    """Return what a command printed, raise ValueError with the line that says why it failed.

    It finds this package and what PYTHONPATH names, and each of its processes has one computing
    thread.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:  # some leave lock files there
        env = {**os.environ, **one_thread, "PYTHONPATH": path, "TMPDIR": scratch}
        try:
            done = subprocess.run(
                list(map(str, command)),
                env=env,
                cwd=cwd,
                capture_output=True,
                text=True,
                timeout=limit_s,
            )
        except subprocess.TimeoutExpired:
            name = " ".join(map(str, command[1:3]))
            raise ValueError(f"{name}: not done after {limit_s} s") from None
    if done.returncode == 0:
        return done.stdout
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    lines = lines or [f"exit code {done.returncode}"]
    raise ValueError(next((line for line in lines if line.startswith("ERROR:")), lines[-1]).strip())


def run_tool(name: str, *words: object) -> None:
    """Run a script of tools/, shown as a line of progress."""
    print_progress(f"tools/{name} {' '.join(map(str, words))}")
    run([sys.executable, ROOT / "tools" / name, *words])


def run_module(python: Path, name: str, *words: str, limit_s: float = 3600) -> str:
    """Run a module of this folder with that Python, return what it printed."""
    command = [python, "-m", f"tools.benchmarks.{name}", *words]
    return run(command, limit_s, cwd=ROOT)  # the current folder might have another `tools`
