"""Shards of folders of captures: made once, kept in the cache, found again.

    folder = cached_shards(ShardSettings(raw="RAW", split="session"), Path("~/.cache/depthdist"))

    CACHE/datasets/NAME-HASH/       the shards, as depthdist shard writes them
    CACHE/datasets/NAME-HASH.json   what they were made of, written last: without it they are begun

HASH is of the captures' folder, their names, sizes and times, and of the settings. Nothing that is
whole is written again: where captures came, the shards of those before are linked into another
folder and the new ones appended there, so that earlier runs keep their data. Of the processes that
a launcher starts on a machine the first makes the shards, before any of them meet; the others wait.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, NamedTuple

from depthdist.captures.layouts import CapturePair, find_pairs
from depthdist.core.environment import local_rank
from depthdist.core.errors import BadFile, SettingsError, printable_path
from depthdist.core.file_lock import POLL_S, Held, began, hold
from depthdist.core.files import parse_json, sync_folder, write_atomic
from depthdist.core.stop_signals import leave_if_stopped
from depthdist.distributed.cpu_group import MEANWHILE, CpuGroup
from depthdist.shards import SCHEMA, VERSION
from depthdist.shards.format import as_json
from depthdist.shards.index import read_index
from depthdist.shards.remote_cache import is_remote
from depthdist.shards.settings import ShardSettings, settle_split
from depthdist.shards.split_names import in_order

BEGIN_S = 600.0  # seconds that other ranks wait until the first one of their machine begins
END_S = 5.0  # and after it has ended without shards
SAID_AFTER_S = 1.0
MAX_SHOWN = 5  # rejects that are printed
Say = Callable[[str], None]


def holds_captures(place: str) -> bool:
    """Return whether a place is a folder of captures, not one of shards (nor of others' tars)."""
    folder = Path(place.removeprefix("file://"))
    if is_remote(place) or not may_hold_captures(folder):
        return False
    return _has_captures(folder)


def _has_captures(folder: Path) -> bool:
    try:
        return bool(find_pairs(folder)[0])
    except BadFile:  # no images at all; who opens it as shards says so
        return False


def may_hold_captures(folder: Path) -> bool:
    """Return whether there is a folder that is none of shards."""
    if not folder.is_dir() or (folder / "index.json").exists() or (folder / ".build").exists():
        return False
    return next(folder.rglob("*.tar"), None) is None or _has_captures(folder)


def why_no_captures(folder: Path) -> str:
    """Return what was found in a folder without a whole capture, and what was expected."""
    try:
        _, rejects = find_pairs(folder)
    except BadFile as err:
        return err.reason if err.path == folder else str(err)
    return f"{len(rejects)} files, such as {printable_path(rejects[0].path)}: {rejects[0].reason}"


class CachedDataset(NamedTuple):
    """What the shards of a folder of captures are made of, and where they are.

    source  raw, the real path; format; settings; groups, the lines of --groups; captures, of each
            by its stem [path, bytes, time] of the files
    folder  of the shards
    """

    source: dict[str, Any]
    folder: Path

    @property
    def record(self) -> Path:
        """The file that says what the shards were made of."""
        return self.folder.with_name(f"{self.folder.name}.json")

    def is_whole(self) -> bool:
        """Return whether the shards are there, all of them."""
        if not self.record.exists():
            return False
        try:
            read_index(self.folder)
        except ValueError:
            return False
        return True


def find_cached(settings: ShardSettings, cache: Path) -> CachedDataset:
    """Return where the shards of settings.raw are, or would be made; raise BadFile."""
    raw = Path(settings.raw)
    pairs, _ = find_pairs(raw)
    settings = settle_split(settings, pairs)
    groups = Path(settings.groups).read_text("utf-8", "replace") if settings.groups else ""
    source = {
        "raw": str(raw.resolve()),
        "format": [SCHEMA, VERSION],
        "settings": settings.content(),
        "groups": sorted({line.strip() for line in groups.splitlines()}),
        "captures": {
            pair.stem: [*(_identity(path, raw) for path in pair.files.values()), *_said(pair)]
            for pair in pairs
        },
    }
    digest = hashlib.sha256(as_json(source)).hexdigest()[:16]
    folder = cache.expanduser() / "datasets" / f"{_file_name(raw)}-{digest}"
    return CachedDataset(source, folder)


def cached_shards(settings: ShardSettings, cache: Path) -> Path:
    """Return the folder of the shards of settings.raw, which are made where they are not there yet.

    The first process of this machine makes them and prints what it does; the others wait for it.

    raises ValueError, one line: RAW cannot be used, the cache cannot be written, no room
    """
    found = find_cached(settings, cache)
    raw = printable_path(settings.raw)
    if local_rank():
        _await_first_rank(found, raw)
    elif found.is_whole():
        _say(f"shards of {raw}, made before: {found.folder}")
    else:
        with _locked(_lock_path(found), raw) as lock:
            lock.truncate(0)
            if not found.is_whole():  # another command has made them meanwhile
                try:
                    _make(found, settings)
                except ValueError:
                    with suppress(OSError):  # on a full disk others find it out by waiting
                        lock.write(_attempt(found))
                        lock.flush()
                    raise
    return found.folder


def _said(pair: CapturePair) -> list[Any]:
    """Return unit and split where the capture's layout says them."""
    said = [pair.unit_mm, pair.split]
    return [said] if said != [None, None] else []


def _identity(path: Path, root: Path) -> list[Any]:
    status = path.stat()
    return [path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns]


def _file_name(raw: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", raw.resolve().name).strip(".-") or "captures"


def _say(text: str) -> None:
    print(f"captures     {text}", flush=True)


# ------------------------------------------------------------------------------------------ waiting


def _lock_path(found: CachedDataset) -> Path:
    """Return the file that is locked while shards of that folder are made, of any settings."""
    raw = found.source["raw"]
    return found.folder.with_name(f".lock-{hashlib.sha256(os.fsencode(raw)).hexdigest()[:16]}")


@contextmanager
def _locked(path: Path, raw: str) -> Iterator[IO[bytes]]:
    """Hold the lock and yield its file.

    Where another command makes shards of the same captures, wait, and say so.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")  # noqa: SIM115
    except OSError as err:
        raise ValueError(
            f"{printable_path(err.filename or path)}: cannot be written ({err.strerror}), so there"
            f" is no place for the shards of {raw}; --cache names another folder"
        ) from err
    with file:
        say_at = time.monotonic() + SAID_AFTER_S
        while True:
            lock = hold(file, path, wait=False)
            try:
                lock.__enter__()
                break
            except Held:
                if time.monotonic() > say_at:
                    _say(f"another command makes shards of {raw}: waiting for it")
                    say_at = float("inf")
                leave_if_stopped(MEANWHILE)
                time.sleep(POLL_S)
        try:
            yield file
        finally:
            lock.__exit__(None, None, None)


def _attempt(found: CachedDataset) -> bytes:
    """Return what the lock's file has after the ranks of this launcher's process made no shards."""
    launcher = os.getppid()
    return f"{found.folder.name} {launcher} {began(launcher)}".encode()


def _await_first_rank(found: CachedDataset, raw: str) -> None:
    """Wait until the first process of this machine has made the shards.

    raises SettingsError where it has not: it has said why
    """
    path = _lock_path(found)
    until = time.monotonic() + BEGIN_S
    while not found.is_whole():
        if _is_held(path):
            until = time.monotonic() + END_S
        elif time.monotonic() > until or _has_failed(path, found):
            raise SettingsError(
                [f"local rank 0 made no shards of the captures in {raw} as they are"]
            )
        leave_if_stopped(MEANWHILE)
        time.sleep(POLL_S)


def _is_held(path: Path) -> bool:
    try:
        with open(path, "ab") as file, hold(file, path, wait=False):
            return False
    except Held:
        return True
    except OSError:  # no such folder: nothing is made there yet, if it can be
        return False


def _has_failed(lock: Path, found: CachedDataset) -> bool:
    """Return whether the first rank has made nothing, or cannot write a file there."""
    parent = next(path for path in (lock.parent, *lock.parent.parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        return True
    return lock.exists() and lock.read_bytes() == _attempt(found)


# ------------------------------------------------------------------------------------------- making


def _make(found: CachedDataset, settings: ShardSettings) -> None:
    """Make the shards, and print what was made of them; go on where an earlier call stopped."""
    from depthdist.shards.build import build_shards  # imports tqdm

    if found.record.exists():  # they were whole, and are not any more
        found.record.unlink()
        shutil.rmtree(found.folder, ignore_errors=True)
    raw = printable_path(settings.raw)
    try:
        _say(_begin(found, raw))
        given = replace(
            settings, out=str(found.folder), append=(found.folder / "index.json").exists()
        )
        index = build_shards(given, CpuGroup(alone=True))
        assert index is not None, "a single process gets it"
        write_atomic(found.record, as_json(found.source))
    except (OSError, ValueError) as err:
        if isinstance(err, OSError) or "cannot be written" in str(err):
            text = str(err) if isinstance(err, ValueError) else f"{err.filename}: {err.strerror}"
            raise ValueError(f"{text}; --cache names another folder for the shards") from err
        raise
    for line in _describe(found, index, settings):
        print(line, flush=True)


def _begin(found: CachedDataset, raw: str) -> str:
    """Link the shards of an earlier state of the folder; return what is about to be done."""
    num = len(found.source["captures"])
    where = f"in {found.folder}"
    if (found.folder / "index.json").exists():
        return f"{num} in {raw}: going on with their shards {where}"
    earlier = _earlier(found)
    fitting = [other for other in earlier if _is_continued(other.source, found.source)]
    if fitting:
        previous = max(fitting, key=lambda other: len(other.source["captures"]))
        _link(previous.folder, found.folder)
        more = num - len(previous.source["captures"])
        return (
            f"{more} more in {raw} than before: appended to its shards, {where}; runs that began"
            f" before keep theirs, {previous.folder}"
        )
    if earlier:
        old = max(earlier, key=lambda other: other.record.stat().st_mtime).source["captures"]
        new = found.source["captures"]
        gone = len(old.keys() - new.keys())
        changed = sum(old[stem] != new[stem] for stem in old.keys() & new.keys())
        return (
            f"{num} in {raw}: {changed} changed and {gone} are gone since their shards were made:"
            f" making new ones {where}"
        )
    return f"{num} in {raw}: making shards of them, once, {where}"


def _earlier(found: CachedDataset) -> list[CachedDataset]:
    """Return the whole datasets of the same folder and settings."""
    same = ("raw", "format", "settings")
    earlier = []
    for record in sorted(found.folder.parent.glob("*.json")):
        other = CachedDataset(_read_record(record), record.with_name(record.name[:-5]))
        alike = all(other.source.get(name) == found.source[name] for name in same)
        if alike and other.is_whole():
            earlier.append(other)
    return earlier


def _read_record(path: Path) -> dict[str, Any]:
    try:
        return dict(parse_json(path.read_bytes()))
    except (OSError, TypeError, ValueError):
        return {}  # not ours, or removed just now


def _is_continued(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Return whether captures were only added, and so were lines of --groups."""
    captures = old["captures"].items() <= new["captures"].items()
    return captures and set(old["groups"]) <= set(new["groups"])


def _link(old: Path, new: Path) -> None:
    """Give the files of a dataset names in another folder as well, index.json last.

    Where the file system has no hard links they are copied.
    """
    files = [path for path in old.rglob("*") if path.is_file() and path.name != ".lock"]
    for path in sorted(files, key=lambda path: path.name == "index.json"):
        target = new / path.relative_to(old)
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f"{target.name}.tmp-{os.getpid()}")
        unfinished.unlink(missing_ok=True)
        try:
            os.link(path, unfinished)
        except OSError:
            shutil.copyfile(path, unfinished)
        os.replace(unfinished, target)
    sync_folder(new)


# ------------------------------------------------------------------------------------------- saying


def _describe(found: CachedDataset, index: dict[str, Any], settings: ShardSettings) -> list[str]:
    """Return what was made, what was not, and what a reader must not miss, a line each."""
    from depthdist.shards.dataset_warnings import capture_warnings, dataset_warnings, missing_line

    folder, rejected = str(found.folder), index["rejected"]
    missing = missing_line(index)
    lines = [
        *index["note"].splitlines(),
        *([missing] if missing else []),
        *dataset_warnings(index, settings),
        *capture_warnings(index["warned"], folder),
        *(
            f"rejected  {printable_path(reject['path'])}: {reject['reason']}"
            for reject in rejected[:MAX_SHOWN]
        ),
    ]
    if rejected:
        lines.append(
            f"WARNING   {len(rejected)} files are not used, all in {folder}/rejects.jsonl: training"
            " goes on without them"
        )
    counts = [f"{index['splits'][name]['count']} {name}" for name in in_order(index["splits"])]
    datasets, num_bytes = _cache_size(found.folder.parent)
    return [
        *lines,
        f"captures     sharded: {', '.join(counts)}; images {'x'.join(map(str, index['size']))}."
        f" {found.folder.parent} now has {datasets} dataset{'s' * (datasets > 1)},"
        f" {num_bytes / 1e6:.1f} MB; what is removed there is made again when it is needed",
    ]


def _cache_size(folder: Path) -> tuple[int, int]:
    """Return how many datasets a folder has, and their bytes, linked files counted once."""
    files = {}
    for path in folder.glob("*/**/*"):
        status = path.stat()
        files[status.st_ino] = status.st_size if path.is_file() else 0
    return sum(path.is_dir() for path in folder.iterdir()), sum(files.values())
