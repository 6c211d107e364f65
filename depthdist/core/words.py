"""Commands whose first word says what to do: `depthdist shard ...`, `depthdist report run ...`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from depthdist.core.completion import complete_word, is_completing, skip_word
from depthdist.core.errors import SettingsError
from depthdist.core.settings import did_you_mean


def run_word(
    commands: Mapping[str, Callable[[list[str]], Any]], argv: list[str], what: str, text: str
) -> Any:
    """Run the command that argv's first word names, with the words after it; return its result.

    what  what such a word is, for messages: "command", "report"
    text  what --help prints
    raises SettingsError where the word is missing or unknown
    """
    if is_completing():
        if not argv:
            complete_word(commands)
        skip_word()
    known = ", ".join(commands)
    if not argv:
        raise SettingsError([f"the {what} is missing; expected one of {known}"])
    name, *rest = argv
    if name in ("-h", "--help"):
        print(text)
        return None
    if name not in commands:
        hint = did_you_mean(name, commands)
        raise SettingsError([f"{name!r} is not a {what}; expected one of {known}{hint}"])
    return commands[name](rest)
