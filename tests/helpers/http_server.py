"""A local HTTP server that serves CONTENT and can drop, stall, cut, damage and refuse."""

import contextlib
import hashlib
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = {f"/{name}.tar": hashlib.shake_128(name.encode()).digest(3_000_000) for name in "abcd"}


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT; the next of `server.faults` says what goes wrong with a request."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        path, wanted = self.path.partition("?")[0], self.headers["Range"]
        self.server.seen.append((path, wanted))
        fault, at = self.server.faults.pop(0) if self.server.faults else (None, 0)
        body = CONTENT.get(path)
        if fault == "status" or body is None:
            return self.send_error(at or 404)
        start = int(wanted.removeprefix("bytes=")[:-1]) if wanted and fault != "no range" else 0
        if start >= len(body):
            return self.send_error(416)
        body = body[start:]
        if fault == "damage":
            body = bytes(100) + body[100:]
        if fault == "shorten":
            body = body[:at]
        if fault == "silent":
            self.server.release.wait(30)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) + (1000 if fault == "lengthen" else 0)))
        self.end_headers()
        self.wfile.write(body[:at] if fault in ("drop", "cut", "stall", "hold") else body)
        if fault == "lengthen":
            self.wfile.write(bytes(1000))
        if fault in ("drop", "cut"):
            self.server.arrived()
            self.close_connection = True
            if fault == "drop":  # a reset; "cut" ends the connection in good order
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                self.connection.close()
        if fault in ("stall", "hold"):
            self.server.reached.set()
            self.server.release.wait(30)
            self.wfile.write(body[at:])


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # clients go away on purpose


@contextlib.contextmanager
def running_server():
    """A Server at work; `server.url` is where."""
    with Server(("127.0.0.1", 0), Handler) as server:
        server.seen, server.faults = [], []
        server.reached, server.release = threading.Event(), threading.Event()
        server.arrived = lambda: None  # called before a connection is broken
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.release.set()
        server.shutdown()
        thread.join()
