"""Completion of words, flags and their values in a shell, by argcomplete.

    eval "$(register-python-argcomplete depthdist)"

The shell then runs the command with `_ARGCOMPLETE` and the line typed so far in the environment;
the command prints what may come next, and ends.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from typing import NoReturn

VARIABLE = "_ARGCOMPLETE"  # how many words of the line come before the first argument


def is_completing() -> bool:
    """Return whether a shell asks what may come next."""
    return VARIABLE in os.environ


def typed_words() -> list[str]:
    """Return the arguments on the shell's line that stand before the one being typed."""
    from argcomplete.lexers import split_line

    words = split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))[3]
    return words[int(os.environ[VARIABLE]) :]


def skip_word() -> None:
    """Take the first argument for part of the command's name: `depthdist shard`."""
    os.environ[VARIABLE] = str(int(os.environ[VARIABLE]) + 1)


def complete(parser: argparse.ArgumentParser) -> NoReturn:
    """Answer with what may come next by that parser, and end the process."""
    import argcomplete

    argcomplete.autocomplete(parser, always_complete_options="long")
    raise AssertionError("argcomplete ends the process")


def complete_word(words: Iterable[str]) -> NoReturn:
    """Answer with those of the words that the typed one begins, and end the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("word", choices=list(words))
    complete(parser)
