"""Settings: dataclasses become `--help`, command-line flags and JSON keys.

Bad input becomes one clear line.

A setting is a field of a frozen dataclass that stands beside the code it steers. The string under
the field is its sentence in `--help`; the class's docstring is the title of its group;
`problems()`, where a class has it, lists what is wrong with the values. Nothing is stated twice:

    @dataclass(frozen=True)
    class Optics:
        "Optics"
        focal: float = 50.0
        "Focal length, mm."

    def main(argv=None):
        (optics,) = config.parse("what the command does", Optics, argv=argv)

    if __name__ == "__main__":
        config.command(main)

Values come from the defaults, then `--config FILE.json`, then the flags. All problems are reported
together.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
import json
import os
import re
import textwrap
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from depthdist.core.errors import SettingsError

T = TypeVar("T")


class Size(NamedTuple):
    """Height and width in pixels, written HxW."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


METAVARS = {
    Size: "HxW",
    Path: "PATH",
    int: "N",
    float: "X",
}  # what `--help` shows for a value, by its type


def positional(default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that the command line gives without a flag."""
    return dataclasses.field(default=default, metadata={"positional": True})


def hidden(default: Any) -> Any:
    """A dataclass field that a launcher sets; `--help` leaves it out."""
    return dataclasses.field(default=default, metadata={"hidden": True})


def field_help(group: type) -> dict[str, str]:
    """The string literal that stands under each field of a dataclass, by field name (parents
    included).
    """
    found: dict[str, str] = {}
    for cls in reversed(group.__mro__):
        if not dataclasses.is_dataclass(cls):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
        for field, text in zip(body, body[1:]):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                found[field.target.id] = " ".join(text.value.value.split())
    return found


def parse_value(kind: Any, value: Any) -> Any:
    """`value`, from a flag (str) or from JSON, as the field's type.

    ValueError says what was expected.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):  # only `X | None` is used
        if value is None or value in ("none", "None"):
            return None
        return parse_value(next(k for k in inner if k is not type(None)), value)
    if origin is Literal:
        if value not in inner:
            raise ValueError(f"expected one of {', '.join(map(str, inner))}")
        return value
    if kind is Size:
        match = re.fullmatch(r"(\d+)[xX](\d+)", str(value)) or re.fullmatch(
            r"\[(\d+), (\d+)\]", str(value)
        )
        if not match:
            raise ValueError("expected HxW in pixels, such as 756x1260")
        return Size(int(match[1]), int(match[2]))
    if origin in (tuple, list):
        if value is None:
            raise ValueError("expected values with commas between")
        items = value if isinstance(value, (list, tuple)) else str(value).split(",")
        if origin is tuple and Ellipsis not in inner and len(items) != len(inner):
            raise ValueError(f"expected {len(inner)} values with commas between")
        each = [inner[0]] * len(items) if origin is list or Ellipsis in inner else inner
        return origin(parse_value(k, item) for k, item in zip(each, items))
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise ValueError("expected true or false")
    if kind in (int, float):
        wanted = "a whole number" if kind is int else "a number"
        if isinstance(value, bool) or (
            kind is int and isinstance(value, float) and not value.is_integer()
        ):
            raise ValueError(f"expected {wanted}")
        try:
            return kind(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"expected {wanted}") from None
    if not isinstance(value, (str, os.PathLike)):
        raise ValueError("expected text")
    return kind(value)


def to_json_value(value: Any) -> Any:
    """`value` as JSON can hold it and `convert` can read it back."""
    if isinstance(value, (Size, Path)):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [to_json_value(v) for v in value]
    if dataclasses.is_dataclass(value):
        return as_dict(value)
    return value


def as_dict(*groups: Any) -> dict[str, Any]:
    """The settings of dataclass instances as one flat dict that `--config` reads back."""
    return {
        f.name: to_json_value(getattr(g, f.name))
        for g in groups
        for f in dataclasses.fields(g)
        if not f.metadata.get("hidden")
    }


def from_dict(group: type[T], values: dict[str, Any]) -> T:
    """The dataclass with those values, as `as_dict` gave them; the rest as by default.

    ValueError where one does not fit.
    """
    kinds = get_type_hints(group)
    return group(**{name: parse_value(kinds[name], value) for name, value in values.items()})


def field_names(*groups: type) -> set[str]:
    """Of all settings in those dataclasses."""
    return {f.name for g in groups for f in dataclasses.fields(g)}


def expand_user(name: str) -> Path:
    """The path; `~` or `~somebody` at its start is that person's home, where there is one."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def did_you_mean(name: str, known: list[str]) -> str:
    """`; did you mean ...?` for a name that is not among `known`, or nothing."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def parse(
    description: str,
    *groups: type[T],
    argv: list[str] | None = None,
    epilog: str = "",
    together: Callable[..., list[str]] | None = None,
    presets: tuple[str, dict[str, dict[str, Any]]] = ("", {}),
) -> tuple[T, ...]:
    """One instance of each dataclass in `groups`, from defaults, `--config` and `argv`.

    together  lists what is wrong with the groups' values as a whole; it is asked when each alone is
              right
    presets   a setting's name, and the defaults of other settings that each of its values brings
    raises SettingsError with every problem found: unknown names (with the near ones), values of the
    wrong kind, missing positionals, and what the groups' own `problems()` list.
    """
    kinds = {g: get_type_hints(g) for g in groups}
    fields = {f.name: (g, f) for g in groups for f in dataclasses.fields(g)}
    parser = _parser(description, epilog, groups, kinds)
    given, unknown = parser.parse_known_intermixed_args(argv)
    flags = {k: v for k, v in vars(given).items() if v is not None and v != []}
    problems, known_flags = (
        [],
        ["--" + n.replace("_", "-") for n, (_, f) in fields.items() if not f.metadata],
    )
    for word in unknown:
        name = word.split("=")[0]
        problems.append(
            f"unknown setting {name}{did_you_mean(name, known_flags)}"
            if word.startswith("--")
            else f"unexpected argument {word!r}"
        )
    from_file = _read_json(flags.pop("config", None), list(fields), problems)
    values: dict[type, dict[str, Any]] = {g: {} for g in groups}
    preset = presets[1].get(flags.get(presets[0], from_file.get(presets[0], "")), {})
    for source, settings in (("preset", preset), ("--config", from_file), ("", flags)):
        for name, value in settings.items():
            group, field = fields[name]
            try:
                values[group][name] = parse_value(kinds[group][name], value)
            except ValueError as err:
                label = name if field.metadata.get("positional") else "--" + name.replace("_", "-")
                problems.append(f"{source + ': ' if source else ''}{label} is {value!r}: {err}")
                values[group].setdefault(name, None if _needed(field) else _default(field))
    for name, (group, field) in fields.items():
        if _needed(field) and name not in values[group]:
            label = (
                name.upper() if field.metadata.get("positional") else "--" + name.replace("_", "-")
            )
            problems.append(f"{label} is missing: {field_help(group)[name]}")
    if any(_needed(f) and values[g].get(n) is None for n, (g, f) in fields.items()):
        raise SettingsError(problems)
    made = tuple(g(**values[g]) for g in groups)
    for instance in made:
        problems += getattr(instance, "problems", list)()
    if not problems and together:
        problems = together(*made)
    if problems:
        raise SettingsError(problems)
    return made


def _needed(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default is not dataclasses.MISSING else field.default_factory()


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help whose names, such as `built-in`, are never cut at a hyphen."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def _parser(
    description: str, epilog: str, groups: tuple[type, ...], kinds: dict[type, dict[str, Any]]
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, allow_abbrev=False, formatter_class=_HelpFormatter
    )
    parser.error = lambda message: (_ for _ in ()).throw(SettingsError([message]))
    parser.add_argument(
        "--config", metavar="FILE.json", help="settings by name, as a JSON object; flags win"
    )
    for group in groups:
        titled, texts = (
            parser.add_argument_group(inspect.getdoc(group).splitlines()[0]),
            field_help(group),
        )
        for field in dataclasses.fields(group):
            kind = kinds[group][field.name]
            text = (
                argparse.SUPPRESS
                if field.metadata.get("hidden")
                else texts[field.name].replace("%", "%%")
            )
            if field.metadata.get("positional"):
                nargs = "*" if get_origin(kind) is list else "?"
                titled.add_argument(field.name, nargs=nargs, metavar=field.name.upper(), help=text)
                continue
            names = ["--" + field.name.replace("_", "-")] + (
                ["--" + field.name] if field.metadata.get("hidden") else []
            )
            if text is not argparse.SUPPRESS and not _needed(field):
                default = to_json_value(_default(field))
                text += f" [{_shown(default)}]" if default not in (None, "") else ""
            if kind is bool:
                titled.add_argument(
                    *names,
                    dest=field.name,
                    action=argparse.BooleanOptionalAction,
                    default=None,
                    help=text,
                )
            else:
                choices = get_args(kind) if get_origin(kind) is Literal else ()
                bare = next((k for k in get_args(kind) if k is not type(None)), kind)
                metavar = "|".join(map(str, choices)) or METAVARS.get(bare, field.name.upper())
                fixed = get_origin(bare) is tuple and Ellipsis not in get_args(bare)
                titled.add_argument(
                    *names,
                    dest=field.name,
                    nargs=len(get_args(bare)) if fixed else None,
                    metavar=metavar,
                    help=text,
                )
    return parser


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return ",".join(map(str, default)) if isinstance(default, list) else str(default)


def _read_json(path: str | None, known: list[str], problems: list[str]) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        content = json.loads(Path(path).read_text())
    except OSError as err:
        problems.append(f"--config {path}: {err.strerror}")
        return {}
    except (ValueError, RecursionError) as err:
        problems.append(f"--config {path}: not JSON ({err})")
        return {}
    if isinstance(content, dict) and isinstance(content.get("settings"), dict):
        content = content["settings"]  # a run's record
    if not isinstance(content, dict):
        problems.append(
            f"--config {path}: expected an object of settings, found {type(content).__name__}"
        )
        return {}
    content = {name.replace("-", "_"): value for name, value in content.items()}
    problems += [
        f"--config {path}: unknown setting {n}{did_you_mean(n, known)}"
        for n in content
        if n not in known
    ]
    return {n: v for n, v in content.items() if n in known}
