"""Remote shards: fetched into a folder of this machine, verified, and kept while there is room.

    cache = Cache(CacheSettings())
    index = cache.small(join("s3://bucket/tires", "index.json"))
    # then open(path) at once
    path = cache.fetch(join("s3://bucket/tires", shard["name"]), shard["sha256"], shard["bytes"])

A file in the cache is named SHA256.shard, so equal names in two datasets never meet. While it is
fetched it is SHA256.shard.BYTES.tmp, and the fetching process holds a lock on it: of all threads
and processes of a machine one downloads, the others wait. A download that was killed is resumed
where the server supports it. Nothing else in the folder is ever touched.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import math
import os
import re
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

from depthdist.core.file_lock import hold
from depthdist.shards.remote_files import BLOCK_BYTES, FetchFailed, RemoteFiles, without_secrets

T = TypeVar("T")

SMALL_MAX = 256 << 20  # bytes that an index.json may have
RETRY_S = 1.0  # the first wait between attempts; each is twice the one before
RETRY_MAX_S = 30.0
GRACE_S = 5.0  # a file handed out so recently is not evicted: its reader is about to open it
CACHE_FILE = re.compile(r"[0-9a-f]{64}\.shard(?:\.(\d+)\.tmp)?")


def default_cache() -> Path:
    """Return where the environment says that caches are: DEPTHDIST_CACHE, else XDG_CACHE_HOME."""
    named = os.environ.get("DEPTHDIST_CACHE")
    return Path(named or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/depthdist/shards")


@dataclass(frozen=True)
class CacheSettings:
    """Cache, and remote data (s3://, gs://, https://, hf://)."""

    cache: Path = field(default_factory=default_cache)
    """Folder on this machine that shards of captures are made in, and remote shards are fetched
    into; DEPTHDIST_CACHE in the environment moves it."""
    cache_gb: float = 200.0
    """Maximum size of the remote shards there, GB: the least recently used are removed; what was
    made of captures stays."""
    allow_pipe: bool = False
    "Let --data be `pipe:COMMAND with {}`: runs a shell command per file, {} being the file's name."
    fetch_retries: int = 5
    """Further attempts after a dropped or stalled connection or a server's error, each after
    twice the wait."""
    fetch_connect_s: float = 10.0
    "Seconds a server has to accept a connection."
    fetch_stall_s: float = 60.0
    "Seconds without a byte after which a connection is closed and retried."

    def problems(self) -> list[str]:
        """Return what is wrong with the values, a line each."""
        positive = {
            "cache-gb": self.cache_gb,
            "fetch-connect-s": self.fetch_connect_s,
            "fetch-stall-s": self.fetch_stall_s,
        }
        found = [
            f"--{name} is {value:g}: expected > 0"
            for name, value in positive.items()
            if not 0 < value < math.inf
        ]
        if self.fetch_retries < 0:
            found.append(f"--fetch-retries is {self.fetch_retries}: expected >= 0")
        return found


def is_remote(place: str) -> bool:
    """Whether a dataset's place is a URL or a `pipe:` command rather than a folder."""
    return place.startswith("pipe:") or ("://" in place and not place.startswith("file://"))


def join(place: str, name: str) -> str:
    """Return the URL of a file below a dataset.

    For `pipe:COMMAND with {}` it is the command for that file, with the name quoted for the shell.
    """
    if place.startswith("pipe:"):
        if "{}" not in place:
            raise ValueError(
                f"{without_secrets(place)}: has no {{}}; expected it where the file's name goes, as"
                " in pipe:cat /data/{}"
            )
        return place.replace("{}", shlex.quote(name))
    if not place.startswith("http"):
        return f"{place.rstrip('/')}/{name}"
    url, mark, signature = place.partition("?")
    return f"{url.rstrip('/')}/{name}{mark}{signature}"


class _File(NamedTuple):
    """A file that the cache is asked for."""

    url: str
    sha256: str
    size: int  # bytes


class Cache:
    """Remote files on this machine.

    Safe to share between threads, and its folder between processes.

    The folder may exceed its limit for a moment by what is being fetched or was handed out in the
    last GRACE_S seconds.
    """

    def __init__(self, settings: CacheSettings):
        self.settings = settings
        self.folder = settings.cache.expanduser()
        self._status: dict[str, str] = {}  # by URL
        self._files = RemoteFiles(
            settings.fetch_connect_s, settings.fetch_stall_s, settings.allow_pipe
        )

    def status(self, url: str) -> str:
        """Return what is being done with a file right now, "" if nothing."""
        return self._status.get(url, "")

    def small(self, url: str) -> bytes:
        """Return the content of a small file such as index.json, which is never cached.

        Raises ValueError as `fetch` does.
        """
        try:
            return self._retry(url, partial(self._read_small, url))
        finally:
            self._status.pop(url, None)

    def has(self, sha256: str, size: int) -> bool:
        """Return whether the complete file is in the cache; it then counts as used now."""
        return _is_cached(self.folder / f"{sha256}.shard", size)

    def fetch(self, url: str, sha256: str, size: int) -> Path:
        """Return the path of the complete, verified file; download it if it is not there.

        Open it at once: later it may have been evicted, and must be fetched again.

        size  bytes, as the index says
        raises ValueError, one line: not there, no permission, no success after all attempts, other
        bytes than the index says, no room
        """
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ValueError(
                f"{without_secrets(url)}: sha256 is {sha256!r}; expected 64 hexadecimal digits"
            )
        if size > self.settings.cache_gb * 1e9:
            raise ValueError(
                f"{without_secrets(url)}: {size / 1e9:.3g} GB do not fit the cache's"
                f" {self.settings.cache_gb:g} GB; raise --cache-gb"
            )
        try:
            return self._fetch(_File(url, sha256, size))
        except OSError as err:
            reason = f"cannot be kept in {self.folder} ({err.strerror}, {size / 1e6:.1f} MB)"
            raise ValueError(
                f"{without_secrets(url)}: {reason}; --cache names the folder, --cache-gb its limit"
            ) from None
        finally:
            self._status.pop(url, None)

    def _fetch(self, wanted: _File) -> Path:
        path = self.folder / f"{wanted.sha256}.shard"
        tmp = self.folder / f"{wanted.sha256}.shard.{wanted.size}.tmp"
        while not _is_cached(path, wanted.size):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._status.setdefault(wanted.url, "waiting for another process to download it")
            with open(tmp, "a+b") as file, hold(file, tmp, wait=True):
                if not _is_at(tmp, file):
                    continue  # the process before us renamed or removed it
                try:
                    if not _is_cached(path, wanted.size):
                        self._make_room(tmp, wanted.size)
                        self._retry(wanted.url, partial(self._download, wanted, file))
                        os.replace(tmp, path)
                finally:
                    tmp.unlink(missing_ok=True)
        return path

    def _retry(self, url: str, attempt: Callable[[], T]) -> T:
        """Return what `attempt` does, repeated with growing waits while it may help."""
        retries = self.settings.fetch_retries
        num_wrong = 0
        for number in itertools.count(1):
            try:
                return attempt()
            except FetchFailed as err:
                num_wrong += err.wrong_bytes
                if err.final or num_wrong > 1 or number > retries:
                    attempts = f" ({number} attempts)" if number > 1 else ""
                    raise ValueError(f"{without_secrets(url)}: {err}{attempts}") from None
                pause = min(RETRY_S * 2 ** (number - 1), RETRY_MAX_S)
                self._status[url] = f"retry {number} of {retries} in {pause:g} s: {err}"
            time.sleep(pause)
        raise AssertionError("the loop above has no end")

    def _read_small(self, url: str) -> bytes:
        content = bytearray()
        self._status[url] = "connecting"
        with self._files.reading(url, 0) as (_, blocks):
            for block in blocks:
                content += block
                if len(content) > SMALL_MAX:
                    raise FetchFailed(
                        f"more than {SMALL_MAX >> 20} MiB; expected an index", final=True
                    )
        return bytes(content)

    def _download(self, wanted: _File, file: BinaryIO) -> None:
        """Make one attempt, which continues after the bytes that an earlier one left in `file`."""
        url, sha256, size = wanted
        done = file.seek(0, os.SEEK_END)
        hasher = hashlib.sha256()
        self._status[url] = "connecting"
        with self._files.reading(url, done if done < size else 0) as (done, blocks):
            file.truncate(done)
            file.seek(0)
            for block in iter(partial(file.read, BLOCK_BYTES), b""):
                hasher.update(block)
            for block in blocks:
                done += len(block)
                if done > size:
                    break
                hasher.update(block)
                file.write(block)
                self._status[url] = f"downloading {done / 1e6:.1f} of {size / 1e6:.1f} MB"
        file.flush()
        os.fsync(file.fileno())  # a power cut must not leave other bytes under a good name
        if (done, hasher.hexdigest()) == (size, sha256):
            return
        file.truncate(0)
        if done < size:
            raise FetchFailed(f"ended after {done:,} bytes; the index says {size:,}")
        found = (
            f"more than {size:,} bytes"
            if done > size
            else f"sha256 is {hasher.hexdigest()}; the index says {sha256}"
        )
        raise FetchFailed(f"{found}: the data there changed or is damaged", wrong_bytes=True)

    def _make_room(self, tmp: Path, size: int) -> None:
        """Remove the least recently used files until `size` bytes fit.

        Only files that this cache wrote are removed, and none that is in use.
        """
        files = self._evictable(tmp)
        missing = size - tmp.stat().st_size
        over = max(
            sum(num_bytes for _, num_bytes, _ in files) + size - self.settings.cache_gb * 1e9,
            missing - shutil.disk_usage(self.folder).free,
        )
        for used_at, num_bytes, path in sorted(files):
            if over <= 0 or used_at > time.time() - GRACE_S:
                break
            # OSError: gone already, not ours to remove, or locked because it is being fetched
            with (
                contextlib.suppress(OSError),
                open(path, "r+b") as file,
                hold(file, Path(path), wait=False),
            ):
                os.unlink(path)
                over -= num_bytes
        if shutil.disk_usage(self.folder).free < missing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _evictable(self, tmp: Path) -> list[tuple[float, int, str]]:
        """Return (time of last use, bytes, path) of the cache's files but `tmp`."""
        files = []
        for entry in os.scandir(self.folder):
            match = CACHE_FILE.fullmatch(entry.name)
            if match and entry.name != tmp.name and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):  # another process makes room too
                    stat = entry.stat(follow_symlinks=False)
                    num_bytes = max(stat.st_size, int(match[1] or 0))
                    files.append((stat.st_mtime, num_bytes, entry.path))
        return files


def _is_cached(path: Path, size: int) -> bool:
    """Whether the complete file is there; it then counts as used now."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size == size:
            with contextlib.suppress(PermissionError):  # another user fetched it
                os.utime(path)
            return True
    return False


def _is_at(path: Path, file: BinaryIO) -> bool:
    """Whether `path` still names the open file."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False
