"""Depth in mm for images, with a trained adapter.

    depthdist predict captures 'more/*.png' data/tires --run runs/NAME --out predictions

For each image, at its own size (from shards: at the size of the ground truth), what --save names
(default: npy, png, colour, figure):
    npy      NAME_depth.npy         float32 (H, W), mm
    png      NAME_depth_0.1mm.png   16 bit, one unit is 0.1 mm (1 mm if the run's depth range ends
                                    beyond 6.5 m, then NAME_depth_1mm.png, and so on)
    colour   NAME_colour.png        near red, far blue, over the run's depth range
    figure   NAME_figure.png        RGB | prediction, and ground truth and error if the image's
                                    point cloud is beside it
    sigma    NAME_sigma.npy         float32 (H, W), standard deviation of the error, mm; 0 where
                                    measured. Needs the run's completion stage
    ply      NAME_cloud.ply         colored points, mm; if the camera's rays are known: from the
                                    point cloud beside the image, --intrinsics or --fov

With --fill they are what the camera measured beside each image, its holes filled: NAME_filled.npy,
NAME_filled_0.1mm.png and so on; and NAME_filled_map.png, 8 bit, 255 where a pixel was measured, 128
where it was filled, 0 where --refuse left it out. The run's completion stage fills; without one
the prediction does, moved to what was measured around a hole.

OUT/done.jsonl has a line for each finished image: after an interruption the same command resumes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from depthdist.captures.found_files import RESULTS_LIST
from depthdist.core.environment import peak_memory_gib, silence_libraries
from depthdist.core.errors import BadFile, printable_path
from depthdist.core.file_lock import hold_folder
from depthdist.geometry.camera import points_from_depth
from depthdist.geometry.depth_range import DepthRange
from depthdist.geometry.measured import is_measured
from depthdist.inference.done_log import append_done, is_done, read_done_log
from depthdist.inference.external_model import load_refined
from depthdist.inference.image_sources import ImageSource, InputImage, find_rays
from depthdist.inference.model_folder import find_model_folder
from depthdist.inference.predictor import (
    Depth,
    Predictor,
    at_full_size,
    list_devices,
    predict_sources,
)
from depthdist.inference.result_files import (
    colorize_depth,
    result_suffixes,
    write_figure,
    write_map,
    write_ply,
    write_png,
)
from depthdist.inference.settings import ExternalAdapterSettings, PredictSettings
from depthdist.models.adapter_record import AdapterRecord
from depthdist.models.completion import Completion, describe_filling, load_completion
from depthdist.models.depth_model import DepthModel
from depthdist.models.refiner import Refiner


def predict_images(
    settings: PredictSettings, external: ExternalAdapterSettings, sources: list[ImageSource]
) -> list[str]:
    """Write the results of every image; return one line for each that could not be read."""
    silence_libraries()
    started = time.monotonic()
    model, record, refiner = load_refined(settings.run, settings.refine, external)
    settings = replace(settings, refine=refiner.refinement)
    completion = load_completion(find_model_folder(settings.run))
    if settings.needs_sigma and completion is None:
        raise ValueError(
            f"{settings.needs_sigma}: {settings.run} has no completion stage, which says how sure a"
            " depth is; `depthdist completion RUN` trains it"
        )
    if settings.fill:
        print(f"fill         {describe_filling(completion)}")
    with hold_folder(settings.out, "depthdist predict", "--out", RESULTS_LIST):
        return _predict_into_out(settings, model, record, refiner, completion, sources, started)


def _predict_into_out(
    settings: PredictSettings,
    model: DepthModel,
    record: AdapterRecord,
    refiner: Refiner,
    completion: Completion | None,
    sources: list[ImageSource],
    started: float,
) -> list[str]:
    """Write what is not done yet and print a summary; `started` is when the command began."""
    finished = read_done_log(settings, model, record, refiner, completion)
    check_overwriting(settings, record.bounds, sources, finished)
    todo = [s for s in sources if not is_done(settings.out, s, finished.get(s.name))]
    if len(todo) < len(sources):
        print(
            f"{len(sources) - len(todo)} of {len(sources)} images are done already in"
            f" {settings.out}; --again predicts them anew"
        )
    try:
        predictors = [
            Predictor(deepcopy(model), record, device, refiner, settings.flip, completion)
            for device in list_devices()
        ]
        num_done, problems = write_all(settings, todo, predictors)
    except torch.OutOfMemoryError as err:
        raise ValueError(
            f"--batch {settings.batch}: out of the GPU's memory ({str(err).splitlines()[0][:160]});"
            " finished images are kept"
        ) from err
    what = "measured depth with its holes filled" if settings.fill else "depth"
    summary = f"{num_done} of {len(todo)} images: {what} in mm in {settings.out}, as"
    summary += f" {', '.join(settings.kinds)}"
    if num_done:
        seconds = (time.monotonic() - started) / num_done
        summary += f"; {seconds:.2f} s per image{describe_memory(predictors)}"
    print(summary)
    return problems


def check_overwriting(
    settings: PredictSettings,
    bounds: DepthRange,
    sources: list[ImageSource],
    finished: dict[str, dict[str, Any]],
) -> None:
    """Raise ValueError if results would replace a file that is read, or another image's results."""
    read = {file for source in sources for file in source.files}
    suffixes = result_suffixes(bounds, settings.fill)
    for source in sources:
        results = {
            settings.out.resolve() / f"{source.name}_{suffixes[kind]}" for kind in settings.kinds
        }
        overwritten = read & results
        if overwritten:
            raise ValueError(
                f"{printable_path(overwritten.pop())}: is an input and would be overwritten by a"
                f" result of {source.origin}; give another --out"
            )
        if source.name in finished and finished[source.name]["origin"] != source.origin:
            raise ValueError(
                f"--out {settings.out}: {source.name}_* there are of"
                f" {finished[source.name]['origin']}, not of {source.origin}; give another folder,"
                " or --again to replace them"
            )


def write_all(
    settings: PredictSettings, sources: list[ImageSource], predictors: list[Predictor]
) -> tuple[int, list[str]]:
    """Predict and write every source; return how many are done, and the problems found."""
    bounds = predictors[0].record.bounds
    problems: list[str] = []
    num_done = 0
    num_without_rays = 0
    remarks: dict[str, list[str]] = {}
    progress = tqdm(
        total=len(sources), desc="predicting", unit="image", disable=not sys.stderr.isatty()
    )
    with progress, open(settings.out / RESULTS_LIST, "a", encoding="utf-8") as log:
        predictions = predict_sources(
            sources,
            predictors,
            settings.batch,
            sigma=settings.needs_sigma is not None,
            refuse_mm=settings.refuse,
        )
        for source, image, depth in predictions:
            if isinstance(image, BadFile):
                problems.append(str(image))
            else:
                assert depth is not None  # there is one for every image that was read
                if image.note:
                    problems.append(image.note)
                for kind, text in predictors[0].remarks(image).items():
                    remarks.setdefault(kind, []).append(f"{source.name} {text}")
                try:
                    files = write_results(settings, source.name, image, depth, bounds)
                    append_done(log, source, files)
                except OSError as err:
                    raise ValueError(
                        f"{settings.out}/{source.name}_*: cannot be written after {num_done}"
                        f" images: {err.strerror or err}; the same command resumes"
                    ) from err
                if "ply" in settings.save and not any(file.endswith(".ply") for file in files):
                    num_without_rays += 1
                num_done += 1
            progress.update()
    for of_kind in remarks.values():
        print(f"WARNING   {len(of_kind)} images, such as {of_kind[0]}")
    if num_without_rays:
        print(
            f"no .ply of {num_without_rays} images: their camera is not known; give --fov or"
            " --intrinsics"
        )
    return num_done, problems


def write_results(
    settings: PredictSettings,
    name: str,
    image: InputImage,
    depth: Depth,
    bounds: DepthRange,
) -> list[str]:
    """Write what --save names for an image and return the names of the files.

    Without ply if the camera's rays are not known.
    """
    rgb = at_full_size(image)
    depth_mm, sigma_mm = depth
    writers: dict[str, Callable[[Path], object]] = {
        "npy": lambda path: np.save(path, depth_mm),
        "png": lambda path: write_png(path, depth_mm, bounds),
        "colour": lambda path: Image.fromarray(colorize_depth(depth_mm, bounds)).save(path),
        "figure": lambda path: write_figure(
            path, rgb, depth_mm, image.truth_mm, name, settings.fill
        ),
    }
    if sigma_mm is not None:
        writers["sigma"] = lambda path: np.save(path, sigma_mm)
    if settings.fill:
        assert image.truth_mm is not None  # image_sources.to_fill
        measured = is_measured(image.truth_mm)
        writers["map"] = lambda path: write_map(path, measured, np.isnan(depth_mm))
    if "ply" in settings.save:
        rays = find_rays(image, settings.intrinsics, settings.fov)
        if rays is not None:
            writers["ply"] = lambda path: write_ply(path, points_from_depth(depth_mm, rays), rgb)
    suffixes = result_suffixes(bounds, settings.fill)
    files = {kind: f"{name}_{suffixes[kind]}" for kind in settings.kinds if kind in writers}
    for kind, file in files.items():
        writers[kind](settings.out / file)
    return list(files.values())


def describe_memory(predictors: list[Predictor]) -> str:
    """Return the largest memory use of this process so far, as the end of a sentence."""
    used = peak_memory_gib()
    text = "" if used is None else f", {used:.1f} GiB of memory at most"
    if predictors[0].device.type == "cuda":
        peak = max(torch.cuda.max_memory_allocated(p.device) for p in predictors)
        text += f", {peak / 2**30:.1f} GiB of a GPU's"
    return text
