"""Depth in mm for pictures, with a trained adapter.

    python launch/predict.py captures 'more/*.png' data/tires --run runs/NAME --out predictions

For each picture, at its own size (from shards: at the truth's), what --save names (default: all but
ply, the largest):
    npy      NAME_depth.npy         float32 (H, W), mm
    png      NAME_depth_0.1mm.png   16 bit, one unit is 0.1 mm (1 mm where the run's depth ends
             beyond 6.5 m, then NAME_depth_1mm.png, and so on)
    colour   NAME_colour.png        near red, far blue, over the run's range of depth
    figure   NAME_figure.png        RGB | prediction, and truth and error where the picture's point
             cloud stands beside it
    ply      NAME_cloud.ply         coloured points, mm; where the camera's rays are known: from the
             point cloud beside it, --intrinsics or --fov

OUT/done.jsonl has a line for each picture that is finished: the same command goes on where it was
stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from depthdist.core.environment import silence_libraries
from depthdist.core.errors import BadFile, printable_path
from depthdist.core.settings import as_dict, did_you_mean, parse, positional, to_json_value
from depthdist.evaluation.figures import figure, save_figure
from depthdist.geometry.camera import pinhole, pinhole_from_fov, pixel_rays, points_from_depth
from depthdist.geometry.depth_range import DepthRange
from depthdist.geometry.resampling import resize_rgb
from depthdist.inference.external_model import ExternalAdapterSettings, load_model
from depthdist.inference.image_sources import Source, find_sources
from depthdist.inference.predictor import InputImage, Predictor, devices
from depthdist.inference.result_files import (
    RESULT_KINDS,
    colorize_depth,
    result_suffixes,
    write_ply,
    write_png,
)
from depthdist.models.adapter import describe_model
from depthdist.models.adapter_record import AdapterRecord
from depthdist.models.depth_model import DepthModel
from depthdist.models.settings import Refinement

DONE = "done.jsonl"


@dataclass(frozen=True)
class PredictSettings:
    """Prediction"""

    run: str
    """Folder of the run, of an adapter (a run's best/, or one that plain peft saved elsewhere),
    of an exported model, or a hub id."""
    inputs: list[str] = positional(())
    """Pictures, folders of them or of raw captures, patterns such as 'day1/*.png', folders of
    shards."""
    out: Path = Path("predictions")
    "Folder for the results, made where it is missing."
    save: tuple[str, ...] = RESULT_KINDS[:4]
    """What to write of each picture, with commas between: npy, png, colour, figure, ply (15
    bytes a pixel)."""
    refine: Refinement = "plain"
    """Detail from the picture at its full size: guided (depth's edges move onto the picture's)
    or tiles (overlapping pieces, each seen as large as the whole)."""
    flip: bool = False
    "Average with the mirror image's prediction: twice the time."
    fov: float | None = None
    """For ply, where no point cloud is beside the picture: degrees that the camera sees from
    left to right."""
    intrinsics: tuple[float, ...] = ()
    "The same, exactly: fx,fy,cx,cy in pixels of the picture; column + 0.5 = fx X / Z + cx."
    batch: int = 1
    "Pictures at a time on each device."
    again: bool = False
    "Forget what is done in --out and predict everything anew."

    def problems(self) -> list[str]:
        found = [] if self.inputs else ["INPUTS is missing: pictures, or folders of them"]
        if self.out.exists() and not self.out.is_dir():
            found.append(f"--out {self.out}: is a file; expected a folder")
        if wrong := [kind for kind in self.save if kind not in RESULT_KINDS]:
            found.append(
                f"--save has {wrong[0]}: expected"
                f" {', '.join(RESULT_KINDS)}{did_you_mean(wrong[0], list(RESULT_KINDS))}"
            )
        if not self.save:
            found.append(f"--save is empty: expected some of {', '.join(RESULT_KINDS)}")
        if self.fov is not None and not 0 < self.fov < 180:
            found.append(f"--fov is {self.fov:g}: expected degrees above 0 and below 180")
        if self.intrinsics and (
            len(self.intrinsics) != 4
            or not all(map(math.isfinite, self.intrinsics))
            or min(self.intrinsics[:2]) <= 0
        ):
            found.append(
                f"--intrinsics is {','.join(f'{v:g}' for v in self.intrinsics)}: expected"
                " fx,fy,cx,cy in pixels, fx and fy above 0"
            )
        if self.intrinsics and self.fov is not None:
            found.append("--intrinsics and --fov: expected one of them")
        if (self.intrinsics or self.fov) and "ply" not in self.save:
            found.append("--intrinsics and --fov are for ply: name it in --save")
        if self.batch < 1:
            found.append(f"--batch is {self.batch}: expected >= 1")
        return found

    def rays(self, picture: InputImage) -> np.ndarray | None:
        """Of a picture, (H, W, 2): its own, else those that the settings say."""
        if picture.rays is None and (self.intrinsics or self.fov):
            return pixel_rays(
                (
                    pinhole(picture.size, *self.intrinsics)
                    if self.intrinsics
                    else pinhole_from_fov(picture.size, self.fov)
                ),
                picture.size,
            )
        return picture.rays


def predict_images(settings: PredictSettings, given: ExternalAdapterSettings) -> list[str]:
    """Write the results of every picture.

    Returns one line for each picture that could not be read.
    """
    silence_libraries()
    started, problems = time.monotonic(), []
    sources = find_sources(settings.inputs, settings.out)
    if settings.refine != "plain" and any(s.shard for s in sources):
        raise ValueError(
            f"--refine {settings.refine} needs pictures at their full size; shards have them as the"
            " network sees them: give the captures"
        )
    model, record = load_model(settings.run, given)
    print(describe_model(model, record))
    settings.out.mkdir(parents=True, exist_ok=True)
    finished = begin(settings, model, record)
    read = {file for s in sources for file in s.files}
    ends = [result_suffixes(record.bounds)[kind] for kind in settings.save]
    for s in sources:
        if lost := read & {settings.out.resolve() / f"{s.name}_{end}" for end in ends}:
            raise ValueError(
                f"{printable_path(lost.pop())}: is read here and would be written over as a result of"
                f" {s.origin}; give another --out"
            )
        if s.name in finished and finished[s.name]["origin"] != s.origin:
            raise ValueError(
                f"--out {settings.out}: {s.name}_* there are of {finished[s.name]['origin']}, not"
                f" of {s.origin}; give another folder, or --again to replace them"
            )
    todo = [s for s in sources if not is_done(settings.out, s, finished.get(s.name))]
    if len(todo) < len(sources):
        print(
            f"{len(sources) - len(todo)} of {len(sources)} pictures are done already in"
            f" {settings.out}; --again would do them anew"
        )
    predictors = [
        Predictor(deepcopy(model), record, device, settings.refine, settings.flip)
        for device in devices()
    ]
    without_rays = done = 0
    with (
        tqdm(
            total=len(todo), desc="predicting", unit="picture", disable=not sys.stderr.isatty()
        ) as bar,
        open(settings.out / DONE, "a") as log,
    ):
        for source, picture, depth_mm in results(todo, predictors, settings.batch):
            if isinstance(picture, BadFile):
                problems.append(str(picture))
            else:
                problems += [picture.note] if picture.note else []
                try:
                    files = write(settings, source.name, picture, depth_mm, record.bounds)
                    without_rays += (
                        "ply" in settings.save and f"{source.name}_cloud.ply" not in files
                    )
                    log.write(
                        json.dumps(
                            {
                                "name": source.name,
                                "version": source.version,
                                "origin": source.origin,
                                "files": files,
                            }
                        )
                        + "\n"
                    )
                    log.flush()
                except OSError as err:
                    raise ValueError(
                        f"{settings.out}/{source.name}_*: cannot be written after {done} pictures:"
                        f" {err.strerror or err}; the same command goes on"
                    ) from err
                done += 1
            bar.update()
    if without_rays:
        print(
            f"no .ply of {without_rays} pictures: their camera is not known; give --fov or"
            " --intrinsics"
        )
    seconds = time.monotonic() - started
    memory = (  # Linux counts KiB
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB of memory at most"
    )
    if predictors[0].device.type == "cuda":
        memory += (
            f", {max(torch.cuda.max_memory_allocated(p.device) for p in predictors) / 2**30:.1f}"
            " GiB of a GPU's"
        )
    each = f"; {seconds / done:.2f} s a picture, {memory}" if done else ""
    print(
        f"{done} of {len(todo)} pictures: depth in mm in {settings.out}, as"
        f" {', '.join(settings.save)}{each}"
    )
    return problems


def is_done(out: Path, source: Source, line: dict[str, Any] | None) -> bool:
    """Whether `line` of what is done is of the picture as it is now, and its files are still there."""
    return (
        line is not None
        and line["version"] == source.version
        and all((out / file).exists() for file in line["files"])
    )


def begin(
    settings: PredictSettings, model: DepthModel, record: AdapterRecord
) -> dict[str, dict[str, Any]]:
    """By name, the last line on each picture that is done in --out.

    ValueError where that was done with other settings or weights.
    """
    path = settings.out / DONE
    weights = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    how = {
        n: v
        for n, v in as_dict(settings).items()
        if n not in ("run", "inputs", "out", "batch", "again")
    }
    made_with = hashlib.sha256(
        json.dumps(
            [how, to_json_value(record), weights.hexdigest()], sort_keys=True, default=str
        ).encode()
    ).hexdigest()[:16]
    lines = path.read_text().splitlines() if path.exists() and not settings.again else []
    if not lines:
        path.write_text(
            json.dumps({"made_with": made_with, "run": settings.run, **how}, default=str) + "\n"
        )
        return {}
    try:
        first, *rest = (json.loads(line) for line in lines if line.endswith("}"))
        done = {
            line["name"]: line
            for line in rest
            if None not in (line["version"], line["origin"], line["files"])
        }
        before = first["made_with"], first["run"]
    except (KeyError, TypeError, ValueError) as err:
        raise ValueError(
            f"{path}: not a list of what is done ({err}); give another folder, or --again"
        ) from None
    if before[0] != made_with:
        raise ValueError(
            f"--out {settings.out}: holds predictions of {before[1]} with other settings; give"
            " another folder, or --again to replace them"
        )
    if not lines[-1].endswith("}"):  # cut short: a picture that is not done
        path.write_text("\n".join(lines[:-1]) + "\n")
    return done


def results(
    sources: list[Source], predictors: list[Predictor], batch: int
) -> Iterator[tuple[Source, InputImage | BadFile, np.ndarray | None]]:
    """What became of each source, in their order: its picture and depth in mm, or why it could not
    be read.

    Pictures are read ahead in threads; each device has a thread of its own with a batch at work and
    one that waits, so that it does not idle while results are written. Memory does not grow with
    their number.
    """
    readers, workers = ThreadPoolExecutor(2), [ThreadPoolExecutor(1) for _ in predictors]
    turns, left = cycle(zip(predictors, workers)), iter(sources)
    waiting: deque[tuple[list[Source], Future]] = deque()
    try:
        while True:
            while len(waiting) < 2 * len(predictors) and (some := list(islice(left, batch))):
                predictor, worker = next(turns)
                waiting.append(
                    (
                        some,
                        worker.submit(
                            _predicted, predictor, [readers.submit(_read, s) for s in some]
                        ),
                    )
                )
            if not waiting:
                return
            some, future = waiting.popleft()
            yield from ((s, *pair) for s, pair in zip(some, future.result()))
    finally:
        for pool in (readers, *workers):
            pool.shutdown(cancel_futures=True)


def _read(source: Source) -> InputImage | BadFile:
    try:
        return source.read()
    except BadFile as err:
        return err


def _predicted(
    predictor: Predictor, reading: list[Future]
) -> list[tuple[InputImage | BadFile, np.ndarray | None]]:
    pictures = [future.result() for future in reading]
    good = [p for p in pictures if isinstance(p, InputImage)]
    depths = iter(predictor(good) if good else [])
    return [(p, next(depths) if isinstance(p, InputImage) else None) for p in pictures]


def write(
    settings: PredictSettings,
    name: str,
    picture: InputImage,
    depth_mm: np.ndarray,
    bounds: DepthRange,
) -> list[str]:
    """Write what --save names of a picture; the files' names.

    No ply where the camera's rays are not known.
    """
    rgb, out, rays = (
        picture.rgb,
        settings.out,
        settings.rays(picture) if "ply" in settings.save else None,
    )
    if rgb.shape[:2] != picture.size:
        rgb = resize_rgb(rgb, picture.size)
    ways: dict[str, Callable[[Path], object]] = {
        "npy": lambda path: np.save(path, depth_mm),
        "png": lambda path: write_png(path, depth_mm, bounds),
        "colour": lambda path: Image.fromarray(colorize_depth(depth_mm, bounds)).save(path),
        "figure": lambda path: save_figure(
            figure(rgb, depth_mm, picture.truth_mm, title=name), path
        ),
        "ply": lambda path: write_ply(path, points_from_depth(depth_mm, rays), rgb),
    }
    files = {
        kind: f"{name}_{result_suffixes(bounds)[kind]}"
        for kind in settings.save
        if kind != "ply" or rays is not None
    }
    for kind, file in files.items():
        ways[kind](out / file)
    return list(files.values())


def main(argv: list[str] | None = None) -> int:
    settings, given = parse(
        "Depth in mm for pictures, with a trained adapter.",
        PredictSettings,
        ExternalAdapterSettings,
        argv=argv,
    )
    try:
        problems = predict_images(settings, given)
    except torch.OutOfMemoryError as err:
        raise ValueError(
            f"--batch {settings.batch}: out of the GPU's memory ({str(err).splitlines()[0][:160]});"
            " what is finished is kept"
        ) from err
    if problems:
        raise ValueError("\n".join(problems))
    return 0
