"""Dataclasses of settings become `--help` and flags; all problems are reported together."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import (
    Any,
    Literal,
    NamedTuple,
    NoReturn,
    get_args,
    get_origin,
    get_type_hints,
)

from depthdist.core.command import program
from depthdist.core.completion import complete, is_completing
from depthdist.core.errors import SettingsError
from depthdist.core.files import parse_json
from depthdist.core.settings import (
    Field,
    Size,
    did_you_mean,
    field_help,
    flag_name,
    parse_value,
    to_json_value,
    without_none,
)

METAVARS = {Size: "HxW", Path: "PATH", int: "N", float: "X"}
"""What `--help` shows for a value, by its type."""
BARE = "bare words"  # where the parser keeps them; no setting has a blank in its name


def parse(
    description: str,
    *groups: Any,
    argv: list[str] | None = None,
    epilog: str = "",
    together: Callable[..., list[str]] | None = None,
    presets: tuple[str, dict[str, dict[str, Any]]] = ("", {}),
    word: str = "",
    bare: str = "",
    remembered: Callable[[dict[str, Any]], dict[str, Any]] = lambda given: {},
    first: Sequence[str] = (),
) -> tuple[Any, ...]:
    """Return one instance of each dataclass in `groups`, from defaults, `--config` and `argv`.

    together  lists what is wrong with the values of all groups as a whole; it is called when each
              group alone is valid
    presets   a setting's name, and the defaults of other settings that each of its values brings
    word      the word of the program that these settings are for: `run` in `report.py run`
    bare      a setting that words without a flag give too, joined by commas
    remembered  returns values, by the setting's name, that only `--config` and flags win over; it
                is called with these two, as they were typed
    first     names of the settings that `--help` lists before all others, in that order
    raises SettingsError with every problem found: unknown names (with similar ones), values of the
    wrong type, missing positionals, and what the groups' own `problems()` list
    """
    parser = _Parser(description, epilog, groups, f"{program()} {word}".strip(), bare, first)
    if is_completing():
        complete(parser)
    given, unknown = parser.parse_known_intermixed_args(argv)
    flags = {name: value for name, value in vars(given).items() if value not in (None, [])}
    problems = _unknown_flags(unknown, parser.fields)
    if words := flags.pop(BARE, None):
        if bare in flags:
            problems.append(f"{flag_name(bare)} and {' '.join(words)} are both given: give one")
        flags[bare] = ",".join(words)
    from_file = _read_json(flags.pop("config", None), list(parser.fields), problems)
    preset_name, by_value = presets
    from_before = remembered({**from_file, **flags})
    chosen = {**from_before, **from_file, **flags}.get(preset_name, "")
    preset = by_value.get(chosen, {}) if isinstance(chosen, str) else {}
    sources = {"preset": preset, "before": from_before, "--config": from_file, "": flags}
    values = _collect(parser.fields, sources, problems)
    for name, (group, field, _, owner) in parser.fields.items():
        if _is_required(field) and name not in values[group]:
            problems.append(f"{_label(field)} is missing: {field_help(owner)[name]}")
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
    """A field of `group`, which `owner`, the group or a parent of it, declares."""

    group: Any
    field: Field
    kind: Any
    owner: Any


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
            group, field, kind, _ = fields[name]
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

    def __init__(
        self,
        description: str,
        epilog: str,
        groups: tuple[Any, ...],
        name: str,
        bare: str,
        first: Sequence[str],
    ):
        super().__init__(
            prog=name,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
        )
        if bare:
            text = f"the same as {flag_name(bare)}, several are joined"
            self.add_argument(BARE, nargs="*", metavar=bare.upper(), help=text)
        text = "settings by name, as a JSON object; flags win"
        self.add_argument("--config", metavar="FILE.json", help=text)
        self.fields = _settings_by_name(groups)
        if first:
            words = [n for n, s in self.fields.items() if s.field.metadata.get("positional")]
            words += [bare] if bare else []
            self.usage = " ".join(["%(prog)s", *map(str.upper, words), "[--SETTING VALUE]..."])
            self._add_group("Most used", first)
        names_by_title: dict[str, list[str]] = {}
        for name, setting in self.fields.items():
            if name not in first:
                names_by_title.setdefault(_title(setting.owner), []).append(name)
        for title, names in names_by_title.items():
            self._add_group(title, names)

    def error(self, message: str) -> NoReturn:
        raise SettingsError([message])

    def _add_group(self, title: str, names: Sequence[str]) -> None:
        arguments = self.add_argument_group(title)
        for name in names:
            _, field, kind, owner = self.fields[name]
            if field.metadata.get("hidden"):
                names = [flag_name(name), f"--{name}"]
                arguments.add_argument(*names, dest=name, help=argparse.SUPPRESS)
                continue
            text = field_help(owner)[name].replace("%", "%%")
            if field.metadata.get("positional"):
                nargs = "*" if get_origin(kind) is list else "?"
                arguments.add_argument(name, nargs=nargs, metavar=name.upper(), help=text)
            else:
                argument = arguments.add_argument(
                    flag_name(name),
                    dest=name,
                    help=text + _default_text(field),
                    **_argument_options(name, kind),
                )
                if choices := _choices(kind):  # an attribute that argcomplete reads
                    argument.completer = partial(_offer, choices)  # type: ignore[attr-defined]


def _settings_by_name(groups: tuple[Any, ...]) -> dict[str, _Setting]:
    """Return the settings in the order of `--help`.

    Those that groups inherit come last, the first group's at the very end: caches of data.
    """
    own: list[_Setting] = []
    inherited: list[_Setting] = []
    for group in groups:
        kinds = get_type_hints(group)
        fields = dataclasses.fields(group)
        settings = [_Setting(group, f, kinds[f.name], _owner(group, f.name)) for f in fields]
        settings.sort(key=lambda setting: setting.group.__mro__.index(setting.owner))
        own += [setting for setting in settings if setting.owner is group]
        inherited[:0] = [setting for setting in settings if setting.owner is not group]
    found = own + inherited
    by_name = {setting.field.name: setting for setting in found}
    assert len(by_name) == len(found), f"two groups have one setting: {list(by_name)}"
    return by_name


def _owner(group: Any, name: str) -> Any:
    """Return the class, the group or a parent of it, that declares the field."""
    return next(cls for cls in group.__mro__ if name in vars(cls).get("__annotations__", {}))


def _title(group: Any) -> str:
    return (inspect.getdoc(group) or group.__name__).splitlines()[0].rstrip(".")


def _argument_options(name: str, kind: Any) -> dict[str, Any]:
    """Return argparse's options for a flag of that type."""
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction, "default": None}
    if get_origin(kind) is Literal:
        return {"metavar": "|".join(map(str, get_args(kind)))}
    bare = without_none(kind)
    if get_origin(bare) is tuple and Ellipsis not in get_args(bare):
        return {"metavar": name.upper(), "nargs": len(get_args(bare))}
    return {"metavar": METAVARS.get(bare, name.upper())}


def _choices(kind: Any) -> list[str]:
    """Return the words that a value, or each of its parts, is one of; [] where it may be any."""
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    return next(filter(None, map(_choices, get_args(kind))), [])


def _offer(choices: list[str], **_: Any) -> list[str]:
    return choices


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
        content = parse_json(Path(path).read_bytes())
    except OSError as err:
        problems.append(f"--config {path}: {err.strerror}")
        return {}
    except ValueError as err:
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
