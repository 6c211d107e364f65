"""The command depthdist predict: parse settings and find the images before torch is imported."""

from __future__ import annotations

from depthdist.core.command_line import parse
from depthdist.core.imports import importing
from depthdist.inference.image_sources import find_sources, source_to_fill
from depthdist.inference.model_folder import find_local_folder
from depthdist.inference.settings import ExternalAdapterSettings, PredictSettings
from depthdist.runs.run_folder import read_options


def main(argv: list[str] | None = None) -> None:
    """Predict depth in mm for images; ValueError names the images that could not be read."""
    settings, external = parse(
        "Depth in mm for images, with a trained adapter.",
        PredictSettings,
        ExternalAdapterSettings,
        argv=argv,
        first=("inputs", "run", "out", "save", "refine", "fill"),
    )
    options = read_options(settings.run)
    if settings.unit is not None:
        options = options._replace(unit_mm=settings.unit)
    sources = find_sources(settings.inputs, settings.out, options)
    if settings.refine not in (None, "plain") and any(source.shard for source in sources):
        raise ValueError(
            f"--refine {settings.refine} needs images at their full size; shards have them at the"
            " network's size: give the captures"
        )
    if settings.fill:
        sources = [source_to_fill(source, settings.denoise) for source in sources]
    find_local_folder(settings.run)

    with importing():
        from depthdist.inference.predict import predict_images

    problems = predict_images(settings, external, sources)
    if problems:
        raise ValueError("\n".join(problems))
