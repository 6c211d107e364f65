"""Read files behind URLs: through fsspec, over HTTP, or from a shell command.

    files = RemoteFiles(connect_s=10.0, stall_s=60.0, allow_pipe=False)
    with files.reading("s3://bucket/tires/index.json", start=0) as (start, blocks):
        content = b"".join(blocks)

Credentials come from where each library looks for them (AWS_*, gcloud, HF_TOKEN,
https://user:password@...), fsspec's own settings from its files or variables, such as
FSSPEC_S3='{"anon": true}' for a public bucket. No message shows them.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # a run on local data never imports it
    from fsspec import AbstractFileSystem

T = TypeVar("T")

BLOCK_BYTES = 1 << 20  # requested at once
PACKAGES = {
    "http": "aiohttp",
    "https": "aiohttp",
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "hf": "huggingface_hub",
}


class FetchFailed(Exception):
    """The reason why an attempt failed, one line.

    final        another attempt cannot help
    wrong_bytes  the bytes came, but others than expected
    """

    def __init__(self, text: str, final: bool = False, wrong_bytes: bool = False):
        super().__init__(text)
        self.final = final
        self.wrong_bytes = wrong_bytes


class RemoteFiles:
    """Opens remote files; every wait has a limit.

    connect_s   seconds that a server has to accept a connection
    stall_s     seconds without a byte after which a connection is given up
    allow_pipe  whether `pipe:COMMAND` may run the command
    """

    def __init__(self, connect_s: float, stall_s: float, allow_pipe: bool):
        self.connect_s = connect_s
        self.stall_s = stall_s
        self.allow_pipe = allow_pipe
        # by the URL's part up to the host or bucket
        self._filesystems: dict[str, AbstractFileSystem] = {}

    @contextlib.contextmanager
    def reading(self, url: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Open a file from byte `start` on, raise FetchFailed if that fails.

        Gives the byte where the content really begins, `start` or else 0, and the content in
        blocks.
        """
        source, start = call_within(self.connect_s + self.stall_s, self._open, url, start)
        read_block = partial(call_within, self.stall_s, source.read, BLOCK_BYTES)
        try:
            yield start, iter(read_block, b"")
        finally:
            source.close()

    def _open(self, url: str, start: int) -> tuple[Any, int]:
        if url.startswith("pipe:"):
            if not self.allow_pipe:
                raise FetchFailed(
                    "runs a shell command for every file; pass --allow-pipe if that is what you"
                    " want",
                    final=True,
                )
            return _Pipe(url.removeprefix("pipe:")), 0
        system = self._filesystem(url)
        if url.startswith(("http://", "https://")):
            return self._open_http(system, url, start)
        path = system._strip_protocol(url)
        file = system.open(path, cache_type="readahead", block_size=4 * BLOCK_BYTES)
        file.seek(start)
        return file, start

    def _open_http(self, system: AbstractFileSystem, url: str, start: int) -> tuple[Any, int]:
        headers = system.kwargs.get("headers", {}) | ({"Range": f"bytes={start}-"} if start else {})
        try:
            # a stream; knowing a size saves it a request
            file = system.open(url, block_size=0, size=1, headers=headers)
        except Exception as err:
            if start and getattr(err, "status", None) == 416:  # the file is shorter now
                return self._open(url, 0)
            raise
        return file, start if file.r.status == 206 else 0

    def _filesystem(self, url: str) -> AbstractFileSystem:
        place = "/".join(url.split("/")[:3])
        if place not in self._filesystems:
            from fsspec.core import url_to_fs

            protocol = url.split("://")[0]
            try:
                options = _options(protocol, self.connect_s, self.stall_s)
                self._filesystems[place] = url_to_fs(url, **options)[0]
            except ImportError as err:
                text = str(err)
                if protocol in PACKAGES:
                    text = f"{protocol}:// needs a package: pip install {PACKAGES[protocol]}"
                raise FetchFailed(text, final=True) from None
        return self._filesystems[place]


def _options(protocol: str, connect_s: float, stall_s: float) -> dict[str, Any]:
    """Return fsspec's options that set a backend's limits.

    hf:// has its own, HF_HUB_DOWNLOAD_TIMEOUT (10 s).
    """
    if protocol in ("s3", "s3a"):
        return {"config_kwargs": {"connect_timeout": connect_s, "read_timeout": stall_s}}
    if PACKAGES.get(protocol) not in ("aiohttp", "gcsfs"):
        return {}
    from aiohttp import ClientTimeout

    # the default ends every download after 5 minutes
    limits = ClientTimeout(total=None, sock_connect=connect_s, sock_read=stall_s)
    if protocol in ("gs", "gcs"):
        return {"requests_timeout": limits}
    plain = {"Accept-Encoding": "identity"}  # a compressed answer has another length
    return {
        "client_kwargs": {
            "timeout": limits,
            "headers": plain,
            "read_bufsize": BLOCK_BYTES,
            "trust_env": True,
        }
    }


class _Pipe:
    """The output of a shell command as a file; closing it kills the command and its children."""

    def __init__(self, command: str):
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (close() closes it)
        self.process = subprocess.Popen(
            command,
            shell=True,
            bufsize=0,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )
        assert self.process.stdout is not None
        self.output = self.process.stdout

    def read(self, num_bytes: int) -> bytes:
        block = self.output.read(num_bytes)
        if not block and (code := self.process.wait()):
            self.errors.seek(0)
            text = self.errors.read().decode(errors="replace")
            raise FetchFailed(f"exit code {code}: {without_secrets(text)[-300:]}")
        return block

    def close(self) -> None:
        if self.process.returncode is None:  # not waited for, so its group still has this number
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.output.close()
        self.errors.close()


def call_within(seconds: float, call: Callable[..., T], *args: Any) -> T:
    """Return call(*args), give up after `seconds` even if a backend hangs for ever.

    Raises FetchFailed for everything that goes wrong.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call(*args))
        except BaseException as err:
            future.set_exception(err)

    threading.Thread(target=work, name="fetch", daemon=True).start()
    if wait([future], seconds).not_done:
        raise FetchFailed(f"no answer for {seconds:g} s")
    try:
        return future.result()
    except Exception as err:  # of any of the backends' libraries
        raise _as_failure(err) from None


def _as_failure(err: Exception) -> FetchFailed:
    """Decide from a backend's error whether another attempt can help."""
    if isinstance(err, FetchFailed):
        return err
    name = type(err).__name__
    if "Timeout" in name:  # of a backend's own limit
        return FetchFailed("no answer in time (--fetch-connect-s, --fetch-stall-s)")
    if isinstance(err, FileNotFoundError):
        return FetchFailed("there is no such file", final=True)
    code = (
        getattr(err, "status", None)
        or getattr(err, "code", None)
        or getattr(getattr(err, "response", None), "status_code", None)
    )
    refused = isinstance(code, int) and 400 <= code < 500 and code not in (408, 425, 429)
    # as s3fs and gcsfs say it
    refused |= name == "NoCredentialsError" or str(err).startswith("Forbidden")
    return FetchFailed(
        f"{name}: {without_secrets(str(err))[:300]}",
        final=refused or isinstance(err, (PermissionError, IsADirectoryError, ValueError)),
    )


def without_secrets(text: str) -> str:
    """Return `text` on one line, without the user, password and query of the URLs in it."""
    text = re.sub(r"(?<=://)[^\s/'\"]+@", "", text)
    return " ".join(re.sub(r"(://[^\s?'\"]*)\?[^\s'\")]*", r"\1", text).split())
