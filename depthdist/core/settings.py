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
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import (
    Any,
    Literal,
    NamedTuple,
    NoReturn,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from depthdist.core.errors import SettingsError

T = TypeVar("T")
Field = dataclasses.Field[Any]


class Size(NamedTuple):
    """Height and width in pixels, written HxW."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


METAVARS = {Size: "HxW", Path: "PATH", int: "N", float: "X"}
"""What `--help` shows for a value, by its type."""


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
        return parse_value(_without_none(kind), value)
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


def _without_none(kind: Any) -> Any:
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


def parse(
    description: str,
    *groups: Any,
    argv: list[str] | None = None,
    epilog: str = "",
    together: Callable[..., list[str]] | None = None,
    presets: tuple[str, dict[str, dict[str, Any]]] = ("", {}),
) -> tuple[Any, ...]:
    """Return one instance of each dataclass in `groups`, from defaults, `--config` and `argv`.

    together  lists what is wrong with the values of all groups as a whole; it is called when each
              group alone is valid
    presets   a setting's name, and the defaults of other settings that each of its values brings
    raises SettingsError with every problem found: unknown names (with similar ones), values of the
    wrong type, missing positionals, and what the groups' own `problems()` list
    """
    parser = _Parser(description, epilog, groups)
    given, unknown = parser.parse_known_intermixed_args(argv)
    flags = {name: value for name, value in vars(given).items() if value not in (None, [])}
    problems = _unknown_flags(unknown, parser.fields)
    from_file = _read_json(flags.pop("config", None), list(parser.fields), problems)
    preset_name, by_value = presets
    chosen = flags.get(preset_name, from_file.get(preset_name, ""))
    sources = {"preset": by_value.get(chosen, {}), "--config": from_file, "": flags}
    values = _collect(parser.fields, sources, problems)
    for name, (group, field, _) in parser.fields.items():
        if _is_required(field) and name not in values[group]:
            problems.append(f"{_label(field)} is missing: {field_help(group)[name]}")
            values[group][name] = None
    required = [name for name, setting in parser.fields.items() if _is_required(setting.field)]
    if any(values[parser.fields[name].group][name] is None for name in required):
        raise SettingsError(problems)
    made = tuple(group(**values[group]) for group in groups)
    for instance in made:
        problems += getattr(instance, "problems", list)()
    if not problems and together:
        problems = together(*made)
    if problems:
        raise SettingsError(problems)
    return made


class _Setting(NamedTuple):
    group: Any
    field: Field
    kind: Any


def _unknown_flags(words: list[str], fields: Mapping[str, _Setting]) -> list[str]:
    known = [flag_name(name) for name, setting in fields.items() if not setting.field.metadata]
    problems = []
    for word in words:
        name = word.split("=")[0]
        if word.startswith("--"):
            problems.append(f"unknown setting {name}{did_you_mean(name, known)}")
        else:
            problems.append(f"unexpected argument {word!r}")
    return problems


def _collect(
    fields: Mapping[str, _Setting], sources: dict[str, dict[str, Any]], problems: list[str]
) -> dict[Any, dict[str, Any]]:
    """Return the values by group and name; a later source wins over an earlier one."""
    values: dict[Any, dict[str, Any]] = {setting.group: {} for setting in fields.values()}
    for source, settings in sources.items():
        for name, value in settings.items():
            group, field, kind = fields[name]
            try:
                values[group][name] = parse_value(kind, value)
            except ValueError as err:
                where = f"{source}: " if source else ""
                label = name if field.metadata.get("positional") else flag_name(name)
                problems.append(f"{where}{label} is {value!r}: {err}")
                values[group].setdefault(name, None if _is_required(field) else _default(field))
    return values


def _label(field: Field) -> str:
    return field.name.upper() if field.metadata.get("positional") else flag_name(field.name)


def _is_required(field: Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _default(field: Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help whose names, such as `built-in`, are never cut at a hyphen."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class _Parser(argparse.ArgumentParser):
    """A parser with a flag for each field; its errors are SettingsErrors."""

    def __init__(self, description: str, epilog: str, groups: tuple[Any, ...]):
        super().__init__(
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
        )
        text = "settings by name, as a JSON object; flags win"
        self.add_argument("--config", metavar="FILE.json", help=text)
        self.fields: dict[str, _Setting] = {}
        for group in groups:
            self._add_group(group)

    def error(self, message: str) -> NoReturn:
        raise SettingsError([message])

    def _add_group(self, group: Any) -> None:
        title = (inspect.getdoc(group) or group.__name__).splitlines()[0].rstrip(".")
        kinds, texts = get_type_hints(group), field_help(group)
        arguments = self.add_argument_group(title)
        for field in dataclasses.fields(group):
            assert field.name not in self.fields, f"two groups have the setting {field.name}"
            kind = kinds[field.name]
            self.fields[field.name] = _Setting(group, field, kind)
            if field.metadata.get("hidden"):
                names = [flag_name(field.name), f"--{field.name}"]
                arguments.add_argument(*names, dest=field.name, help=argparse.SUPPRESS)
                continue
            text = texts[field.name].replace("%", "%%")
            if field.metadata.get("positional"):
                nargs = "*" if get_origin(kind) is list else "?"
                metavar = field.name.upper()
                arguments.add_argument(field.name, nargs=nargs, metavar=metavar, help=text)
            else:
                arguments.add_argument(
                    flag_name(field.name),
                    dest=field.name,
                    help=text + _default_text(field),
                    **_argument_options(field.name, kind),
                )


def _argument_options(name: str, kind: Any) -> dict[str, Any]:
    """Return argparse's options for a flag of that type."""
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction, "default": None}
    if get_origin(kind) is Literal:
        return {"metavar": "|".join(map(str, get_args(kind)))}
    bare = _without_none(kind)
    if get_origin(bare) is tuple and Ellipsis not in get_args(bare):
        return {"metavar": name.upper(), "nargs": len(get_args(bare))}
    return {"metavar": METAVARS.get(bare, name.upper())}


def _default_text(field: Field) -> str:
    """Return ` [default]` for `--help`, "" where there is none to show."""
    if _is_required(field):
        return ""
    default = to_json_value(_default(field))
    if default in (None, ""):
        return ""
    if isinstance(default, bool):
        return " [yes]" if default else " [no]"
    return f" [{','.join(map(str, default)) if isinstance(default, list) else default}]"


def _read_json(path: str | None, known: list[str], problems: list[str]) -> dict[str, Any]:
    """Return the settings in a JSON file, or in a run's record."""
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
        found = type(content).__name__
        problems.append(f"--config {path}: expected an object of settings, found {found}")
        return {}
    settings = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name in known:
            settings[name] = value
        else:
            problems.append(f"--config {path}: unknown setting {name}{did_you_mean(name, known)}")
    return settings
