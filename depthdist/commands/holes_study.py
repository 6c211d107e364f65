"""Fill captures with a run and in simpler ways, measure the holes, and write what was found."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from depthdist.commands.holes import HolesSettings
from depthdist.commands.relief_study import hash_model
from depthdist.core.environment import describe_environment, peak_memory_gib
from depthdist.core.errors import BadFile
from depthdist.core.files import write_json
from depthdist.data.punched_holes import punch_holes
from depthdist.data.random_streams import hole_stream
from depthdist.evaluation.figures import save_figure
from depthdist.evaluation.holes.figure import draw_holes, draw_sigma
from depthdist.evaluation.holes.measures import Sums, fill_in_ways, measure_filled
from depthdist.evaluation.holes.study import (
    COMPLETION,
    FORMAT,
    HOLES_FILE,
    KINDS,
    SigmaSample,
    judge_goals,
    judge_sigma,
    summarize,
)
from depthdist.evaluation.holes.tables import format_holes
from depthdist.geometry.image_resizing import resize_rgb
from depthdist.geometry.measured import is_measured
from depthdist.inference.image_sources import ImageSource, InputImage, find_sources, source_to_fill
from depthdist.inference.loaded_model import LoadedModel, load
from depthdist.models.completion_maps import working_stride
from depthdist.runs.run_folder import Run, read_options
from depthdist.runs.seen_images import learned_from

MODEL_PARTS = ("best", "detail/best", "completion/best")
MOST_PIXELS = 50_000  # of a capture, for sigma
TRUTH = "_truth.npz"
DRAWN = ("harmonic", "prediction moved", COMPLETION)


class Scene(NamedTuple):
    """What is shown of a capture, and what is known.

    shown_mm  (H, W) float32, 0 where nothing is shown
    truth_mm  (H, W) float32, NaN where it is not known
    wanted    (H, W) bool, holes that count
    """

    shown_mm: np.ndarray
    truth_mm: np.ndarray
    wanted: np.ndarray


class Filled(NamedTuple):
    """What was found in one scene."""

    sums: dict[str, dict[str, Sums]]
    sigma: SigmaSample | None
    seconds: tuple[float, float]


def study_holes(run: Run, settings: HolesSettings) -> dict[str, Any]:
    """Measure how a run fills, print the tables and the goals, and return what holes.json gets."""
    assert settings.captures is not None  # HolesSettings.problems
    folder = settings.captures
    options = read_options(str(run.folder))
    sources = [source_to_fill(one) for one in find_sources([str(folder)], run.folder, options)]
    models = load(run.folder), load(run.folder, flip=True)
    has_stage = models[0].has_completion
    if not has_stage:
        print(
            f"{run.folder} has no completion stage (`depthdist completion {run.folder}` trains it):"
            " the other ways are measured, and no goals"
        )
    seen = learned_from(run.folder, [source.files[0] for source in sources])
    if seen:
        print(
            f"WARNING   the run learned from {len(seen)} of these {len(sources)} captures, such as"
            f" {seen[0].name}: take others"
        )
    sums: dict[str, list[dict[str, dict[str, Sums]]]] = {kind: [] for kind in KINDS}
    samples: dict[str, list[SigmaSample]] = {kind: [] for kind in KINDS}
    seconds: list[tuple[float, float]] = []
    widest: tuple[float, int, str] | None = None
    progress = tqdm(sources, "filling", unit="image", disable=not sys.stderr.isatty())
    previous = None
    for number, source in enumerate(progress):
        image = source.read()
        scenes = make_scenes(source, image, previous, settings.seed, number)
        previous = image
        for kind, scene in scenes.items():
            found = fill_scene(models, image, scene)
            sums[kind].append(found.sums)
            seconds.append(found.seconds)
            if found.sigma is not None:
                samples[kind].append(found.sigma)
            share = float(scene.wanted.mean())
            if kind == next(iter(scenes)) and (widest is None or share > widest[0]):
                widest = share, number, kind
    rows = summarize(sums)
    sigma = {kind: judge_sigma(some) for kind, some in samples.items() if some}
    timed = seconds[1:] or seconds  # the first of a process makes buffers that others use again
    content = {
        **describe_environment(models[0].device),
        "format": FORMAT,
        "threads": torch.get_num_threads(),
        "model": hash_model(run.folder, MODEL_PARTS),
        "captures": {"images": len(sources), "trained_on": len(seen)},
        "seed": settings.seed,
        "rows": rows,
        "sigma": sigma,
        "goals": judge_goals(rows, sigma) if has_stage else [],
        "seconds": {
            "predict": median(one for one, _ in timed),
            "fill": median(two for _, two in timed),
        },
        "memory_gib": peak_memory_gib(),
    }
    out = settings.out or run.folder / HOLES_FILE
    write_json(out, content)
    written = [out.name]
    if widest is not None:
        written.append(write_scene(models[0], sources, *widest[1:], settings, out))
    for kind, judged in sigma.items():
        path = out.with_name(f"{out.stem}_sigma_{kind}.png")
        save_figure(draw_sigma(judged, f"{kind} holes"), path)
        written.append(path.name)
    print(f"{len(sources)} captures of {folder}\n\n{format_holes(content)}")
    print(f"\nwritten to {out.parent}: {', '.join(written)}")
    return content


def make_scenes(
    source: ImageSource, image: InputImage, other: InputImage | None, seed: int, number: int
) -> dict[str, Scene]:
    """Return what is shown of a capture by kind of hole: its own holes, and punched ones.

    other   the capture before, whose own holes are moved onto this one
    number  of the capture, which decides what is punched
    """
    assert image.truth_mm is not None  # source_to_fill
    measured = is_measured(image.truth_mm)
    camera_mm = np.where(measured, image.truth_mm, 0.0).astype(np.float32)
    scenes = {}
    exact_mm = read_exact(source, image.size)
    if exact_mm is not None:
        scenes["natural"] = Scene(camera_mm, exact_mm, ~measured)
    hole = punch(image, camera_mm, other, seed, number)
    if hole.any():
        shown = np.where(hole, np.float32(0), camera_mm)
        scenes["punched"] = Scene(shown, np.where(measured, camera_mm, np.nan), hole)
    return scenes


def read_exact(source: ImageSource, size: tuple[int, int]) -> np.ndarray | None:
    """Return exact depth (H, W) mm of a built-in capture, NaN where nothing is; None of others."""
    image = source.files[0]
    stem = source.name.removesuffix("_color")
    path = image.parent.parent / "truth" / f"{stem}{TRUTH}"
    if not path.exists():
        return None
    try:
        with np.load(path) as file:
            exact: np.ndarray = file["z"]
    except (OSError, ValueError, KeyError) as err:
        raise BadFile(path, f"cannot be read ({err})") from err
    if exact.shape != size:
        raise BadFile(path, f"is {exact.shape}; expected {size}, as the image")
    return np.where(is_measured(exact), exact, np.nan)


def punch(
    image: InputImage, camera_mm: np.ndarray, other: InputImage | None, seed: int, number: int
) -> np.ndarray:
    """Return which measured pixels (H, W) bool are hidden, drawn at the working size."""
    height, width = image.size
    stride = working_stride(width)
    small = camera_mm[stride // 2 :: stride, stride // 2 :: stride]
    rgb = resize_rgb(image.rgb, (small.shape[0], small.shape[1]))
    given = image if other is None or other.size != image.size else other
    assert given.truth_mm is not None
    mask = is_measured(given.truth_mm[stride // 2 :: stride, stride // 2 :: stride])
    stream = hole_stream(seed, number, validation=True)
    hole = punch_holes(small, rgb, lambda _: mask, stream)
    large = hole.repeat(stride, 0).repeat(stride, 1)
    rest = [(0, max(0, side - found)) for side, found in zip((height, width), large.shape)]
    whole: np.ndarray = np.pad(large, rest, mode="edge")[:height, :width] & (camera_mm > 0)
    return whole


def fill_scene(models: tuple[LoadedModel, LoadedModel], image: InputImage, scene: Scene) -> Filled:
    """Fill a scene in every way and measure it.

    models  the run's model, and the same averaged with the mirror image
    """
    model, flipped = models
    ways, sigma_mm, seconds = fill_all(model, image, scene)
    measured = scene.shown_mm > 0
    sums = {
        way: measure_filled(filled, scene.truth_mm, measured, scene.wanted)
        for way, filled in ways.items()
    }
    if sigma_mm is None:
        return Filled(sums, None, seconds)
    with quiet():
        mirrored = flipped.predict(image.rgb).depth_mm
    where = np.flatnonzero(scene.wanted & ~measured & np.isfinite(scene.truth_mm))
    where = where[:: max(1, len(where) // MOST_PIXELS)]
    filled = ways[COMPLETION].ravel()[where]
    sample = SigmaSample(
        np.abs(filled - scene.truth_mm.ravel()[where]).astype(np.float64),
        sigma_mm.ravel()[where].astype(np.float64),
        2 * np.abs(mirrored - ways["prediction"]).ravel()[where].astype(np.float64),
        filled.astype(np.float64),
    )
    return Filled(sums, sample, seconds)


def fill_all(
    model: LoadedModel, image: InputImage, scene: Scene
) -> tuple[dict[str, np.ndarray], np.ndarray | None, tuple[float, float]]:
    """Return depth (H, W) mm by way, sigma, and the seconds of predicting and of filling."""
    with quiet():
        started = time.perf_counter()
        pred_mm = model.predict(image.rgb).depth_mm
        predicted = time.perf_counter()
        result = model.fill(image.rgb, scene.shown_mm)
        ended = time.perf_counter()
    ways = fill_in_ways(pred_mm, scene.shown_mm)
    if model.has_completion:
        ways[COMPLETION] = result.depth_mm
    spent = predicted - started
    return ways, result.sigma_mm, (spent, max(0.0, ended - predicted - spent))


@contextmanager
def quiet() -> Iterator[None]:
    """Give no warnings of captures of another aspect: each image has one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def write_scene(
    model: LoadedModel,
    sources: list[ImageSource],
    number: int,
    kind: str,
    settings: HolesSettings,
    out: Path,
) -> str:
    """Write the figure of a capture with its holes of a kind; return the file's name."""
    image = sources[number].read()
    previous = sources[number - 1].read() if number else None
    scene = make_scenes(sources[number], image, previous, settings.seed, number)[kind]
    ways, sigma_mm, _ = fill_all(model, image, scene)
    drawn = {way: ways[way] for way in DRAWN if way in ways}
    path = out.with_suffix(".png")
    save_figure(draw_holes(image.rgb, scene.shown_mm, scene.truth_mm, drawn, sigma_mm), path)
    return path.name
