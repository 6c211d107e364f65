"""A headless Chromium, driven through its own protocol, as a person would use a page.

with Browser() as page:
    page.open("http://127.0.0.1:8000")
    page.run("document.title")                       # a JavaScript value, promises waited for
    page.until("!document.querySelector('#result').hidden")
    page.move(x, y); page.click(x, y); page.screenshot(path)
"""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)


class Browser:
    """One tab of `width` by `height` CSS pixels."""

    def __init__(self, width: int = 1000, height: int = 900):
        self.size, self.errors = (width, height), []

    def __enter__(self) -> "Browser":
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--remote-debugging-port=0",
            f"--user-data-dir={self.folder.name}",
            "--enable-unsafe-swiftshader",
            "--hide-scrollbars",
        ]
        self.process = subprocess.Popen(
            [CHROMIUM, *flags, f"--window-size={self.size[0]},{self.size[1]}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.numbers, self.answers = itertools.count(1), {}
        port_file = Path(self.folder.name) / "DevToolsActivePort"
        wait_for(lambda: port_file.exists() and port_file.read_text().count("\n") >= 1, 30)
        self._wait(self._connect(port_file.read_text().split()[0]))
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=self.size[0],
            height=self.size[1],
            deviceScaleFactor=1,
            mobile=False,
        )
        return self

    def __exit__(self, *_: Any) -> None:
        self._wait(self.session.close())
        self.process.terminate()
        self.process.wait(20)
        self._end_children()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.folder.cleanup()

    def _end_children(self) -> None:
        """They write into the folder after the first process has ended; those killed may stay as
        zombies where nothing collects them."""
        for kind in (signal.SIGTERM, signal.SIGKILL):
            end = time.monotonic() + 3
            with contextlib.suppress(ProcessLookupError):
                while time.monotonic() < end:
                    os.killpg(self.process.pid, kind)
                    time.sleep(0.05)

    async def _connect(self, port: str) -> None:
        self.session = aiohttp.ClientSession()
        async with self.session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            (tab,) = [tab for tab in await answer.json() if tab["type"] == "page"]
        self.socket = await self.session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0)
        self.listening = asyncio.ensure_future(self._listen())

    async def _listen(self) -> None:
        async for message in self.socket:
            content = json.loads(message.data)
            if "id" in content:
                self.answers.pop(content["id"]).set_result(content)
            elif content["method"] == "Runtime.exceptionThrown":
                self.errors.append(
                    content["params"]["exceptionDetails"]
                    .get("exception", {})
                    .get("description", "an exception")
                )

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        async def call() -> dict[str, Any]:
            number = next(self.numbers)
            self.answers[number] = answer = self.loop.create_future()
            await self.socket.send_json({"id": number, "method": method, "params": parameters})
            return await answer

        content = self._wait(call())
        assert "error" not in content, (method, content["error"])
        return content["result"]

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        found = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script: str, seconds: float = 60) -> None:
        wait_for(lambda: self.run(script), seconds, script)

    def move(self, x: float, y: float, kind: str = "mouseMoved", **more: Any) -> None:
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.move(
                x, y, kind, button="left", buttons=1 if kind == "mousePressed" else 0, clickCount=1
            )

    def screenshot(self, path: Path) -> None:
        path.write_bytes(
            base64.b64decode(
                self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)[
                    "data"
                ]
            )
        )


def wait_for(true: Any, seconds: float, what: str = "") -> None:
    """Until `true()` is; AssertionError after that many seconds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds} s for {what or true}"
        time.sleep(0.05)
