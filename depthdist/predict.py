"""Depth in mm for pictures, with a trained adapter.

    python launch/predict.py captures 'more/*.png' data/tires --run runs/NAME --out predictions

For each picture, at its own size (from shards: at the truth's), what --save names (default: all but ply, the largest):
    npy      NAME_depth.npy         float32 (H, W), mm
    png      NAME_depth_0.1mm.png   16 bit, one unit is 0.1 mm (1 mm where the run's depth ends beyond 6.5 m: then NAME_depth_1mm.png)
    colour   NAME_colour.png        near red, far blue, over the run's range of depth
    figure   NAME_figure.png        RGB | prediction, and truth and error where the picture's point cloud stands beside it
    ply      NAME_cloud.ply         coloured points, mm; where the camera's rays are known: from the point cloud beside it, --intrinsics or --fov

OUT/done.jsonl has a line for each picture that is finished: the same command goes on where it was stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import resource
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from tqdm import tqdm

from depthdist import config
from depthdist.camera import pinhole, pixel_rays, points, wide
from depthdist.checkpoint import AdapterRecord, loaded
from depthdist.clouds import write_ply
from depthdist.depth import Bounds, depth_from_target
from depthdist.figures import NEAR_TO_FAR, figure, save
from depthdist.model import pick_device, quiet
from depthdist.network import DepthModel
from depthdist.outside import Given, load_any
from depthdist.pairs import BadFile, resize_rgb
from depthdist.refine import WAYS, Way, mirrored, refined
from depthdist.sources import Picture, Source, find_sources

KINDS = ("npy", "png", "colour", "figure", "ply")
DONE = "done.jsonl"


@dataclass(frozen=True)
class PredictSettings:
    """Prediction"""

    run: str
    "Folder of the run, of an adapter (a run's best/, or one that plain peft saved elsewhere), of an exported model, or a hub id."
    inputs: list[str] = config.positional(())
    "Pictures, folders of them or of raw captures, patterns such as 'day1/*.png', folders of shards."
    out: Path = Path("predictions")
    "Folder for the results, made where it is missing."
    save: tuple[str, ...] = KINDS[:4]
    "What to write of each picture, with commas between: npy, png, colour, figure, ply (15 bytes a pixel)."
    refine: Way = "plain"
    "Detail from the picture at its full size: guided (depth's edges move onto the picture's) or tiles (overlapping pieces, each seen as large as the whole)."
    flip: bool = False
    "Average with the mirror image's prediction: twice the time."
    fov: float | None = None
    "For ply, where no point cloud is beside the picture: degrees that the camera sees from left to right."
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
        if wrong := [kind for kind in self.save if kind not in KINDS]:
            found.append(f"--save has {wrong[0]}: expected {', '.join(KINDS)}{config.near(wrong[0], list(KINDS))}")
        if not self.save:
            found.append(f"--save is empty: expected some of {', '.join(KINDS)}")
        if self.fov is not None and not 0 < self.fov < 180:
            found.append(f"--fov is {self.fov:g}: expected degrees above 0 and below 180")
        if self.intrinsics and (len(self.intrinsics) != 4 or not all(map(math.isfinite, self.intrinsics)) or min(self.intrinsics[:2]) <= 0):
            found.append(f"--intrinsics is {','.join(f'{v:g}' for v in self.intrinsics)}: expected fx,fy,cx,cy in pixels, fx and fy above 0")
        if self.intrinsics and self.fov is not None:
            found.append("--intrinsics and --fov: expected one of them")
        if (self.intrinsics or self.fov) and "ply" not in self.save:
            found.append("--intrinsics and --fov are for ply: name it in --save")
        if self.batch < 1:
            found.append(f"--batch is {self.batch}: expected >= 1")
        return found

    def rays(self, picture: Picture) -> np.ndarray | None:
        """Of a picture, (H, W, 2): its own, else those that the settings say."""
        if picture.rays is None and (self.intrinsics or self.fov):
            size = picture.rgb.shape[:2]
            return pixel_rays(pinhole(size, *self.intrinsics) if self.intrinsics else wide(size, self.fov), picture.size)
        return picture.rays


class Predictor:
    """Depth in mm of pictures, on one device.

    way, flip  as --refine and --flip have them
    """

    def __init__(self, model: DepthModel, record: AdapterRecord, device: torch.device | str = "cpu", way: Way = "plain", flip: bool = False):
        assert way in WAYS, way
        self.model, self.record, self.device, self.way = model.to(device), record, torch.device(device), way
        self.see = mirrored(model) if flip else model

    @torch.no_grad()
    def __call__(self, pictures: list[Picture]) -> list[np.ndarray]:
        """(H, W) float32 mm of each, at its own `size`."""
        smalls = [torch.from_numpy(resize_rgb(p.rgb, self.record.size) if p.rgb.shape[:2] != self.record.size else p.rgb) for p in pictures]
        pred = self.see(torch.stack(smalls).to(self.device))  # (B, h, w)
        return [depth_from_target(self._at_size(*one), self.record.bounds).cpu().numpy() for one in zip(pred, smalls, pictures)]

    def _at_size(self, pred: torch.Tensor, small: torch.Tensor, picture: Picture) -> torch.Tensor:
        full = picture.rgb if picture.rgb.shape[:2] == picture.size else None
        if self.way == "plain" or full is None:
            return self.model.upsampled(pred[None], picture.size)[0]
        return refined(self.way, self.see, pred, torch.from_numpy(full).to(self.device), self.model.upsampling)


def predict_all(settings: PredictSettings, given: Given) -> list[str]:
    """Write the results of every picture. Returns one line for each picture that could not be read."""
    quiet()
    started, problems = time.monotonic(), []
    sources = find_sources(settings.inputs, settings.out)
    model, record = load_any(settings.run, given)
    print(loaded(model, record))
    settings.out.mkdir(parents=True, exist_ok=True)
    finished = begin(settings, record)
    todo = [s for s in sources if (s.name, s.version) not in finished]
    if len(todo) < len(sources):
        print(f"{len(sources) - len(todo)} of {len(sources)} pictures are done already in {settings.out}; --again would do them anew")
    predictors = [Predictor(deepcopy(model), record, device, settings.refine, settings.flip) for device in devices()]
    without_rays = done = 0
    with tqdm(total=len(todo), desc="predicting", unit="picture", disable=not sys.stderr.isatty()) as bar, open(settings.out / DONE, "a") as log:
        for source, picture, depth_mm in results(todo, predictors, settings.batch):
            if isinstance(picture, BadFile):
                problems.append(str(picture))
            else:
                problems += [picture.note] if picture.note else []
                try:
                    without_rays += not write(settings, source.name, picture, depth_mm, record.bounds)
                    log.write(json.dumps({"name": source.name, "version": source.version, "origin": source.origin}) + "\n")
                    log.flush()
                except OSError as err:
                    raise ValueError(f"{settings.out}/{source.name}_*: cannot be written after {done} pictures: {err.strerror or err}; the same command goes on") from err
                done += 1
            bar.update()
    if without_rays and "ply" in settings.save:
        print(f"no .ply of {without_rays} pictures: their camera is not known; give --fov or --intrinsics")
    seconds = time.monotonic() - started
    memory = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB of memory at most"  # Linux counts KiB
    if predictors[0].device.type == "cuda":
        memory += f", {max(torch.cuda.max_memory_allocated(p.device) for p in predictors) / 2**30:.1f} GiB of a GPU's"
    each = f"; {seconds / done:.2f} s a picture, {memory}" if done else ""
    print(f"{done} of {len(todo)} pictures: depth in mm in {settings.out}, as {', '.join(settings.save)}{each}")
    return problems


def devices() -> list[torch.device]:
    """Every GPU there is, or the CPU."""
    first = pick_device()
    return [torch.device("cuda", i) for i in range(torch.cuda.device_count())] if first.type == "cuda" else [first]


def begin(settings: PredictSettings, record: AdapterRecord) -> set[tuple[str, str]]:
    """Names and versions of what is done in --out. ValueError where that was done with other settings."""
    path = settings.out / DONE
    how = {n: v for n, v in config.as_dict(settings).items() if n not in ("run", "inputs", "out", "batch", "again")}
    made_with = hashlib.sha256(json.dumps([how, config.plain(record)], sort_keys=True, default=str).encode()).hexdigest()[:16]
    lines = path.read_text().splitlines() if path.exists() and not settings.again else []
    if not lines:
        path.write_text(json.dumps({"made_with": made_with, "run": settings.run, **how}, default=str) + "\n")
        return set()
    try:
        first, *rest = (json.loads(line) for line in lines if line.endswith("}"))
        if first["made_with"] != made_with:
            raise ValueError(f"--out {settings.out}: holds predictions of {first['run']} with other settings; give another folder, or --again to replace them")
        if not lines[-1].endswith("}"):  # cut short: a picture that is not done
            path.write_text("\n".join(lines[:-1]) + "\n")
        return {(line["name"], line["version"]) for line in rest}
    except (KeyError, TypeError, json.JSONDecodeError) as err:
        raise ValueError(f"{path}: not a list of what is done ({err}); give another folder, or --again") from None


def results(sources: list[Source], predictors: list[Predictor], batch: int) -> Iterator[tuple[Source, Picture | BadFile, np.ndarray | None]]:
    """What became of each source, in their order: its picture and depth in mm, or why it could not be read.

    Pictures are read ahead in threads, a batch is on its way to each device and one waits: memory does not grow with their number.
    """
    with ThreadPoolExecutor(2) as readers, ThreadPoolExecutor(len(predictors)) as workers:
        free = deque(predictors)
        waiting: deque[tuple[list[Source], Future]] = deque()
        reading: deque[tuple[Source, Future]] = deque()
        left = iter(sources)

        def read_ahead() -> None:
            reading.extend((s, readers.submit(_read, s)) for s in islice(left, 2 * batch * len(predictors) - len(reading)))

        try:
            read_ahead()
            while reading or waiting:
                while reading and free:
                    some = [reading.popleft() for _ in range(min(batch, len(reading)))]
                    read_ahead()
                    predictor = free.popleft()
                    waiting.append(([s for s, _ in some], workers.submit(_predicted, predictor, [f.result() for _, f in some])))
                    waiting[-1][1].predictor = predictor
                some, future = waiting.popleft()
                pairs = future.result()
                free.append(future.predictor)
                yield from ((s, *pair) for s, pair in zip(some, pairs))
        finally:
            for pool in (readers, workers):
                pool.shutdown(cancel_futures=True)


def _read(source: Source) -> Picture | BadFile:
    try:
        return source.read()
    except BadFile as err:
        return err


def _predicted(predictor: Predictor, pictures: list[Picture | BadFile]) -> list[tuple[Picture | BadFile, np.ndarray | None]]:
    good = [p for p in pictures if isinstance(p, Picture)]
    depths = iter(predictor(good) if good else [])
    return [(p, next(depths) if isinstance(p, Picture) else None) for p in pictures]


def write(settings: PredictSettings, name: str, picture: Picture, depth_mm: np.ndarray, bounds: Bounds) -> bool:
    """Write what --save names of a picture; whether the camera's rays are known."""
    rgb, out, rays = picture.rgb, settings.out, settings.rays(picture)
    if rgb.shape[:2] != picture.size:
        rgb = resize_rgb(rgb, picture.size)
    if "npy" in settings.save:
        np.save(out / f"{name}_depth.npy", depth_mm)
    if "png" in settings.save:
        write_png(out, name, depth_mm, bounds)
    if "colour" in settings.save:
        Image.fromarray(coloured(depth_mm, bounds)).save(out / f"{name}_colour.png")
    if "figure" in settings.save:
        save(figure(rgb, depth_mm, picture.truth_mm, title=name), out / f"{name}_figure.png")
    if "ply" in settings.save and rays is not None:
        write_ply(out / f"{name}_cloud.ply", points(depth_mm, rays), rgb)
    return rays is not None


def write_png(out: Path, name: str, depth_mm: np.ndarray, bounds: Bounds) -> None:
    """The 16-bit PNG, whose unit stands in its name and in its text chunk `unit_mm`."""
    unit = 0.1 if bounds.far_mm < 6500 else 1.0
    text = PngImagePlugin.PngInfo()
    text.add_text("unit_mm", f"{unit:g}")
    levels = np.clip(np.rint(depth_mm / unit), 0, 65535).astype(np.uint16)
    Image.fromarray(levels).save(out / f"{name}_depth_{unit:g}mm.png", pnginfo=text)


def coloured(depth_mm: np.ndarray, bounds: Bounds) -> np.ndarray:
    """(H, W, 3) uint8: near red, far blue, even in 1/z over the bounds, so that colours of two pictures compare."""
    low, high = 1 / bounds.far_mm, 1 / bounds.near_mm
    return NEAR_TO_FAR(1 - np.clip((1 / depth_mm - low) / (high - low), 0, 1), bytes=True)[..., :3]


def main(argv: list[str] | None = None) -> int:
    settings, given = config.parse("Depth in mm for pictures, with a trained adapter.", PredictSettings, Given, argv=argv)
    if problems := predict_all(settings, given):
        raise ValueError("\n".join(problems))
    return 0
