"""Read what OUT holds before a run: nothing, a dataset to replace, or one to append to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from depthdist.core.errors import one_line, printable_path
from depthdist.core.files import parse_json
from depthdist.core.settings import Size, flag_name
from depthdist.geometry.image_size import RECIPE_SIZE
from depthdist.shards import SCHEMA, VERSION
from depthdist.shards.index import Index, read_index
from depthdist.shards.plan import NO_DATASET, ExistingDataset
from depthdist.shards.rejects import read_rejects
from depthdist.shards.settings import ShardSettings
from depthdist.shards.statistics import merge_stats, statistics

NEW_SETTINGS = {"check_view"}  # that older datasets do not have: these take any value


@dataclass(frozen=True)
class PreviousOutput:
    """What OUT holds already.

    content  of its index.json, None without one
    The others are set where --append adds to it: its index, the lines of rejects.jsonl, and what
    the plan must respect.
    """

    content: bytes | None
    index: Index | None = None
    rejects: list[dict[str, str]] = field(default_factory=list)
    held: ExistingDataset = NO_DATASET

    def is_of(self, plan_hash: str) -> bool:
        """Return whether the same files and settings made it."""
        return self._raw.get("config_hash") == plan_hash

    def has(self, name: str) -> bool:
        """Return whether index.json has that entry."""
        return name in self._raw

    @property
    def shards(self) -> list[str]:
        """The names of the shards that stay where --append adds to them."""
        return [entry["name"] for entry in self.index.shards] if self.index else []

    @property
    def _raw(self) -> dict[str, Any]:
        return parse_json(self.content or b"") if _is_current_version(self.content) else {}


def read_previous_output(settings: ShardSettings) -> PreviousOutput:
    """Return what OUT holds.

    raises ValueError where OUT cannot be appended to, or would be overwritten although captures
    were appended to it
    """
    out = Path(settings.out)
    content = read_if_present(out / "index.json") if out.is_dir() else None
    if not _is_current_version(content):
        if settings.append:
            _refuse_incomplete(out, content)
        return PreviousOutput(content)
    if not settings.append:
        times = parse_json(content or b"").get("appended", 0)
        if times:
            raise ValueError(
                f"{printable_path(out)}: captures were added to it {times} times; --append adds"
                " more, or take another OUT (or remove this one) to begin anew"
            )
        return PreviousOutput(content, held=_kept_size(content, settings))
    index = read_index(out)
    if index.raw.get("foreign"):
        raise ValueError(
            f"{printable_path(out)}: holds somebody else's tars; --append adds to what"
            " depthdist shard wrote"
        )
    _refuse_other_settings(out, index, settings)
    return PreviousOutput(
        content=content,
        index=index,
        held=_existing_dataset(out, index),
        rejects=read_rejects(out / "rejects.jsonl"),
    )


def read_record(tar: Path, check: Callable[[Any], None] = lambda record: None) -> dict[str, Any]:
    """Return the commit record of a shard of OUT.

    check  raises an error where something is wrong with it
    raises ValueError, one line
    """
    path = tar.with_suffix(".json")
    try:
        record = parse_json(path.read_bytes())
        check(record)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        OSError,
        TypeError,
        ValueError,
    ) as err:
        raise ValueError(
            f"{path}: the commit record cannot be read ({type(err).__name__}: {one_line(err)});"
            " --append needs it"
        ) from err
    return record


def refuse_foreign_index(path: Path) -> None:
    """Raise ValueError when OUT's index.json was not written by depthdist shard, or indexes tars.

    Both would be lost.
    """
    content = read_if_present(path) or b""
    try:
        old = parse_json(content)
        ours = old["schema"] == SCHEMA
        foreign = old.get("foreign", False)
    except (ValueError, KeyError, TypeError):
        ours = not content.strip(b"\0")  # absent, or what a power cut leaves
        foreign = False
    if foreign:
        raise ValueError(
            f"{printable_path(path.parent)}: holds somebody else's tars, with an index by --index;"
            " take another OUT"
        )
    if not ours:
        raise ValueError(
            f"{printable_path(path)}: was not written by depthdist shard; take another OUT"
        )


def read_if_present(path: Path) -> bytes | None:
    """Return the content of a file, None where there is none."""
    return path.read_bytes() if path.exists() else None


def _is_current_version(content: bytes | None) -> bool:
    try:
        raw = parse_json(content or b"")
        return raw["schema"] == SCHEMA and raw["version"] == VERSION
    except (ValueError, KeyError, TypeError):
        return False


def _refuse_incomplete(out: Path, content: bytes | None) -> None:
    """Raise ValueError where there are shards without an index, or an index of another version."""
    if content is not None:
        found = "is not one of this version"
    elif any(out.glob("*/shard-*.tar")):
        found = "is missing, though there are shards"
    else:
        return
    raise ValueError(
        f"{printable_path(out / 'index.json')}: {found}; --append adds to a whole dataset only:"
        " shard all captures again, into another OUT"
    )


def _refuse_other_settings(out: Path, index: Index, settings: ShardSettings) -> None:
    """Raise ValueError where the dataset was made with other settings."""
    unsaid = {"rgb_size": "train"}
    old = unsaid | index.raw["settings"]
    new = unsaid | settings.content()
    if settings.size is None:  # the dataset's own is taken
        new["size"] = old.get("size")
    changed = [
        f"{flag_name(name)} was {old.get(name)}, is {new.get(name)}"
        for name in sorted({*old, *new} - NEW_SETTINGS.difference(old))
        if old.get(name) != new.get(name)
    ]
    if changed:
        raise ValueError(
            f"{printable_path(out)}: was made with other settings: {'; '.join(changed)}; --append"
            " needs the same"
        )


def _check_record(record: dict[str, Any], entry: dict[str, Any], step_mm: float) -> None:
    """Raise an error unless a shard's record is of this shard, and can be merged with others."""
    if any(record[name] != value for name, value in entry.items()):
        raise ValueError("it and index.json disagree")
    for key, stem, session, *_ in record["samples"]:
        if not isinstance(key, str) or not isinstance(stem, str) or not 0 <= int(key) < 2**63:
            raise TypeError(f"a sample is {key!r:.40} of {stem!r:.40}")
        if session != int(session):
            raise TypeError(f"a session is {session!r:.40}")
    statistics(merge_stats([record["stats"]]), step_mm)


def _existing_dataset(out: Path, index: Index) -> ExistingDataset:
    """Return what a plan must know of the dataset that it adds to; check every commit record."""
    sides: dict[str, tuple[int, str]] = {}
    num_shards: dict[str, int] = {}
    next_key = 0
    for entry in index.shards:
        check = partial(_check_record, entry=entry, step_mm=index.step_mm)
        record = read_record(out / entry["name"], check)
        split = entry["name"].split("/")[0]
        num_shards[split] = num_shards.get(split, 0) + 1
        for key, stem, session, *_ in record["samples"]:
            sides[stem] = (session, split)
            next_key = max(next_key, int(key) + 1)
    return ExistingDataset(
        sides=sides,
        num_shards=num_shards,
        next_key=next_key,
        depth_size=index.depth_size,
        groups=dict(index.raw.get("groups", {})),
        size=index.size,
    )


def _kept_size(content: bytes | None, settings: ShardSettings) -> ExistingDataset:
    """Return what is kept of a dataset that is made again: the size that was the default once.

    Images of every camera once got the recipe's size. Made again by the same command, such a
    dataset stays as it is, and the runs that learned from it keep theirs.
    """
    raw = parse_json(content or b"")
    size = Size(*raw["size"])
    kept = settings.size is None and size == RECIPE_SIZE and "stretched" not in raw
    return NO_DATASET._replace(size=size if kept else None)
