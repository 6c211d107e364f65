"""What one client of the page can take from the others: memory, connections, time.

count_scans(content)  # of a JPEG: expected MAX_SCANS at most
memory = Memory(500_000_000)
with memory.holding() as hold:
    hold(len(block))                    # 503 once all requests together hold too much
clock = ClientClock(limit_s=120)
listener = await listen(web_server, host, port)
return_freed_memory()                   # once, before the first image
task = asyncio.create_task(clock.close_slow(web_server))
"""

from __future__ import annotations

import asyncio
import ctypes
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aiohttp import web

MAX_CONNECTIONS = 64
TICK_S = 0.5  # between two looks at the connections
GONE_S = 2.0  # after which a connection that is one too many is closed
MAX_SCANS = 100  # of a JPEG: each decodes every pixel again, and can be a few bytes
MAX_SEGMENTS = 10_000  # of a JPEG
MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
OWN_MAPPING_BYTES = 4 << 20  # of memory that goes back to the system when it is freed
M_MMAP_THRESHOLD = -3  # of malloc.h
SCAN, END = b"\xda", b"\xd9"
FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b'\r\n{"error": "too many connections; try again in a moment"}'
)


def count_scans(content: bytes) -> int:
    """Return the number of scans of a JPEG, at most MAX_SCANS + 1.

    MAX_SCANS + 1 also where there are more than MAX_SEGMENTS segments.
    """
    at = 2
    num_scans = 0
    for _ in range(MAX_SEGMENTS):
        marker = MARKER.search(content, at)
        if not marker or marker[1] == END or num_scans > MAX_SCANS:
            return num_scans
        num_scans += marker[1] == SCAN
        at = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")
    return MAX_SCANS + 1


def return_freed_memory() -> None:
    """Let the C library give an image's memory back as soon as it is freed, where it can (glibc).

    By itself glibc puts blocks of up to 32 MB between others as soon as one such block was freed:
    what a server holds at most then creeps up by an eighth over a dozen images.
    Source: mallopt(3), M_MMAP_THRESHOLD.
    """
    if sys.platform == "linux":
        c_library = ctypes.CDLL(None)
        if hasattr(c_library, "mallopt"):
            c_library.mallopt(M_MMAP_THRESHOLD, OWN_MAPPING_BYTES)


class Memory:
    """Bytes that the requests of the moment hold."""

    def __init__(self, limit: float):
        self.limit = limit
        self.used = 0

    @contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that takes bytes for a request, all given back when it ends.

        It raises HTTPServiceUnavailable where other requests hold so much that these are too many;
        a request alone may take what it needs.
        """
        held = 0

        def hold(num_bytes: int) -> None:
            nonlocal held
            others = self.used - held
            if others and self.used + num_bytes > self.limit:
                raise web.HTTPServiceUnavailable(
                    text="too many files are on their way already; try again in a moment"
                )
            held += num_bytes
            self.used += num_bytes

        try:
            yield hold
        finally:
            self.used -= held


class ClientClock:
    """Measures how long each connection has been waiting for its client, and closes slow ones.

    limit_s  seconds a client has for its next request, or to take an answer
    """

    def __init__(self, limit_s: float):
        self.limit_s = limit_s
        self.since: dict[asyncio.BaseProtocol, float] = {}

    def restart(self, request: web.Request) -> None:
        """Start to measure anew: the client did what was its turn."""
        self.since[request.protocol] = time.monotonic()

    @contextmanager
    def stopped(self, request: web.Request) -> Iterator[None]:
        """Do not measure while the client waits for us."""
        self.since[request.protocol] = math.inf
        try:
            yield
        finally:
            self.restart(request)

    async def close_slow(self, server: web.Server) -> None:
        """Close connections whose client takes too long, until the task is cancelled."""
        while True:
            now = time.monotonic()
            connections = server.connections
            self.since = {one: self.since.get(one, now) for one in connections}
            for connection in connections:
                late = now - self.since[connection] > self.limit_s
                if late and connection.transport is not None:
                    connection.transport.abort()  # close() would wait until the client reads
            await asyncio.sleep(TICK_S)


class _Entrance(asyncio.Protocol):
    """Gives a new connection to the web server, or an answer if it is one too many.

    Decided when the connection is there: several may be accepted before the first one is.
    """

    def __init__(self, server: web.Server):
        self.server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if len(self.server.connections) < MAX_CONNECTIONS:
            handler = self.server()
            transport.set_protocol(handler)
            handler.connection_made(transport)
            return
        transport.write(FULL)
        transport.write_eof()  # close() would reset a client that is still sending
        asyncio.get_running_loop().call_later(GONE_S, transport.abort)


async def listen(server: web.Server, host: str, port: int) -> asyncio.Server:
    """Accept connections for `server`, at most MAX_CONNECTIONS at a time."""
    return await asyncio.get_running_loop().create_server(lambda: _Entrance(server), host, port)
