"""A page to drop an image on: shows depth in mm, distances and a 3-D view, and offers downloads.

    python launch/serve.py runs/NAME            # http://127.0.0.1:8000

    GET  /                     the page (page.html)
    POST /depth                the bytes of an image -> {"id", "name", "height", "width",
                               "nearest_mm", "farthest_mm", "fov", "seconds"}, or {"error"}
    GET  /depth/ID.f32         float32 little-endian mm, row by row;  .npy  .png (16 bit)
         .colour.png  .jpg (the image)  .ply?fov=55

Images are processed one at a time; the last few stay in memory, nothing is written to disk.
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
from depthdist.inference.external_model import load_model
from depthdist.inference.image_sources import InputImage
from depthdist.inference.predictor import Predictor
from depthdist.inference.result_files import colorize_depth, encode_ply, write_png
from depthdist.inference.settings import ExternalAdapterSettings, ServeSettings
from depthdist.models.adapter import describe_model

PAGE = Path(__file__).with_name("page.html")
LOCAL = ("127.0.0.1", "localhost", "::1")
# the other formats run programs, or declare another size than they have
FORMATS = ("PNG", "JPEG", "MPO", "TIFF", "WEBP", "BMP", "PPM")
CONTENT_TYPES = {
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
    """An image and its depth: rgb (H, W, 3) uint8, depth_mm (H, W) float32."""

    name: str
    rgb: np.ndarray
    depth_mm: np.ndarray


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

    def app(self) -> web.Application:
        """Return the web application."""
        app = web.Application(
            client_max_size=int(self.settings.max_mb * 1e6),
            middlewares=[answer_errors, self.reject_other_pages],
        )
        app.add_routes(
            [
                web.get("/", self.page),
                web.post("/depth", self.measure),
                web.get("/depth/{file}", self.fetch),
            ]
        )
        return app

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
        name = _printable_name(request.query.get("name", "image"))
        if self.num_pending > self.settings.waiting:  # one of them is being processed
            raise web.HTTPServiceUnavailable(
                text=f"{self.settings.waiting} images are waiting already; try again in a moment"
            )
        self.num_pending += 1
        try:
            content = await request.read()
            start = time.monotonic()
            result = await asyncio.get_running_loop().run_in_executor(
                self.worker, self._measure, name, content
            )
        finally:
            self.num_pending -= 1
        key = secrets.token_urlsafe(12)
        self.results[key] = result
        while len(self.results) > self.settings.keep:
            self.results.popitem(last=False)
        height, width = result.depth_mm.shape
        return web.json_response(
            {
                "id": key,
                "name": name,
                "height": height,
                "width": width,
                "fov": self.settings.fov,
                "seconds": round(time.monotonic() - start, 2),
                "nearest_mm": float(result.depth_mm.min()),
                "farthest_mm": float(result.depth_mm.max()),
            }
        )

    def _measure(self, name: str, content: bytes) -> MeasuredImage:
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                width, height = image.size
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
        rgb = np.array(open_rgb(name, upright=True, content=content))
        (depth_mm,) = self.predictor([InputImage(rgb, rgb.shape[:2])])
        return MeasuredImage(name, rgb, depth_mm)

    async def fetch(self, request: web.Request) -> web.Response:
        """Return a result as a file."""
        key, _, kind = request.match_info["file"].partition(".")
        if kind not in CONTENT_TYPES:
            raise web.HTTPNotFound(text=f"no .{kind} here: expected {', '.join(CONTENT_TYPES)}")
        if key not in self.results:
            raise web.HTTPNotFound(
                text=(
                    f"this result is gone: the last {self.settings.keep} are kept; send the image"
                    " again"
                )
            )
        fov = self._requested_fov(request)
        result = self.results[key]
        content = await asyncio.get_running_loop().run_in_executor(
            self.writer, encode_result, result, kind, fov, self.predictor.record.bounds
        )
        file = f"{Path(result.name).stem}.{kind}"
        file = file.encode("ascii", "replace").decode().replace('"', "_")
        return web.Response(
            body=content,
            content_type=CONTENT_TYPES[kind],
            headers={
                "Content-Disposition": f'inline; filename="{file}"',
                "Cache-Control": "no-store",
            },
        )

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
    except asyncio.CancelledError:
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
    model, record = load_model(settings.run, external)
    print(describe_model(model, record))
    predictor = Predictor(model, record, pick_device(), settings.refine, settings.flip)
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
    runner = web.AppRunner(service.app(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, service.settings.host, service.settings.port)
    await site.start()
    host, port = runner.addresses[0][:2]
    print(
        f"open         http://{f'[{host}]' if ':' in host else host}:{port}   (Ctrl-C stops it)",
        flush=True,
    )
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
        for pool in (service.worker, service.writer):
            pool.shutdown(wait=False, cancel_futures=True)
