"""DeepSpeed's JSON files as people have them: byte-order marks, mistakes named by their line."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any, NoReturn

MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
STRING = r'"(?:[^"\\\n]|\\.)*"'
COMMENT = re.compile(rf"{STRING}|(//|\#|/\*)")
TRAILING_COMMA = re.compile(rf"{STRING}|,(?=\s*[}}\]])")


def read_deepspeed_json(path: Path) -> dict[str, Any]:
    """Return the object in the file; raise ValueError, one line, where it is none."""
    where = f"--deepspeed {path}"
    try:
        content = path.read_bytes()
    except OSError as err:
        raise ValueError(f"{where}: {err.strerror}") from None
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        raise ValueError(f"{where}: not JSON: its bytes are no {encoding} text") from None
    try:
        config = json.loads(
            text, object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant
        )
    except _BadValue as err:
        raise ValueError(f"{where}{_line_of(text, err.pattern)}: {err.reason}") from None
    except ValueError as err:
        raise ValueError(f"{where}{_explain(text, err)}") from None
    except RecursionError:
        raise ValueError(f"{where}: not JSON (too many brackets in one another)") from None
    if not isinstance(config, dict):
        raise ValueError(f"{where}: expected a JSON object, found {type(config).__name__}")
    return config


class _BadValue(ValueError):
    """What is valid for Python's parser and no good here; found by a pattern in the text."""

    def __init__(self, reason: str, pattern: str):
        super().__init__(reason)
        self.reason = reason
        self.pattern = pattern


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            pattern = rf"({re.escape(json.dumps(name))})\s*:"
            raise _BadValue(f"{name} is there twice in one object; keep one", pattern)
        found[name] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise _BadValue(f"{name} is no JSON number", rf"{STRING}|({re.escape(name)})")


def _line_of(text: str, pattern: str) -> str:
    """Return ", line N" of the last match of a pattern's group; "" where there are several."""
    places = [match.start() for match in re.finditer(pattern, text) if match[1]]
    if not 0 < len(places) < 3:
        return ""  # the parser does not say which
    return f", line {text.count(chr(10), 0, places[-1]) + 1}"


def _explain(text: str, err: ValueError) -> str:
    """Return the line and what to change there, for what the JSON parser stumbled on."""
    comment = next((m for m in COMMENT.finditer(text) if m[1]), None)
    comma = next((m for m in TRAILING_COMMA.finditer(text) if m[0] == ","), None)
    place = getattr(err, "pos", 0)
    if comment and comment.start() <= place:
        line = text.count("\n", 0, comment.start()) + 1
        return f", line {line}: JSON has no comments; remove the {comment[1]} ... there"
    if comma and comma.start() <= place:
        line = text.count("\n", 0, comma.start()) + 1
        return f", line {line}: not JSON: remove the comma before the closing bracket"
    reason = getattr(err, "msg", str(err))
    return f", line {text.count(chr(10), 0, place) + 1}: not JSON ({reason})"
