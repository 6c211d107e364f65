"""Commands that a command runs one after the other, each shown as it would be typed."""

from __future__ import annotations

import shlex
import subprocess
import sys

from depthdist.core.settings import flag_name


def run_shown(word: str, *words: object) -> None:
    """Print `depthdist WORD ...` and run it by this Python; raise ValueError if it fails.

    The command's output is shown.
    """
    run_line(["depthdist", word, *words], ["-m", "depthdist", word, *words])


def run_python(*words: object) -> None:
    """Print `python ...`, a script or `-m` and a module, and run it like `run_shown`."""
    run_line(["python", *words], list(words))


def run_line(shown: list[object], words: list[object]) -> None:
    """Print the first line and run this Python with the words; raise ValueError if it fails."""
    line = shlex.join(map(str, shown))
    print(f"$ {line}", flush=True)
    if subprocess.run([sys.executable, *map(str, words)]).returncode:
        raise ValueError(
            f"`{line}` failed; its error is printed above. Finished steps are kept: the same"
            " command continues from there"
        )


def flags(**settings: object) -> list[object]:
    """Return settings as words of a command line.

    `flags(lr=0.1, relative=True, details=False)` gives --lr 0.1 --relative --no-details.
    """
    words: list[object] = []
    for name, value in settings.items():
        if isinstance(value, bool):
            words.append(flag_name(name if value else f"no_{name}"))
        else:
            words += [flag_name(name), value]
    return words
