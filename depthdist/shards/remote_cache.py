"""Shards that lie elsewhere: fetched through fsspec into a folder of this machine, checked, and
kept while there is room.

    cache = Cache(CacheSettings())
    index = cache.small(join("s3://bucket/tires", "index.json"))
    # then open(path) at once
    path = cache.fetch(join("s3://bucket/tires", shard["name"]), shard["sha256"], shard["bytes"])

A file in the cache is named SHA256.shard, so equal names in two datasets never meet. While it is
fetched it is SHA256.shard.BYTES.tmp, and whoever fetches holds a lock on it: of all threads and
processes of a machine one downloads, the others wait. What a killed one left is resumed where the
server can. Nothing else in the folder is ever touched.

Credentials come from where each library looks for them (AWS_*, gcloud, HF_TOKEN,
https://user:password@...), fsspec's own settings from its files or variables, such as
FSSPEC_S3='{"anon": true}' for a public bucket. No message shows them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

T = TypeVar("T")

BLOCK = 1 << 20  # bytes asked for at once
SMALL_MAX = 256 << 20  # bytes that an index.json may have
RETRY_S, RETRY_MOST_S = 1.0, 30.0  # the first wait between attempts; each is twice the one before
GRACE_S = 5.0  # a file handed out so recently is not evicted: its reader is about to open it
PACKAGES = {
    "http": "aiohttp",
    "https": "aiohttp",
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "hf": "huggingface_hub",
}
OURS = re.compile(r"[0-9a-f]{64}\.shard(?:\.(\d+)\.tmp)?")


@dataclass(frozen=True)
class CacheSettings:
    """Remote data (s3://, gs://, https://, hf://)"""

    cache: Path = Path("~/.cache/depthdist/shards")
    """Folder on this machine that remote shards are fetched into; files are named by the sha256
    of their content."""
    cache_gb: float = 200.0
    "Most that the folder may hold, GB: the least recently used shards are removed."
    allow_pipe: bool = False
    "Let --data be `pipe:COMMAND with {}`: runs a shell command per file, {} being the file's name."
    fetch_retries: int = 5
    """Further attempts after a dropped or stalled connection or a server's error, each after
    twice the wait."""
    fetch_connect_s: float = 10.0
    "Seconds a server has to accept a connection."
    fetch_stall_s: float = 60.0
    "Seconds without a byte after which a connection is given up and tried anew."

    def problems(self) -> list[str]:
        above = {
            "cache-gb": self.cache_gb,
            "fetch-connect-s": self.fetch_connect_s,
            "fetch-stall-s": self.fetch_stall_s,
        }
        found = [
            f"--{name} is {value:g}: expected > 0"
            for name, value in above.items()
            if not 0 < value < math.inf
        ]
        return (
            found
            if self.fetch_retries >= 0
            else [*found, f"--fetch-retries is {self.fetch_retries}: expected >= 0"]
        )


def is_remote(place: str) -> bool:
    """Whether a dataset's place is a URL or a `pipe:` command rather than a folder."""
    return place.startswith("pipe:") or ("://" in place and not place.startswith("file://"))


def join(place: str, name: str) -> str:
    """The URL of a file below a dataset.

    Of `pipe:COMMAND with {}` the command for it, with the name quoted for the shell.
    """
    if place.startswith("pipe:"):
        if "{}" not in place:
            raise ValueError(
                f"{_shown(place)}: has no {{}}; expected it where the file's name goes, as in"
                " pipe:cat /data/{}"
            )
        return place.replace("{}", shlex.quote(name))
    url, mark, query = (
        place.partition("?") if place.startswith("http") else (place, "", "")
    )  # a signature comes last
    return f"{url.rstrip('/')}/{name}{mark}{query}"


class Cache:
    """Remote files on this machine.

    Safe to share between threads, and its folder between processes.

    The folder may pass its limit for moments by what is being fetched or was handed out in the last
    GRACE_S seconds.
    """

    def __init__(self, settings: CacheSettings):
        self.settings = settings
        self.folder = settings.cache.expanduser()
        self._doing: dict[str, str] = {}  # by URL
        self._filesystems: dict[
            str, AbstractFileSystem
        ] = {}  # by the URL's part up to the host or bucket

    def status(self, url: str) -> str:
        """What is happening with a file right now, "" if nothing."""
        return self._doing.get(url, "")

    def small(self, url: str) -> bytes:
        """The content of a small file such as index.json, never cached. raises ValueError as
        `fetch` does.
        """
        try:
            return self._attempts(url, lambda: self._read_small(url))
        finally:
            self._doing.pop(url, None)

    def fetch(self, url: str, sha256: str, size: int) -> Path:
        """The file on this machine, whole and verified; downloaded where it is not there.

        size  bytes, as the index says
        A reader opens it at once: later it may have been evicted, and is fetched again.
        raises ValueError, one line: not there, no permission, no success after all attempts, other
        bytes than the index says, no room
        """
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ValueError(f"{_shown(url)}: sha256 is {sha256!r}; expected 64 hexadecimal digits")
        if size > self.settings.cache_gb * 1e9:
            raise ValueError(
                f"{_shown(url)}: {size / 1e9:.3g} GB do not fit the cache's"
                f" {self.settings.cache_gb:g} GB; raise --cache-gb"
            )
        path, tmp = self.folder / f"{sha256}.shard", self.folder / f"{sha256}.shard.{size}.tmp"
        try:
            while not _hit(path, size):
                self.folder.mkdir(parents=True, exist_ok=True)
                with open(tmp, "a+b") as file:
                    self._doing.setdefault(url, "waiting for another process to download it")
                    fcntl.flock(file, fcntl.LOCK_EX)
                    if not _is_at(tmp, file):
                        continue  # the one before us renamed or removed it
                    try:
                        if not _hit(path, size):
                            self._make_room(tmp, size)
                            self._attempts(url, lambda: self._download(url, file, sha256, size))
                            os.replace(tmp, path)
                    finally:
                        tmp.unlink(missing_ok=True)
            return path
        except OSError as err:
            where = f"cannot be kept in {self.folder} ({err.strerror}, {size / 1e6:.1f} MB)"
            raise ValueError(
                f"{_shown(url)}: {where}; --cache names the folder, --cache-gb its limit"
            ) from None
        finally:
            self._doing.pop(url, None)

    def _attempts(self, url: str, once: Callable[[], T]) -> T:
        retries, wrong = self.settings.fetch_retries, 0
        for attempt in itertools.count(1):
            try:
                return once()
            except _Failed as err:
                wrong += err.wrong
                if err.final or wrong > 1 or attempt > retries:
                    raise ValueError(
                        f"{_shown(url)}: {err}{f' ({attempt} attempts)' if attempt > 1 else ''}"
                    ) from None
                pause = min(RETRY_S * 2 ** (attempt - 1), RETRY_MOST_S)
                self._doing[url] = f"retry {attempt} of {retries} in {pause:g} s: {err}"
            time.sleep(pause)

    def _read_small(self, url: str) -> bytes:
        content = bytearray()
        with self._reading(url, 0) as (_, blocks):
            for block in blocks:
                content += block
                if len(content) > SMALL_MAX:
                    raise _Failed(f"more than {SMALL_MAX >> 20} MiB; expected an index", final=True)
        return bytes(content)

    def _download(self, url: str, file: BinaryIO, sha256: str, size: int) -> None:
        """One attempt, which goes on after the bytes that an earlier one left in `file`."""
        done, hasher = file.seek(0, os.SEEK_END), hashlib.sha256()
        with self._reading(url, done if done < size else 0) as (done, blocks):
            file.truncate(done)
            file.seek(0)
            for block in iter(partial(file.read, BLOCK), b""):
                hasher.update(block)
            for block in blocks:
                done += len(block)
                if done > size:
                    break
                hasher.update(block)
                file.write(block)
                self._doing[url] = f"downloading {done / 1e6:.1f} of {size / 1e6:.1f} MB"
        file.flush()
        os.fsync(file.fileno())  # a power cut must not leave other bytes under a good name
        if (done, hasher.hexdigest()) == (size, sha256):
            return
        file.truncate(0)
        if done < size:
            raise _Failed(f"ended after {done:,} bytes; the index says {size:,}")
        found = (
            f"more than {size:,} bytes"
            if done > size
            else f"sha256 is {hasher.hexdigest()}; the index says {sha256}"
        )
        raise _Failed(f"{found}: the data there changed or is damaged", wrong=True)

    @contextlib.contextmanager
    def _reading(self, url: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Where the file's bytes begin, `start` or else 0, and the bytes in blocks. raises _Failed"""
        self._doing[url] = "connecting"
        stall = self.settings.fetch_stall_s
        source, start = _within(self.settings.fetch_connect_s + stall, self._open, url, start)
        try:
            yield start, iter(partial(_within, stall, source.read, BLOCK), b"")
        finally:
            source.close()

    def _open(self, url: str, start: int) -> tuple[Any, int]:
        if url.startswith("pipe:"):
            if not self.settings.allow_pipe:
                raise _Failed(
                    "runs a shell command for every file; pass --allow-pipe if that is what you"
                    " want",
                    final=True,
                )
            return _Pipe(url.removeprefix("pipe:")), 0
        system = self._filesystem(url)
        if not url.startswith(("http://", "https://")):
            file = system.open(
                system._strip_protocol(url), cache_type="readahead", block_size=4 * BLOCK
            )
            file.seek(start)
            return file, start
        headers = system.kwargs.get("headers", {}) | ({"Range": f"bytes={start}-"} if start else {})
        try:
            file = system.open(
                url, block_size=0, size=1, headers=headers
            )  # a stream; knowing a size saves it a request
        except Exception as err:
            if start and getattr(err, "status", None) == 416:  # what is there now is shorter
                return self._open(url, 0)
            raise
        return file, start if file.r.status == 206 else 0

    def _filesystem(self, url: str) -> AbstractFileSystem:
        place = "/".join(url.split("/")[:3])
        if place not in self._filesystems:
            protocol = url.split("://")[0]
            try:
                options = _options(
                    protocol, self.settings.fetch_connect_s, self.settings.fetch_stall_s
                )
                self._filesystems[place] = url_to_fs(url, **options)[0]
            except ImportError as err:
                package = PACKAGES.get(protocol)
                raise _Failed(
                    (
                        f"{protocol}:// needs a package: pip install {package}"
                        if package
                        else str(err)
                    ),
                    final=True,
                ) from None
        return self._filesystems[place]

    def _make_room(self, tmp: Path, size: int) -> None:
        """Remove what was used longest ago until `size` bytes fit: only what this cache wrote, and
        nothing that is in use.
        """
        files = []
        for entry in os.scandir(self.folder):
            match = OURS.fullmatch(entry.name)
            if match and entry.name != tmp.name and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):  # another process makes room too
                    stat = entry.stat(follow_symlinks=False)
                    files.append((stat.st_mtime, max(stat.st_size, int(match[1] or 0)), entry.path))
        missing = size - tmp.stat().st_size
        over = max(
            sum(num for _, num, _ in files) + size - self.settings.cache_gb * 1e9,
            missing - shutil.disk_usage(self.folder).free,
        )
        for used, num, path in sorted(files):
            if over <= 0 or used > time.time() - GRACE_S:
                break
            with (
                contextlib.suppress(OSError),
                open(path, "r+b") as file,
            ):  # gone already, not ours to remove, or locked: being fetched
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
                over -= num
        if shutil.disk_usage(self.folder).free < missing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _hit(path: Path, size: int) -> bool:
    """Whether the whole file is there, which then counts as used now."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size == size:
            with contextlib.suppress(PermissionError):  # another user fetched it
                os.utime(path)
            return True
    return False


def _is_at(path: Path, file: BinaryIO) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


# ----------------------------------------------------------------------------------------- backends


def _options(protocol: str, connect: float, stall: float) -> dict[str, Any]:
    """Fsspec's options that set a backend's limits, seconds. hf:// has its own,
    HF_HUB_DOWNLOAD_TIMEOUT (10 s).
    """
    if protocol in ("s3", "s3a"):
        return {"config_kwargs": {"connect_timeout": connect, "read_timeout": stall}}
    if PACKAGES.get(protocol) not in ("aiohttp", "gcsfs"):
        return {}
    from aiohttp import ClientTimeout

    limits = ClientTimeout(
        total=None, sock_connect=connect, sock_read=stall
    )  # the default ends every download after 5 minutes
    if protocol in ("gs", "gcs"):
        return {"requests_timeout": limits}
    plain = {"Accept-Encoding": "identity"}  # an answer packed on the way has another length
    return {
        "client_kwargs": {
            "timeout": limits,
            "headers": plain,
            "read_bufsize": BLOCK,
            "trust_env": True,
        }
    }


class _Pipe:
    """What a shell command writes, as a file; closing it ends the command and what that started."""

    def __init__(self, command: str):
        self.errors = tempfile.TemporaryFile()
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen(
            command, shell=True, bufsize=0, start_new_session=True, **streams
        )

    def read(self, num_bytes: int) -> bytes:
        block = self.process.stdout.read(num_bytes)
        if not block and (code := self.process.wait()):
            self.errors.seek(0)
            raise _Failed(
                f"exit code {code}: {_shown(self.errors.read().decode(errors='replace'))[-300:]}"
            )
        return block

    def close(self) -> None:
        if (
            self.process.returncode is None
        ):  # not waited for yet, so the number is still that of its group
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process.stdout.close()
        self.errors.close()


# -------------------------------------------------------------------------------------- what failed


class _Failed(Exception):
    """Why an attempt failed, one line.

    `final`: another one cannot help; `wrong`: the bytes came, but others than expected.
    """

    def __init__(self, text: str, final: bool = False, wrong: bool = False):
        super().__init__(text)
        self.final, self.wrong = final, wrong


def _within(seconds: float, call: Callable[..., T], *args: Any) -> T:
    """call(*args), given up after `seconds` also where a backend hangs for ever. raises _Failed for
    all that goes wrong
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call(*args))
        except BaseException as err:
            future.set_exception(err)

    threading.Thread(target=work, name="fetch", daemon=True).start()
    if wait([future], seconds).not_done:
        raise _Failed(f"no answer for {seconds:g} s")
    try:
        return future.result()
    except Exception as err:  # of any of the backends' libraries
        raise _judged(err) from None


def _judged(err: Exception) -> _Failed:
    name = type(err).__name__
    if isinstance(err, _Failed):
        return err
    if "Timeout" in name:  # of a backend's own limit
        return _Failed("no answer in time (--fetch-connect-s, --fetch-stall-s)")
    if isinstance(err, FileNotFoundError):
        return _Failed("there is no such file", final=True)
    code = (
        getattr(err, "status", None)
        or getattr(err, "code", None)
        or getattr(getattr(err, "response", None), "status_code", None)
    )
    refused = isinstance(code, int) and 400 <= code < 500 and code not in (408, 425, 429)
    refused |= name == "NoCredentialsError" or str(err).startswith(
        "Forbidden"
    )  # as s3fs and gcsfs say it
    return _Failed(
        f"{name}: {_shown(str(err))[:300]}",
        final=refused or isinstance(err, (PermissionError, IsADirectoryError, ValueError)),
    )


def _shown(text: str) -> str:
    """One line, without the user, password and query of the URLs in it."""
    text = re.sub(r"(?<=://)[^\s/'\"]+@", "", text)
    return " ".join(re.sub(r"(://[^\s?'\"]*)\?[^\s'\")]*", r"\1", text).split())
