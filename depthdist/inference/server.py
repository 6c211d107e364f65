"""A page on this machine: drop a picture, read its depth in mm under the cursor, measure between
two clicks, turn it in 3-D, take it away.

    python launch/serve.py runs/NAME            # http://127.0.0.1:8000

    GET  /                     the page (page.html)
    POST /depth                the bytes of a picture -> {"id", "name", "height", "width",
                               "nearest_mm", "farthest_mm", "fov", "seconds"}, or {"error"}
    GET  /depth/ID.f32         float32 little-endian mm, row by row;  .npy  .png (16 bit)
         .colour.png  .jpg (the picture)  .ply?fov=55

Pictures are worked on one at a time; the last few stay in memory, nothing is written to disk.
"""

from __future__ import annotations

import asyncio
import html
import io
import math
import secrets
import time
from collections import OrderedDict
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
from depthdist.core.settings import parse, positional
from depthdist.geometry.camera import pinhole_from_fov, pixel_rays, points_from_depth
from depthdist.inference.external_model import ExternalAdapterSettings, load_model
from depthdist.inference.predictor import InputImage, Predictor
from depthdist.inference.result_files import as_ply, colorize_depth, write_png
from depthdist.models.adapter import describe_model
from depthdist.models.settings import Refinement

PAGE = Path(__file__).with_name("page.html")
LOCAL = ("127.0.0.1", "localhost", "::1")
FORMATS = (
    "PNG",
    "JPEG",
    "MPO",
    "TIFF",
    "WEBP",
    "BMP",
    "PPM",
)  # others run programs, or say another size than they have
TYPES = {
    "f32": "application/octet-stream",
    "npy": "application/octet-stream",
    "ply": "application/octet-stream",
    "png": "image/png",
    "colour.png": "image/png",
    "jpg": "image/jpeg",
}


@dataclass(frozen=True)
class ServeSettings:
    """Page"""

    run: str = positional()
    "Folder of the run, of an adapter, of an exported model, or a hub id."
    host: str = "127.0.0.1"
    """Address to listen at. The default is this machine alone; 0.0.0.0 lets everybody on the
    network in."""
    port: int = 8000
    "Port; 0 takes a free one."
    refine: Refinement = "plain"
    "Detail from the picture at its full size, as launch/predict.py has it: plain, guided or tiles."
    flip: bool = False
    "Average with the mirror image's prediction."
    fov: float = 55.0
    """Degrees that the camera sees from left to right, until the page says otherwise: for
    distances and the 3-D view."""
    max_mb: float = 32.0
    "Largest file that is taken, MB."
    max_megapixels: float = 25.0
    "Largest picture that is taken."
    keep: int = 8
    "Results that stay in memory; older ones are forgotten."
    waiting: int = 4
    "Pictures that may wait for their turn; more are turned away."

    def problems(self) -> list[str]:
        found = (
            [f"--port is {self.port}: expected 0 to 65535"] if not 0 <= self.port < 65536 else []
        )
        found += [
            f"--{n.replace('_', '-')} is {getattr(self, n):g}: expected above 0, and a number"
            for n in ("max_mb", "max_megapixels", "keep", "waiting")
            if not 0 < getattr(self, n) < math.inf
        ]
        return (
            found
            if 0 < self.fov < 180
            else [*found, f"--fov is {self.fov:g}: expected degrees above 0 and below 180"]
        )


@dataclass
class Result:
    """A picture and its depth: rgb (H, W, 3) uint8, depth_mm (H, W) float32."""

    name: str
    rgb: np.ndarray
    depth_mm: np.ndarray


class Service:
    """The handlers, and what they share.

    Models run in one thread: the page stays quick meanwhile.
    """

    def __init__(self, settings: ServeSettings, predictor: Predictor):
        self.settings, self.predictor = settings, predictor
        self.results: OrderedDict[str, Result] = OrderedDict()
        self.worker, self.writer, self.busy = ThreadPoolExecutor(1), ThreadPoolExecutor(1), 0

    def app(self) -> web.Application:
        app = web.Application(
            client_max_size=int(self.settings.max_mb * 1e6),
            middlewares=[plain_errors, self.own_page],
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
    async def own_page(self, request: web.Request, handler) -> web.StreamResponse:
        """Other web pages in the same browser may not send pictures, nor reach this machine under a
        name of their own.
        """
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            raise web.HTTPForbidden(text=f"{origin} is another page; open http://{request.host}")
        if self.settings.host in LOCAL and urlsplit(f"//{request.host}").hostname not in LOCAL:
            raise web.HTTPForbidden(text=f"{request.host}: expected {' or '.join(LOCAL)}")
        return await handler(request)

    async def page(self, request: web.Request) -> web.Response:
        bounds = self.predictor.record.bounds
        about = (
            f"{self.settings.run}: says {bounds.near_mm:.0f} to {bounds.far_mm:.0f} mm. Files of"
            f" {self.settings.max_mb:g} MB and {self.settings.max_megapixels:g} megapixels at most"
        )
        return web.Response(
            text=PAGE.read_text().replace("ABOUT", html.escape(about)),
            content_type="text/html",
            headers={"Content-Security-Policy": "default-src 'self' 'unsafe-inline' blob: data:"},
        )

    async def measure(self, request: web.Request) -> web.Response:
        name = (
            "".join(
                c for c in Path(request.query.get("name", "picture")).name[:100] if c.isprintable()
            )
            or "picture"
        )
        if self.busy > self.settings.waiting:  # one is at work
            raise web.HTTPServiceUnavailable(
                text=f"{self.settings.waiting} pictures are waiting already; try again in a moment"
            )
        self.busy += 1
        try:
            content = await request.read()
            began = time.monotonic()
            result = await asyncio.get_running_loop().run_in_executor(
                self.worker, self._measured, name, content
            )
        finally:
            self.busy -= 1
        key = secrets.token_urlsafe(12)
        self.results[key] = result
        while len(self.results) > self.settings.keep:
            self.results.popitem(last=False)
        height, width = result.depth_mm.shape
        facts = {
            "id": key,
            "name": name,
            "height": height,
            "width": width,
            "fov": self.settings.fov,
            "seconds": round(time.monotonic() - began, 2),
        }
        return web.json_response(
            {
                **facts,
                "nearest_mm": float(result.depth_mm.min()),
                "farthest_mm": float(result.depth_mm.max()),
            }
        )

    def _measured(self, name: str, content: bytes) -> Result:
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                width, height = image.size
        except Exception as err:  # Pillow has half a dozen kinds
            raise BadFile(
                Path(name),
                f"cannot be read as a picture ({' '.join(str(err).split())[:120]}); expected"
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
        return Result(name, rgb, depth_mm)

    async def fetch(self, request: web.Request) -> web.Response:
        key, _, kind = request.match_info["file"].partition(".")
        if kind not in TYPES:
            raise web.HTTPNotFound(text=f"no .{kind} here: expected {', '.join(TYPES)}")
        if key not in self.results:
            raise web.HTTPNotFound(
                text=(
                    f"this result is gone: the last {self.settings.keep} are kept; send the picture"
                    " again"
                )
            )
        try:
            fov = float(request.query.get("fov", self.settings.fov))
        except ValueError:
            fov = 0.0
        if not 0 < fov < 180:
            raise web.HTTPBadRequest(
                text=f"fov is {request.query['fov']}: expected degrees above 0 and below 180"
            )
        result = self.results[key]
        content = await asyncio.get_running_loop().run_in_executor(
            self.writer, encoded, result, kind, fov, self.predictor.record.bounds
        )
        file = (
            f"{Path(result.name).stem}.{kind}".encode("ascii", "replace").decode().replace('"', "_")
        )
        return web.Response(
            body=content,
            content_type=TYPES[kind],
            headers={
                "Content-Disposition": f'inline; filename="{file}"',
                "Cache-Control": "no-store",
            },
        )


def encoded(result: Result, kind: str, fov: float, bounds) -> bytes:
    """A result as a file of that kind."""
    if kind == "f32":
        return result.depth_mm.astype("<f4").tobytes()
    if kind == "ply":
        size = result.depth_mm.shape
        return as_ply(
            points_from_depth(result.depth_mm, pixel_rays(pinhole_from_fov(size, fov), size)),
            result.rgb,
        )
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
async def plain_errors(request: web.Request, handler) -> web.StreamResponse:
    """Whatever goes wrong with a request is one line for its sender; the server goes on."""
    try:
        return await handler(request)
    except web.HTTPRequestEntityTooLarge:
        status, text = (
            413,
            f"the file is larger than {request.client_max_size / 1e6:g} MB (--max-mb)",
        )
    except web.HTTPException as err:
        status, text = err.status, err.text
    except BadFile as err:
        status, text = 400, str(err)
    except asyncio.CancelledError:
        raise
    except Exception as err:
        print(
            f"WARNING      {request.method} {request.path}: {type(err).__name__}: {err}", flush=True
        )
        status, text = 500, f"{type(err).__name__}: {str(err)[:200]}"
    return web.json_response({"error": text}, status=status)


def main(argv: list[str] | None = None) -> None:
    settings, given = parse(
        "A page that shows and measures depth.", ServeSettings, ExternalAdapterSettings, argv=argv
    )
    silence_libraries()
    model, record = load_model(settings.run, given)
    print(describe_model(model, record))
    service = Service(
        settings, Predictor(model, record, pick_device(), settings.refine, settings.flip)
    )
    if settings.host not in LOCAL:
        print(
            f"WARNING      listening at {settings.host}: everybody who reaches it can send"
            " pictures; there is no password"
        )
    try:
        asyncio.run(serve(service))
    except OSError as err:
        raise ValueError(
            f"--host {settings.host} --port {settings.port}: cannot listen there:"
            f" {err.strerror or err}"
        ) from None


async def serve(service: Service) -> None:
    """Answer until somebody stops the program."""
    runner = web.AppRunner(service.app(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, service.settings.host, service.settings.port)
    await site.start()
    host, port = site._server.sockets[0].getsockname()[:2]
    print(
        f"open         http://{f'[{host}]' if ':' in host else host}:{port}   (Ctrl-C ends it)",
        flush=True,
    )
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
        for pool in (service.worker, service.writer):
            pool.shutdown(wait=False, cancel_futures=True)
