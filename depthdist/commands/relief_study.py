"""Predict captures with a run in several ways, measure their relief, and write what was found."""

from __future__ import annotations

import hashlib
import io
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from depthdist.commands.relief import ReliefSettings
from depthdist.core.environment import describe_environment
from depthdist.core.files import write_atomic, write_json
from depthdist.evaluation.metrics.grooves import Groove
from depthdist.evaluation.relief.captures import (
    check_same_scenes,
    list_stems,
    read_image,
    read_settings,
    read_truth,
)
from depthdist.evaluation.relief.figure import draw_relief
from depthdist.evaluation.relief.measures import (
    GroovesByRow,
    MeasuredCapture,
    measure_capture,
    measure_grooves,
)
from depthdist.evaluation.relief.study import (
    FORMAT,
    PLAIN,
    RELIEF_FILE,
    compare_half,
    judge_goals,
    summarize_rows,
)
from depthdist.evaluation.relief.tables import format_relief
from depthdist.evaluation.worker_pool import WorkerPool
from depthdist.inference.loaded_model import LoadedModel, load
from depthdist.models.settings import Refinement
from depthdist.models.stage_files import has_stage
from depthdist.runs.run_folder import Run
from depthdist.runs.seen_images import learned_from
from depthdist.synthetic.command import paths

# captures that are predicted before any is measured: what measures takes the cores
NUM_TIMED = 4
T = TypeVar("T")
Measure = Callable[[Path, str, Mapping[str, np.ndarray]], T]


class Predicted(NamedTuple):
    """A capture's predictions (H, W) float32 mm and the seconds that each took, by row."""

    stem: str
    preds_mm: dict[str, np.ndarray]
    seconds: dict[str, float]


def study_relief(run: Run, settings: ReliefSettings) -> dict[str, Any]:
    """Measure a run's relief, print the tables and the goals, and return what relief.json gets."""
    assert settings.captures is not None  # ReliefSettings.problems
    captures = settings.captures
    stems = list_stems(captures)
    if settings.half:
        check_same_scenes(captures, settings.half)
    has_judged = settings.refine != "detail" or has_stage(run.folder, "detail")
    judged: Refinement = settings.refine if has_judged else "plain"
    refinements: list[Refinement] = ["plain", judged]
    models: dict[str, LoadedModel] = {
        row: load(run.folder, refine=row) for row in dict.fromkeys(refinements)
    }
    if not has_judged:
        print(
            f"{run.folder} has no detail stage (detail/best): plain and what it is compared with"
            " are measured, and no goals"
        )
    seen = learned_from(run.folder, [paths(captures, stem)["rgb"] for stem in stems])
    if seen:
        print(
            f"WARNING   the run learned from {len(seen)} of these {len(stems)} captures, such as"
            f" {seen[0].name}: render others, with another --seed"
        )
    seconds: dict[str, list[float]] = {row: [] for row in models}
    measured = measure_all(models, captures, settings.workers, measure_capture, seconds)
    rows = summarize_rows(measured, settings.tread_limit)
    for row, of_captures in seconds.items():
        rows[row]["seconds"] = median(of_captures)
    half = half_content(models, settings, measured) if settings.half else None
    content = {
        **describe_environment(models[PLAIN].device),
        "format": FORMAT,
        "threads": torch.get_num_threads(),
        "model": hash_model(run.folder),
        "captures": {
            "images": len(stems),
            "trained_on": len(seen),
            "settings": read_settings(captures),
        },
        "tread_limit_mm": settings.tread_limit,
        "judged": judged,
        "rows": rows,
        "half": half,
        "goals": judge_goals(rows, judged) if has_judged else [],
        "images": {stem: one.values for stem, one in measured.items()},
        "grooves": list_grooves({stem: one.grooves for stem, one in measured.items()}),
        "painted": list_grooves({stem: one.painted for stem, one in measured.items()}),
    }
    out = settings.out or run.folder / RELIEF_FILE
    write_json(out, content)
    write_figure(models, captures, measured, out.with_suffix(".png"))
    print(f"{len(stems)} captures of {captures}\n\n{format_relief(content)}")
    print(f"\nwritten to {out} and {out.with_suffix('.png').name}")
    return content


def hash_model(run: Path, parts: Sequence[str] = ("best", "detail/best")) -> dict[str, str]:
    """Return the sha256 of each file of weights in parts of a run, by its path in the run."""
    files = [path for part in parts for path in (run / part).glob("*.safetensors")]
    return {
        path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files)
    }


# ---------------------------------------------------------------------------------------- measuring


def measure_all(
    models: Mapping[str, LoadedModel],
    folder: Path,
    workers: int,
    measure: Measure[T],
    seconds: dict[str, list[float]] | None = None,
) -> dict[str, T]:
    """Return what `measure` finds in the predictions of every capture of a folder, by stem.

    seconds  gets, by row, what a prediction took where nothing else was at work
    """
    stems = list_stems(folder)
    shown = predict_captures(models, folder, stems)
    predicted = iter(
        tqdm(shown, "predicting", len(stems), unit="image", disable=not sys.stderr.isatty())
    )
    first: list[Predicted] = []
    if seconds is not None:
        first = list(islice(predicted, NUM_TIMED))
        # the first prediction of a process makes buffers that the others use again
        for one in first[1:] or first:
            for row, value in one.seconds.items():
                seconds[row].append(value)
    found: dict[str, Future[T]] = {}
    with WorkerPool(workers, len(stems)) as pool:
        for one in chain(first, predicted):
            found[one.stem] = pool.submit(measure, folder, one.stem, one.preds_mm)
        waiting = tqdm(
            found.items(), "measuring", unit="image", disable=not sys.stderr.isatty(), leave=False
        )
        return {stem: future.result() for stem, future in waiting}


def predict_captures(
    models: Mapping[str, LoadedModel], folder: Path, stems: Iterable[str]
) -> Iterator[Predicted]:
    """Yield the predictions of each capture."""
    for stem in stems:
        rgb = read_image(folder, stem)
        preds_mm = {}
        seconds = {}
        for row, model in models.items():
            started = time.perf_counter()
            preds_mm[row] = predict(model, rgb)
            seconds[row] = time.perf_counter() - started
        yield Predicted(stem, preds_mm, seconds)


def predict(model: LoadedModel, rgb: np.ndarray) -> np.ndarray:
    """Return depth (H, W) mm of an image (H, W, 3) uint8, as depthdist predict does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of captures of another aspect: each image
        return model.predict(rgb).depth_mm


def half_content(
    models: Mapping[str, LoadedModel],
    settings: ReliefSettings,
    measured: Mapping[str, MeasuredCapture],
) -> dict[str, Any]:
    """Return what relief.json says of the same scenes with shallower grooves."""
    assert settings.half is not None
    of_half: dict[str, GroovesByRow] = measure_all(
        models, settings.half, settings.workers, measure_grooves
    )
    whole = {stem: one.grooves for stem, one in measured.items()}
    return {"settings": read_settings(settings.half), "rows": compare_half(whole, of_half)}


# ------------------------------------------------------------------------------------------ writing


def list_grooves(by_capture: Mapping[str, GroovesByRow]) -> dict[str, list[dict[str, Any]]]:
    """Return the grooves of each row with the stem of their capture, as in evaluation.json."""
    found: dict[str, list[dict[str, Any]]] = {}
    for stem, by_row in by_capture.items():
        for row, grooves in by_row.items():
            found.setdefault(row, []).extend({"key": stem, **asdict(groove)} for groove in grooves)
    return found


def write_figure(
    models: Mapping[str, LoadedModel],
    folder: Path,
    measured: Mapping[str, MeasuredCapture],
    path: Path,
) -> None:
    """Write the relief of the capture with the most measured grooves."""

    def num_grooves(stem: str) -> int:
        grooves: list[Groove] = measured[stem].grooves[PLAIN]
        return len(grooves)

    stem = max(measured, key=num_grooves)
    (predicted,) = predict_captures(models, folder, [stem])
    image = draw_relief(read_image(folder, stem), read_truth(folder, stem), predicted.preds_mm)
    file = io.BytesIO()
    image.save(file, "PNG")
    write_atomic(path, file.getvalue())
