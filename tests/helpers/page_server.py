"""The page of `depthdist serve`, run as a person starts it, and requests to it."""

import io
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager

from PIL import Image

from helpers.captures import ROOT
from helpers.commands import ON_CPU


@contextmanager
def serving(run, *words):
    """Yield the URL of a server on a free port; it must end well on Ctrl-C."""
    process = subprocess.Popen(
        [sys.executable, "-u", "launch/serve.py", str(run), "--port", "0", *words],
        cwd=ROOT,
        env={**os.environ, **ON_CPU},
        stdout=subprocess.PIPE,
        text=True,
    )
    line = next(line for line in process.stdout if line.startswith("open"))
    yield line.split()[1]
    process.send_signal(signal.SIGINT)
    assert process.wait(20) in (0, 130)


def png(rgb):
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "PNG")
    return file.getvalue()


def ask(url, content=None):
    """Status and body; a body of JSON as what it holds."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data=content, method="GET" if content is None else "POST"),
            timeout=60,
        ) as answer:
            status, kind, body = answer.status, answer.headers.get_content_type(), answer.read()
    except urllib.error.HTTPError as err:
        status, kind, body = err.code, err.headers.get_content_type(), err.read()
    return status, json.loads(body) if kind == "application/json" else body


DROP = """(bytes, name) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(bytes)], name));
    const options = {dataTransfer: data, bubbles: true, cancelable: true};
    document.dispatchEvent(new DragEvent("drop", options));
}"""


def drop(page, content, name):
    """Drop a file on the page in a browser."""
    page.run(f"({DROP})({list(content)}, '{name}')")
