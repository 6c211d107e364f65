"""JSON as people write it by hand: where it is wrong, by line.

    content = read_json_object(Path("ds_configs/mine.json"), "--deepspeed")

Byte-order marks (UTF-8, UTF-16, UTF-32) are read over. Nothing that is no JSON is taken: what a
comment or the second of two equal keys means is for the writer of the file to say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<comment>//[^\n]*|\#[^\n]*|/\*.*?(?:\*/|\Z))
    |(?P<text>"(?:[^"\\\n]|\\.)*")
    |(?P<mark>[{}\[\]:,])
    |(?P<word>[^\s{}\[\]:,"/\#]+)
    |(?P<other>.)""",
    re.DOTALL | re.VERBOSE,
)
NOT_A_NUMBER = ("NaN", "Infinity", "-Infinity")
IN_PYTHON = {"True": "true", "False": "false", "None": "null"}
SHOWN = 40  # characters of a comment


class _Fault(NamedTuple):
    line: int
    kind: str
    what: str


def read_json_object(path: Path, flag: str) -> dict[str, Any]:
    """Return the object in a JSON file that was given as `flag`.

    raises ValueError, a line for each kind of fault, where the file cannot be read or holds
    anything else
    """
    name = f"{flag} {path}"
    try:
        content = path.read_bytes()
    except OSError as err:
        raise ValueError(f"{name}: {err.strerror}") from None
    try:
        text = content.decode(json.detect_encoding(content))
    except UnicodeDecodeError as err:
        line = content.count(b"\n", 0, err.start) + 1
        raise ValueError(
            f"{name}: not JSON (line {line}: bytes that are no {err.encoding})"
        ) from None
    faults = find_json_faults(text)
    if faults:
        raise ValueError("\n".join(f"{name}: not JSON ({fault})" for fault in faults))
    try:
        found = json.loads(text)
    except json.JSONDecodeError as err:
        where = f"line {err.lineno}, column {err.colno}"
        raise ValueError(f"{name}: not JSON ({where}: {err.msg})") from None
    except (ValueError, RecursionError) as err:  # a number of 5000 digits, 5000 brackets
        raise ValueError(f"{name}: not JSON ({err})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{name}: expected a JSON object, found {type(found).__name__}")
    return found


def find_json_faults(text: str) -> list[str]:
    """Return what people often write that is no JSON, a line for each kind, with line numbers."""
    by_kind: dict[str, list[_Fault]] = {}
    for fault in _faults(text):
        by_kind.setdefault(fault.kind, []).append(fault)
    return [_describe(faults) for faults in by_kind.values()]


def _describe(faults: list[_Fault]) -> str:
    first, *others = faults
    also = ", ".join(dict.fromkeys(str(fault.line) for fault in others))
    return f"line {first.line}: {first.what}" + (f"; also line {also}" if also else "")


def _faults(text: str) -> Iterator[_Fault]:
    opened: list[dict[str, int] | None] = []  # keys and their lines of each object; None: a list
    line, previous_line, previous = 1, 1, ""
    for match in TOKEN.finditer(text):
        kind, token = match.lastgroup, match.group()
        if kind == "comment":
            shown = token.split("\n")[0].strip()[:SHOWN]
            yield _Fault(line, "comment", f"JSON has no comments; remove {shown}")
        elif kind == "word":
            yield from _word_faults(line, token)
        elif kind == "text" and previous in ("{", ",") and opened and opened[-1] is not None:
            keys = opened[-1]
            if token in keys:
                what = f"{token} stands on line {keys[token]} already; remove one of them"
                yield _Fault(line, f"again {token}", what)
            keys[token] = line
        elif token in ("}", "]") and previous == ",":
            yield _Fault(previous_line, "comma", "nothing follows this comma; remove it")
        if kind not in ("space", "comment"):
            previous_line = line
            previous = token
            _open_or_close(opened, token)
        line += token.count("\n")


def _open_or_close(opened: list[dict[str, int] | None], token: str) -> None:
    if token in ("{", "["):
        opened.append({} if token == "{" else None)
    elif token in ("}", "]") and opened:
        opened.pop()


def _word_faults(line: int, word: str) -> Iterator[_Fault]:
    if word in NOT_A_NUMBER:
        yield _Fault(line, "number", f"{word}; expected a number")
    elif word in IN_PYTHON:
        yield _Fault(line, word, f"{word}; JSON spells it {IN_PYTHON[word]}")
    elif word.startswith(("'", "\u2018", "\u2019", "\u201c", "\u201d")):
        yield _Fault(line, "quotes", f'{word[:SHOWN]}; JSON has text in double quotes: "')
