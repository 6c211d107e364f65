"""The command depthdist export: parse the settings before torch is imported."""

from __future__ import annotations

from depthdist.core.command_line import parse
from depthdist.core.imports import importing
from depthdist.inference.model_folder import find_local_folder
from depthdist.inference.settings import ExportSettings, ExternalAdapterSettings


def main(argv: list[str] | None = None) -> None:
    """Export a trained adapter."""
    settings, external = parse(
        "A trained adapter as a whole model, a bare adapter with its card, and ONNX.",
        ExportSettings,
        ExternalAdapterSettings,
        argv=argv,
    )
    find_local_folder(settings.run)

    with importing():
        from depthdist.inference.export import export_model

    export_model(settings, external)
