"""The command depthdist serve: parse the settings before torch and aiohttp are imported."""

from __future__ import annotations

from depthdist.core.command_line import parse
from depthdist.core.imports import importing
from depthdist.inference.model_folder import find_local_folder
from depthdist.inference.settings import ExternalAdapterSettings, ServeSettings


def main(argv: list[str] | None = None) -> None:
    """Serve the page until the program is stopped."""
    settings, external = parse(
        "A page that shows and measures depth.",
        ServeSettings,
        ExternalAdapterSettings,
        argv=argv,
        first=("run", "host", "port", "fov", "refine"),
    )
    find_local_folder(settings.run)

    with importing():
        from depthdist.inference.server import serve_page

    serve_page(settings, external)
