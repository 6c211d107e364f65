"""A page to drop an image on: shows depth in mm, distances and a 3-D view, and offers downloads.

    depthdist serve runs/NAME            # http://127.0.0.1:8000

    GET  /                     the page (page.html)
    POST /depth                the bytes of an image -> {"id", "name", "height", "width",
                               "nearest_mm", "farthest_mm", "fov", "seconds", "has_sigma",
                               "measured"}, or {"error"}
    POST /fill/ID              the bytes of a .npy file, points (H, W, 3) or depth (H, W) in mm of
                               that image -> the same, of a new result: its holes are filled
    GET  /depth/ID.f32         float32 little-endian mm, row by row;  .npy  .png (16 bit)
         .colour.png  .jpg (the image)  .ply?fov=55
         .sigma.f32            how sure each pixel is, mm, 0 where measured; of filled points, and
                               of all where the run has a completion stage

Images are processed one at a time; the last few stay in memory, nothing is written to disk.
What clients can take is limited: pixels, bytes, images in the queue, memory, connections, time.
"""

from __future__ import annotations

import asyncio
import html
import io
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from aiohttp import web
from PIL import Image

from depthdist.captures.readers import open_rgb
from depthdist.core.environment import pick_device, silence_libraries
from depthdist.core.errors import BadFile
from depthdist.geometry.camera import pinhole_from_fov, pixel_rays, points_from_depth
from depthdist.geometry.depth_range import DepthRange
from depthdist.geometry.measured import is_measured
from depthdist.inference.external_model import load_refined
from depthdist.inference.image_sources import InputImage, to_fill
from depthdist.inference.loaded_model import with_points
from depthdist.inference.model_folder import find_model_folder
from depthdist.inference.page_limits import (
    MAX_SCANS,
    ClientClock,
    Memory,
    count_scans,
    listen,
    return_freed_memory,
)
from depthdist.inference.points_file import decode_points
from depthdist.inference.predictor import Predictor
from depthdist.inference.result_files import colorize_depth, encode_ply, write_png
from depthdist.inference.settings import ExternalAdapterSettings, ServeSettings
from depthdist.models.completion import load_completion

PAGE = Path(__file__).with_name("page.html")
LOCAL = ("127.0.0.1", "localhost", "::1")
# the other formats run programs, or declare another size than they have
FORMATS = ("PNG", "JPEG", "MPO", "TIFF", "WEBP", "BMP", "PPM")
BLOCK_BYTES = 1 << 18  # of an answer, sent as fast as the client takes them
CONTENT_TYPES = {
    "sigma.f32": "application/octet-stream",
    "f32": "application/octet-stream",
    "npy": "application/octet-stream",
    "ply": "application/octet-stream",
    "png": "image/png",
    "colour.png": "image/png",
    "jpg": "image/jpeg",
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class MeasuredImage:
    """An image and its depth.

    rgb       (H, W, 3) uint8
    depth_mm  (H, W) float32
    sigma_mm  (H, W) float32, how sure it is, 0 where measured; None where nothing says it
    measured  share of the pixels that were measured; None of a prediction
    """

    name: str
    rgb: np.ndarray
    depth_mm: np.ndarray
    sigma_mm: np.ndarray | None = None
    measured: float | None = None

    @property
    def num_bytes(self) -> int:
        """What it takes in memory."""
        arrays = (self.rgb, self.depth_mm, self.sigma_mm)
        return sum(array.nbytes for array in arrays if array is not None)


class Service:
    """The request handlers, and what they share.

    The model runs in a thread of its own, so that other requests are answered meanwhile.
    """

    def __init__(self, settings: ServeSettings, predictor: Predictor):
        self.settings = settings
        self.predictor = predictor
        self.results: OrderedDict[str, MeasuredImage] = OrderedDict()
        self.worker = ThreadPoolExecutor(1)
        self.writer = ThreadPoolExecutor(1)
        self.num_pending = 0
        self.warned: set[str] = set()  # kinds of images that a warning was printed of, each once
        self.memory = Memory(settings.memory_mb * 1e6 / 2)
        self.clock = ClientClock(settings.client_s + 5)  # after an answer that says so

    def app(self) -> web.Application:
        """Return the web application."""
        app = web.Application(
            client_max_size=int(self.settings.max_mb * 1e6),
            middlewares=[answer_errors, self.measure_client, self.reject_other_pages],
        )
        app.add_routes(
            [
                web.get("/", self.page),
                web.post("/depth", self.measure),
                web.post("/fill/{key}", self.fill),
                web.get("/depth/{file}", self.fetch),
            ]
        )
        return app

    @web.middleware
    async def measure_client(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let the time for the client's next step begin with its request, and with its answer."""
        self.clock.restart(request)
        try:
            return await handler(request)
        finally:
            self.clock.restart(request)

    @web.middleware
    async def reject_other_pages(
        self, request: web.Request, handler: Handler
    ) -> web.StreamResponse:
        """Reject requests of other web pages in the same browser, and under foreign host names."""
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            raise web.HTTPForbidden(text=f"{origin} is another page; open http://{request.host}")
        if self.settings.host in LOCAL and urlsplit(f"//{request.host}").hostname not in LOCAL:
            raise web.HTTPForbidden(text=f"{request.host}: expected {' or '.join(LOCAL)}")
        return await handler(request)

    async def page(self, request: web.Request) -> web.Response:
        """Return the page."""
        bounds = self.predictor.record.bounds
        about = (
            f"{self.settings.run}: predicts {bounds.near_mm:.0f} to {bounds.far_mm:.0f} mm. Files"
            f" of {self.settings.max_mb:g} MB and {self.settings.max_megapixels:g} megapixels at"
            " most"
        )
        return web.Response(
            text=PAGE.read_text(encoding="utf-8").replace("ABOUT", html.escape(about)),
            content_type="text/html",
            headers={"Content-Security-Policy": "default-src 'self' 'unsafe-inline' blob: data:"},
        )

    async def measure(self, request: web.Request) -> web.Response:
        """Predict the depth of the image in the request's body and return what to fetch it by."""
        return await self._answer(request, self._measure)

    async def fill(self, request: web.Request) -> web.Response:
        """Fill the holes of the points in the request's body, of an image that was measured."""
        image = self._find(request.match_info["key"])
        return await self._answer(request, partial(self._fill, image))

    async def _answer(
        self, request: web.Request, work: Callable[[str, bytes, web.Request], MeasuredImage]
    ) -> web.Response:
        """Do the work on the request's body, one at a time, and return what to fetch it by."""
        name = _printable_name(request.query.get("name", "image"))
        self._check_queue()  # before it is sent: it would be sent for nothing
        with self.memory.holding() as hold:
            content = await self._receive(request, hold)
            self._check_queue()
            self.num_pending += 1
            start = time.monotonic()
            try:
                with self.clock.stopped(request):
                    result = await asyncio.get_running_loop().run_in_executor(
                        self.worker, work, name, content, request
                    )
            finally:
                self.num_pending -= 1
        key = secrets.token_urlsafe(12)
        self._keep(key, result)
        height, width = result.depth_mm.shape
        return web.json_response(
            {
                "id": key,
                "name": result.name,
                "height": height,
                "width": width,
                "fov": self.settings.fov,
                "seconds": round(time.monotonic() - start, 2),
                "nearest_mm": float(result.depth_mm.min()),
                "farthest_mm": float(result.depth_mm.max()),
                "has_sigma": result.sigma_mm is not None,
                "measured": result.measured,
            }
        )

    def _check_queue(self) -> None:
        if self.num_pending > self.settings.waiting:  # one of them is being processed
            raise web.HTTPServiceUnavailable(
                text=f"{self.settings.waiting} images are waiting already; try again in a moment"
            )

    async def _receive(self, request: web.Request, hold: Callable[[int], None]) -> bytes:
        """Return the request's body.

        A client that takes too long or sends too much gets an answer of one line.
        """
        content = bytearray()

        async def receive() -> None:
            async for block in request.content.iter_any():
                hold(len(block))
                content.extend(block)
                if len(content) > request.client_max_size:
                    raise web.HTTPRequestEntityTooLarge(request.client_max_size, len(content))

        if (request.content_length or 0) > request.client_max_size:
            raise web.HTTPRequestEntityTooLarge(
                request.client_max_size, request.content_length or 0
            )
        try:
            await asyncio.wait_for(receive(), self.settings.client_s)
        except asyncio.TimeoutError:
            raise web.HTTPRequestTimeout(
                text=(
                    f"{len(content):,} bytes came in {self.settings.client_s:g} s, and not the"
                    " whole file (--client-s)"
                ),
                headers={"Connection": "close"},
            ) from None
        return bytes(content)

    def _keep(self, key: str, result: MeasuredImage) -> None:
        """Keep a result, delete the oldest where there are too many or they take too much."""
        self.results[key] = result
        limit = self.settings.memory_mb * 1e6 / 2
        while len(self.results) > self.settings.keep or (
            len(self.results) > 1 and sum(r.num_bytes for r in self.results.values()) > limit
        ):
            self.results.popitem(last=False)

    def _measure(self, name: str, content: bytes, request: web.Request) -> MeasuredImage:
        if request.transport is None or request.transport.is_closing():
            raise ConnectionResetError("the client has gone")
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                width, height = image.size
                num_scans = count_scans(content) if image.format in ("JPEG", "MPO") else 0
        except Exception as err:  # Pillow raises half a dozen types
            raise BadFile(
                Path(name),
                f"cannot be read as an image ({' '.join(str(err).split())[:120]}); expected"
                f" {', '.join(FORMATS)}",
            ) from err
        if width * height > self.settings.max_megapixels * 1e6:
            raise BadFile(
                Path(name),
                f"is {width} x {height}; expected at most {self.settings.max_megapixels:g}"
                " megapixels (--max-megapixels)",
            )
        if num_scans > MAX_SCANS:
            raise BadFile(Path(name), f"is a JPEG of more than {MAX_SCANS} scans; expected fewer")
        rgb = np.array(open_rgb(name, upright=True, content=content))
        given = InputImage(rgb, rgb.shape[:2])
        for kind, text in self.predictor.remarks(given).items():
            if kind not in self.warned:
                print(f"WARNING      an image {text}", flush=True)
                self.warned.add(kind)
        has_sigma = self.predictor.completion is not None
        (depth,) = self.predictor([given], sigma=has_sigma)
        return MeasuredImage(name, rgb, *depth)

    def _fill(
        self, image: MeasuredImage, name: str, content: bytes, request: web.Request
    ) -> MeasuredImage:
        if request.transport is None or request.transport.is_closing():
            raise ConnectionResetError("the client has gone")
        height, width = image.depth_mm.shape
        points = decode_points(name, content, (height, width))
        try:
            given = with_points(InputImage(image.rgb, (height, width)), points)
        except ValueError as err:
            raise BadFile(Path(name), str(err)) from err
        given = to_fill(given, Path(name))
        ((depth_mm, sigma_mm),) = self.predictor([given])
        assert given.truth_mm is not None  # with_points
        measured = is_measured(given.truth_mm)
        if sigma_mm is None:  # without a completion stage: measured or not is all that is known
            sigma_mm = np.where(measured, np.float32(0), np.float32(1))
        return MeasuredImage(image.name, image.rgb, depth_mm, sigma_mm, float(measured.mean()))

    async def fetch(self, request: web.Request) -> web.StreamResponse:
        """Return a result as a file."""
        key, _, kind = request.match_info["file"].partition(".")
        if kind not in CONTENT_TYPES:
            raise web.HTTPNotFound(text=f"no .{kind} here: expected {', '.join(CONTENT_TYPES)}")
        result = self._find(key)
        if kind == "sigma.f32" and result.sigma_mm is None:
            raise web.HTTPNotFound(text="nothing says how sure this depth is: no completion stage")
        fov = self._requested_fov(request)
        file = f"{Path(result.name).stem}.{kind}"
        file = file.encode("ascii", "replace").decode().replace('"', "_")
        answer = web.StreamResponse(
            headers={
                "Content-Type": CONTENT_TYPES[kind],
                "Content-Disposition": f'inline; filename="{file}"',
                "Cache-Control": "no-store",
            }
        )
        with self.memory.holding() as hold:
            hold(result.num_bytes)  # it may be deleted meanwhile
            with self.clock.stopped(request):
                content = await asyncio.get_running_loop().run_in_executor(
                    self.writer, encode_result, result, kind, fov, self.predictor.record.bounds
                )
            hold(len(content))
            answer.content_length = len(content)
            await answer.prepare(request)
            for start in range(0, len(content), BLOCK_BYTES):
                await answer.write(memoryview(content)[start : start + BLOCK_BYTES])
            await answer.write_eof()
        return answer

    def _find(self, key: str) -> MeasuredImage:
        if key not in self.results:
            raise web.HTTPNotFound(
                text=(
                    f"this result is gone: the last {self.settings.keep} are kept; send the image"
                    " again"
                )
            )
        return self.results[key]

    def _requested_fov(self, request: web.Request) -> float:
        try:
            fov = float(request.query.get("fov", self.settings.fov))
        except ValueError:
            fov = 0.0
        if not 0 < fov < 180:
            raise web.HTTPBadRequest(
                text=f"fov is {request.query['fov']}: expected degrees above 0 and below 180"
            )
        return fov


def _printable_name(name: str) -> str:
    """Return a file's name without folders and control characters."""
    return "".join(c for c in Path(name).name[:100] if c.isprintable()) or "image"


def encode_result(result: MeasuredImage, kind: str, fov: float, bounds: DepthRange) -> bytes:
    """Return the content of a file of that kind."""
    if kind == "f32":
        return result.depth_mm.astype("<f4").tobytes()
    if kind == "sigma.f32":
        assert result.sigma_mm is not None  # checked before
        return result.sigma_mm.astype("<f4").tobytes()
    if kind == "ply":
        size = result.depth_mm.shape
        rays = pixel_rays(pinhole_from_fov(size, fov), size)
        assert rays is not None  # a pinhole without residual always has rays
        return encode_ply(points_from_depth(result.depth_mm, rays), result.rgb)
    file = io.BytesIO()
    if kind == "npy":
        np.save(file, result.depth_mm)
    elif kind == "jpg":
        Image.fromarray(result.rgb).save(file, "JPEG", quality=90)
    elif kind == "colour.png":
        Image.fromarray(colorize_depth(result.depth_mm, bounds)).save(file, "PNG", compress_level=1)
    else:
        write_png(file, result.depth_mm, bounds)
    return file.getvalue()


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer any error of a request with one line of JSON; the server keeps running."""
    try:
        return await handler(request)
    except web.HTTPRequestEntityTooLarge:
        status = 413
        text = f"the file is larger than {request.client_max_size / 1e6:g} MB (--max-mb)"
    except web.HTTPException as err:
        status = err.status
        text = err.text or ""
    except BadFile as err:
        status = 400
        text = str(err)
    except (asyncio.CancelledError, ConnectionError):  # nobody is there to be answered
        raise
    except Exception as err:
        print(
            f"WARNING      {request.method} {request.path}: {type(err).__name__}: {err}", flush=True
        )
        status = 500
        text = f"{type(err).__name__}: {str(err)[:200]}"
    return web.json_response({"error": text}, status=status)


def serve_page(settings: ServeSettings, external: ExternalAdapterSettings) -> None:
    """Load the model and serve the page until the program is stopped."""
    silence_libraries()
    return_freed_memory()
    model, record, refiner = load_refined(settings.run, settings.refine, external)
    completion = load_completion(find_model_folder(settings.run))
    predictor = Predictor(model, record, pick_device(), refiner, settings.flip, completion)
    if settings.host not in LOCAL:
        print(
            f"WARNING      listening on {settings.host}: everybody who can reach it can send"
            " images; there is no password"
        )
    try:
        asyncio.run(run_service(Service(settings, predictor)))
    except OSError as err:
        raise ValueError(
            f"--host {settings.host} --port {settings.port}: cannot listen there:"
            f" {err.strerror or err}"
        ) from None


async def run_service(service: Service) -> None:
    """Answer requests until the task is cancelled."""
    runner = web.AppRunner(service.app(), access_log=None, auto_decompress=False)
    await runner.setup()
    assert runner.server is not None
    listener = await listen(runner.server, service.settings.host, service.settings.port)
    closing = asyncio.create_task(service.clock.close_slow(runner.server))
    host, port = listener.sockets[0].getsockname()[:2]
    print(
        f"open         http://{f'[{host}]' if ':' in host else host}:{port}   (Ctrl-C stops it)",
        flush=True,
    )
    try:
        await asyncio.Event().wait()
    finally:
        closing.cancel()
        listener.close()
        await runner.cleanup()
        for pool in (service.worker, service.writer):
            pool.shutdown(wait=False, cancel_futures=True)
