"""What clients of depthdist serve can take from each other: many at once, slow ones, large images.

A real server in a process of its own; memory is what the kernel counts (VmHWM).
"""

import gzip
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from helpers.captures import ROOT, capture
from helpers.commands import ON_CPU
from PIL import Image

from depthdist.inference.page_limits import MAX_CONNECTIONS, MAX_SCANS, count_scans

CLIENT_S = 2
LIMIT_S = CLIENT_S + 30  # generous: other work may have the cores


class Server:
    """A server as a person starts it."""

    def __init__(self, run, *words):
        self.process = subprocess.Popen(
            [sys.executable, "-u", "launch/serve.py", str(run), "--port", "0", *map(str, words)],
            cwd=ROOT,
            env={**os.environ, **ON_CPU},
            stdout=subprocess.PIPE,
            text=True,
        )
        line = next(line for line in self.process.stdout if line.startswith("open"))
        self.url = line.split()[1]
        self.port = int(self.url.rpartition(":")[2])

    def memory_mb(self, name="VmHWM"):
        """The most memory that it has held, MB."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024

    def forget_peak(self):
        """Let the peak begin anew."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT_S)

    def ask(self, path, content=None):
        """Status and body; a body of JSON as what it holds."""
        request = urllib.request.Request(self.url + path, data=content)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                status, body = answer.status, answer.read()
        except urllib.error.HTTPError as err:
            status, body = err.code, err.read()
        return status, json.loads(body) if body.startswith(b"{") else body

    def works(self):
        return self.ask("/depth", png(capture(1)[0]))[0] == 200


@contextmanager
def serving(run, *words):
    server = Server(run, *words)
    try:
        yield server
    finally:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) in (0, 130)


@pytest.fixture(scope="module")
def server(run):
    with serving(run, "--client-s", CLIENT_S, "--waiting", 3) as server:
        yield server


def png(rgb):
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "PNG")
    return file.getvalue()


def received(connection):
    """All that the server sends until it closes, and whether it closed in time."""
    content = b""
    try:
        while block := connection.recv(1 << 16):
            content += block
    except ConnectionResetError:
        return content, True
    except TimeoutError:
        return content, False
    return content, True


# ------------------------------------------------------------------------------------- many at once


def test_of_twenty_uploads_at_once_each_is_answered_or_told_to_wait(server):
    large = png(np.random.default_rng(0).integers(0, 255, (900, 1200, 3), np.uint8))
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: server.ask("/depth", large), range(20)))
    counts = Counter(status for status, _ in answers)
    assert counts.keys() <= {200, 503} and counts[200] >= 4, counts
    errors = {body["error"] for status, body in answers if status == 503}
    assert errors <= {"3 images are waiting already; try again in a moment"}
    assert server.works()


def test_of_more_connections_than_the_limit_each_is_answered_or_told_to_wait(server):
    idle = [server.connect() for _ in range(MAX_CONNECTIONS + 3)]
    answers = [received(one) for one in idle[-3:]]
    assert all(b"503" in content and b"too many connections" in content for content, _ in answers)
    for one in idle:
        one.close()
    assert wait_until(server.works)


def test_files_on_their_way_take_no_more_than_their_memory(run):
    """Ten clients have sent 1.9 of 2 MB each, with 10 MB for all: the last ones are refused."""
    with serving(run, "--memory-mb", 20, "--max-mb", 2, "--client-s", 20) as server:
        connections = [server.connect() for _ in range(10)]
        for one in connections:
            with suppress(ConnectionError):
                one.sendall(upload_head(2_000_000) + bytes(1_900_000))
        assert wait_until(lambda: sum(answer is not None for answer in map(peek, connections)) >= 4)
        answers = [answer for answer in map(peek, connections) if answer is not None]
        assert any(
            b"503" in answer and b"too many files are on their way" in answer for answer in answers
        )
        for one in connections:
            one.close()
        assert wait_until(server.works)


def upload_head(num_bytes):
    return (
        f"POST /depth HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {num_bytes}\r\n\r\n".encode()
    )


def peek(connection):
    """What has come so far; None if nothing, and the connection is still there."""
    connection.settimeout(0.01)
    try:
        return connection.recv(1000, socket.MSG_PEEK)
    except TimeoutError:
        return None
    except ConnectionError:
        return b""


def wait_until(condition):
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        try:
            if condition():
                return True
        except OSError:
            pass
        time.sleep(0.2)
    return False


# ------------------------------------------------------------------------------------- slow clients


def test_a_client_that_sends_a_byte_now_and_then_gets_one_line_and_is_closed(server):
    with server.connect() as connection:
        connection.sendall(upload_head(1000))
        connection.settimeout(0.5)
        content = b""
        for _ in range(LIMIT_S * 2):
            try:
                connection.sendall(b"a")
                block = connection.recv(1000)
            except TimeoutError:
                continue
            except ConnectionError:
                break
            if not block:
                break
            content += block
    assert b"408" in content.splitlines()[0]
    assert b"bytes came in 2 s, and not the whole file (--client-s)" in content


def test_a_client_that_never_finishes_its_headers_is_closed(server):
    with server.connect() as connection:
        connection.sendall(b"POST /depth HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        assert received(connection)[1]


def test_a_client_that_never_reads_its_answer_is_closed(server):
    image = png(np.zeros((1500, 2000, 3), np.uint8))
    key = server.ask("/depth", image)[1]["id"]
    with server.connect() as connection:
        connection.sendall(f"GET /depth/{key}.ply HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        time.sleep(CLIENT_S + 8)  # it is aborted CLIENT_S + 5 after its answer began
        content, closed = received(connection)
    assert closed
    assert len(content) < 1500 * 2000 * 15, "the whole answer came"
    assert server.works()


def test_twenty_slow_clients_keep_nobody_waiting(server):
    slow = [server.connect() for _ in range(20)]
    for one in slow:
        one.sendall(upload_head(1000) + b"a")
    assert server.works()
    for one in slow:
        one.close()


def test_clients_that_go_away_leave_nothing_behind(server):
    content = png(np.zeros((600, 800, 3), np.uint8))
    for share in (0.0, 0.5, 1.0):
        for _ in range(5):
            with server.connect() as connection:
                connection.sendall(upload_head(len(content)))
                connection.sendall(content[: int(len(content) * share)])
    assert wait_until(server.works)
    with ThreadPoolExecutor(4) as pool:  # the queue has all its places
        answers = list(pool.map(lambda _: server.ask("/depth", content)[0], range(4)))
    assert answers == [200] * 4


# ------------------------------------------------------------------------------------ large content


def test_ten_images_just_below_the_limit_take_no_more_memory_than_three(run):
    """3.98 of 4 megapixels in 12 kB, ten times; without return_freed_memory() it is 13 % more."""
    bomb = png(np.zeros((1990, 2000, 3), np.uint8))
    assert len(bomb) < 20_000
    with serving(run, "--memory-mb", 120, "--max-megapixels", 4) as server:
        peaks = []
        for _ in range(10):
            server.forget_peak()
            assert server.ask("/depth", bomb)[0] == 200
            peaks.append(server.memory_mb())
        assert max(peaks[3:]) < 1.02 * max(peaks[:3]), peaks


def test_a_body_that_the_web_server_would_unpack_is_taken_as_it_is(server):
    request = urllib.request.Request(
        f"{server.url}/depth",
        data=gzip.compress(bytes(10**8)),
        headers={"Content-Encoding": "gzip"},
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=60)
    assert caught.value.code == 400
    assert "cannot be read as an image" in json.loads(caught.value.read())["error"]


def jpeg(num_scans=0):
    file = io.BytesIO()
    Image.fromarray(capture(1, size=(30, 40))[0]).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * num_scans + content[-2:]


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded(server):
    status, body = server.ask("/depth?name=a.jpg", jpeg(num_scans=1000))
    assert status == 400
    assert body["error"] == f"a.jpg: is a JPEG of more than {MAX_SCANS} scans; expected fewer"


def test_scans_are_counted_up_to_the_end_of_the_image():
    plain = count_scans(jpeg())
    assert 2 <= plain <= 12
    assert count_scans(jpeg(3)) == plain + 3
    assert count_scans(jpeg(3) + b"\xff\xda" * 1000) == plain + 3
    assert count_scans(b"\xff\xd8" + b"\xff\xe1\x00\x02" * 10**6) == MAX_SCANS + 1
