"""Settings: dataclasses become `--help`, command-line flags and JSON keys.

A setting is a field of a frozen dataclass. The string under the field is its sentence in `--help`,
the first line of the class's docstring is the title of its group, and `problems()`, where a class
has it, lists what is wrong with the values. Nothing is stated twice:

    @dataclass(frozen=True)
    class Optics:
        "Optics."

        focal: float = 50.0
        "Focal length, mm."

    def main(argv=None):
        (optics,) = parse("What the command does.", Optics, argv=argv)

    if __name__ == "__main__":
        run_command(main)

Values come from the defaults, then `--config FILE.json`, then the flags. All problems are reported
together.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import os
import re
import shlex
import textwrap
import types
from collections.abc import Iterable
from pathlib import Path
from typing import (
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

T = TypeVar("T")
Field = dataclasses.Field[Any]


class Size(NamedTuple):
    """Height and width in pixels, written HxW."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


def positional(default: Any = dataclasses.MISSING) -> Any:
    """Declare a dataclass field that the command line gives without a flag."""
    return dataclasses.field(default=default, metadata={"positional": True})


def hidden(default: Any) -> Any:
    """Declare a dataclass field that a launcher sets; `--help` leaves it out."""
    return dataclasses.field(default=default, metadata={"hidden": True})


def field_help(group: type) -> dict[str, str]:
    """Return the string literal under each field of a dataclass and its parents, by field name."""
    found: dict[str, str] = {}
    for cls in reversed(group.__mro__):
        if not dataclasses.is_dataclass(cls):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in zip(definition.body, definition.body[1:]):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                assert isinstance(field.target, ast.Name)
                if isinstance(text.value, ast.Constant):
                    found[field.target.id] = " ".join(str(text.value.value).split())
    return found


# ------------------------------------------------------------------------------------------ values


def parse_value(kind: Any, value: Any) -> Any:
    """Return `value`, from a flag (str) or from JSON, as the field's type.

    raises ValueError, which says what was expected
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):  # only `X | None` is used
        if value is None or value in ("none", "None"):
            return None
        return parse_value(without_none(kind), value)
    if origin is Literal:
        if value not in inner:
            raise ValueError(f"expected one of {', '.join(map(str, inner))}")
        return value
    if kind is Size:
        return _parse_size(str(value))
    if origin in (tuple, list):
        return _parse_items(origin, inner, value)
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise ValueError("expected true or false")
    if kind in (int, float):
        return _parse_number(kind, value)
    if not isinstance(value, (str, os.PathLike)):
        raise ValueError("expected text")
    return kind(value)


def without_none(kind: Any) -> Any:
    """Return the first of a type's arguments that is not None, or the type where it has none."""
    return next((k for k in get_args(kind) if k is not type(None)), kind)


def _parse_size(text: str) -> Size:
    for pattern in (r"(\d+)[xX](\d+)", r"\[(\d+), (\d+)\]"):
        if match := re.fullmatch(pattern, text):
            return Size(int(match[1]), int(match[2]))
    raise ValueError("expected HxW in pixels, such as 756x1260")


def _parse_items(origin: Any, inner: tuple[Any, ...], value: Any) -> Any:
    if value is None:
        raise ValueError("expected values with commas between")
    items = value if isinstance(value, (list, tuple)) else str(value).split(",")
    if origin is list or Ellipsis in inner:
        return origin(parse_value(inner[0], item) for item in items)
    if len(items) != len(inner):
        raise ValueError(f"expected {len(inner)} values with commas between")
    return origin(parse_value(kind, item) for kind, item in zip(inner, items))


def _parse_number(kind: type, value: Any) -> Any:
    wanted = "a whole number" if kind is int else "a number"
    fraction = kind is int and isinstance(value, float) and not value.is_integer()
    if isinstance(value, bool) or fraction:
        raise ValueError(f"expected {wanted}")
    try:
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"expected {wanted}") from None


def to_json_value(value: Any) -> Any:
    """Return `value` as JSON can hold it and `parse_value` can read it back."""
    if isinstance(value, (Size, Path)):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [to_json_value(v) for v in value]
    if dataclasses.is_dataclass(value):
        return as_dict(value)
    return value


def as_dict(*groups: Any) -> dict[str, Any]:
    """Return the settings of dataclass instances as one flat dict that `--config` reads back."""
    return {
        f.name: to_json_value(getattr(group, f.name))
        for group in groups
        for f in dataclasses.fields(group)
        if not f.metadata.get("hidden")
    }


def from_dict(group: type[T], values: dict[str, Any]) -> T:
    """Return the dataclass with the values that `as_dict` gave, and defaults for the rest.

    raises ValueError where a value does not fit
    """
    kinds = get_type_hints(group)
    return group(**{name: parse_value(kinds[name], value) for name, value in values.items()})


def field_names(*groups: Any) -> set[str]:
    """Return the names of all settings of those dataclasses."""
    return {f.name for group in groups for f in dataclasses.fields(group)}


def flag_name(field: str) -> str:
    """Return the flag that sets a field: `--log-every` for log_every."""
    return "--" + field.replace("_", "-")


def typed_flag(name: str, value: Any) -> str:
    """Return what a person types to give a field that value, as `to_json_value` has it."""
    if isinstance(value, bool):
        return flag_name(name) if value else flag_name(f"no_{name}")
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{flag_name(name)} {shlex.quote(text)}"


def range_problems(settings: Any, *checks: tuple[str, bool, str]) -> list[str]:
    """Return one line for each (field name, whether its value is valid, what was expected)."""
    return [
        f"{flag_name(name)} is {getattr(settings, name)}: expected {expected}"
        for name, valid, expected in checks
        if not valid
    ]


def expand_user(name: str) -> Path:
    """Return the path with `~` or `~somebody` at its start replaced, where there is such a home."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean ...?` if `known` has names like this one, else ""."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""


# ------------------------------------------------------------------------------------ command line
