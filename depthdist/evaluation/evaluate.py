"""How good a run is, in mm, and how sure that is: the adapter beside the untrained model and a
constant depth, every image once.

    python launch/evaluate.py --run runs/NAME
    python launch/evaluate.py --compare runs/A runs/B

    row                        images      loss   abs_rel    delta1   rmse_mm    mae_mm
    constant 1542 mm               12  ...

RUN/evaluation.json gets everything: of each row the means, their intervals, the values of each
image, and the depth of each groove.
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from tqdm import tqdm

from depthdist.captures.readers import open_rgb
from depthdist.core.environment import describe_environment, pick_device, silence_libraries
from depthdist.core.files import write_json
from depthdist.core.settings import Size, as_dict, parse
from depthdist.data.batch import Batch
from depthdist.data.dataset import Dataset, open_dataset
from depthdist.data.loader import Loader
from depthdist.evaluation.comparison import compare_runs
from depthdist.evaluation.image_details import Details, all_metrics
from depthdist.evaluation.metrics.alignment import ALIGNMENTS
from depthdist.evaluation.metrics.confidence import interval
from depthdist.evaluation.metrics.grooves import LIMIT_MM, summarize_grooves
from depthdist.evaluation.metrics.pixels import BINS_MM
from depthdist.evaluation.scoring import (
    Predictor,
    Row,
    constant_predictor,
    network_predictor,
    score_rows,
    untrained_predictor,
)
from depthdist.evaluation.tables import (
    FOOTNOTE,
    UNTRAINED,
    details_table,
    groove_table,
    scores_table,
)
from depthdist.geometry.depth_range import DepthRange
from depthdist.models.adapter import describe_model, load_adapter
from depthdist.models.adapter_record import AdapterRecord
from depthdist.models.base_model import load_base
from depthdist.models.depth_model import DepthModel
from depthdist.models.refinement import refine
from depthdist.models.settings import REFINEMENTS as REFINED
from depthdist.models.settings import Refinement
from depthdist.runs.run_folder import Run, label_runs, open_run


@dataclass(frozen=True)
class EvaluateSettings:
    """Evaluation"""

    run: Path | None = None
    "Folder of the run."
    compare: tuple[Path, Path] | None = None
    """Two runs instead of one: which is better on the same images, by how much, and how sure
    that is."""
    data: tuple[str, ...] | None = None
    "Folder of shards, or its URL. Default: the run's own."
    split: str = "val"
    "Which part of the data: val or train."
    micro_batch: int = 1
    "Samples at a time."
    align: tuple[str, ...] = ()
    """Also score the adapter with scale or scale and shift fitted to each image's truth: median,
    depth, disparity (with commas between)."""
    raw: Path | None = None
    """Folder of the captures that the shards were made of: for --refine, which needs pictures at
    their full size."""
    refine: tuple[str, ...] = ()
    """Also score the adapter with detail from the full picture, as launch/predict.py has it:
    guided, tiles (with commas between)."""
    flip: bool = False
    "Also score the adapter averaged with the mirror image's prediction."
    details: bool = True
    "Also measure near and far apart, edges, surfaces and grooves; seconds an image at full size."
    workers: int = 0
    "Processes that measure details. 0: one a core."
    bins_mm: tuple[float, ...] = BINS_MM
    "Ends of the depth ranges that are measured apart, mm."
    tread_limit: float = LIMIT_MM
    "Least groove depth that still counts as good, mm."

    def problems(self) -> list[str]:
        found = [
            f"--{name.replace('_', '-')} is {getattr(self, name)}: expected >= {low}"
            for name, low in (("micro_batch", 1), ("workers", 0))
            if getattr(self, name) < low
        ]
        if (self.run is None) == (self.compare is None):
            found.append(
                "--run is missing: the folder of the run"
                if self.run is None
                else "--run and --compare: expected one of them"
            )
        found += [
            f"--align is {way}: expected {', '.join(w for w in ALIGNMENTS if w != 'none')}"
            for way in self.align
            if way not in ALIGNMENTS or way == "none"
        ]
        found += [
            f"--refine is {way}: expected guided or tiles"
            for way in self.refine
            if way not in REFINED or way == "plain"
        ]
        if self.refine and self.raw is None:
            found.append(
                "--raw is missing: --refine needs the folder of the captures that the shards were"
                " made of"
            )
        if self.raw is not None and not self.raw.is_dir():
            found.append(f"--raw {self.raw}: no such folder")
        if (
            len(self.bins_mm) < 2
            or self.bins_mm[0] < 0
            or any(a >= b for a, b in zip(self.bins_mm, self.bins_mm[1:]))
        ):
            found.append(
                f"--bins-mm is {','.join(f'{b:g}' for b in self.bins_mm)}: expected two or more"
                " rising depths >= 0, mm"
            )
        if not 0 < self.tread_limit < math.inf:
            found.append(f"--tread-limit is {self.tread_limit:g}: expected > 0 mm")
        return found


def evaluate_run(settings: EvaluateSettings) -> dict[str, Any]:
    """What RUN/evaluation.json gets; the tables are printed."""
    silence_libraries()
    run = open_run(settings.run)
    data = replace(run.data, data=settings.data, weights=()) if settings.data else run.data
    dataset = open_dataset(data)
    num = dataset.count(settings.split)
    model, record = load_adapter(run.folder / "best")
    print(describe_model(model, record))
    if dataset.size != record.size:
        raise ValueError(
            f"{dataset.place}: pictures are {dataset.size}, the run saw"
            f" {Size(*record.size)}: shard again with --size {Size(*record.size)}"
        )
    device = pick_device()
    model.to(device)
    loader, (baseline, mean_mm) = (
        Loader(dataset, data, device=device),
        mean_depth(run, dataset, settings.split, record.bounds),
    )
    before, after, trained = (
        untrained_rows(model, record, device),
        Clock(network_predictor(model)),
        f"adapter, epoch {record.epoch}",
    )
    rows = {
        baseline: Row(constant_predictor(mean_mm, record.bounds)),
        UNTRAINED: Row(before),
        f"{UNTRAINED}, disparity-aligned": Row(before, "disparity"),
        trained: Row(after),
    }
    rows |= {f"{trained}, {way}-aligned": Row(after, way) for way in settings.align}
    clocks = {trained: after} | (
        {f"{trained}, flip": Clock(network_predictor(model, flip=True))} if settings.flip else {}
    )
    clocks |= {
        f"{trained}, {way}": Clock(
            refinement_predictors(model, way, dataset, settings.split, settings.raw)
        )
        for way in settings.refine
    }
    rows |= {name: Row(clock) for name, clock in clocks.items()}
    batches = loader.evaluate(settings.split, settings.micro_batch, rank=0, world=1)
    shown = tqdm(
        batches,
        desc="scoring",
        total=-(-num // settings.micro_batch),
        unit="batch",
        leave=False,
        disable=not sys.stderr.isatty(),
    )
    details = Details(
        dataset,
        settings.split,
        settings.bins_mm,
        settings.tread_limit,
        settings.workers,
        flat=(baseline, UNTRAINED),
    )
    with details if settings.details else nullcontext() as look:
        found = score_rows(rows, shown, num, record.bounds, run.loss, device, look=look)
    intervals = {
        row: {name: interval(values) for name, values in scores.values.items()}
        for row, scores in found.items()
    }
    means = {row: scores.means() for row, scores in found.items()}
    print(
        f"\n{scores_table(means, intervals)}\n{FOOTNOTE}\nbelow each row the 95 % interval of the mean"
        " (bootstrap over images); images of one scene are not independent: the true one is wider"
    )
    if len(clocks) > 1:
        print(
            "seconds an image (median over batches): "
            + ", ".join(f"{name} {median(clock.seconds):.2f}" for name, clock in clocks.items())
        )
    if settings.details:
        print(f"\n{details_table(means, all_metrics(settings.bins_mm))}")
        print(
            groove_table(
                {
                    row: summarize_grooves(
                        [g for of_image in scores.grooves for g in of_image], settings.tread_limit
                    )
                    for row, scores in found.items()
                },
                settings.tread_limit,
            )
        )
    content = {
        **describe_environment(device),
        "run": str(run.folder),
        "adapter": asdict(record),
        "data": dataset.place,
        "data_sha256": dataset.sha256,
        "split": settings.split,
        "settings": as_dict(settings),
        "rows": means,
        "intervals": intervals,
        "images": {
            row: {"keys": scores.keys, "values": scores.values} for row, scores in found.items()
        },
        "grooves": {
            row: [
                {"key": key, **asdict(groove)}
                for key, of_image in zip(scores.keys, scores.grooves)
                for groove in of_image
            ]
            for row, scores in found.items()
        },
    }
    write_json(run.folder / "evaluation.json", content)
    print(f"\nwritten to {run.folder}/evaluation.json")
    return content


class Clock:
    """A predictor that notes each batch's seconds an image."""

    def __init__(self, predict: Predictor):
        self.predict, self.seconds = predict, []

    def __call__(self, batch: Batch) -> Tensor:
        began = time.perf_counter()
        found = self.predict(batch)
        if found.device.type == "cuda":
            torch.cuda.synchronize(found.device)
        self.seconds.append((time.perf_counter() - began) / len(found))
        return found


def refinement_predictors(
    model: DepthModel, way: Refinement, dataset: Dataset, split: str, raw: Path
) -> Predictor:
    """Predictions with detail from the captures' own pictures under `raw`.

    ValueError where one is not there, or not of the truth's size.
    """

    def one(pred: Tensor, number: int, size: tuple[int, int]) -> Tensor:
        source = dataset.meta(split, number).get("rgb")
        if not isinstance(source, dict) or not {"path", "sha256"} <= source.keys():
            raise ValueError(
                f"--refine needs shards that say which pictures they were made of; sample {number}"
                f" of {split} does not"
            )
        path = raw / source["path"]
        if not path.is_file():
            raise ValueError(
                f"--raw {raw}: it has no {source['path']}, which sample {number} of {split} was"
                " made of"
            )
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != source["sha256"]:
            raise ValueError(
                f"{path}: is not the picture that sample {number} of {split} was made of (its"
                " sha256 differs)"
            )
        picture = torch.from_numpy(np.array(open_rgb(path, content=content))).to(pred.device)
        if tuple(picture.shape[:2]) != size:
            raise ValueError(
                f"{path}: is {tuple(picture.shape[:2])}, the truth {size}; --refine needs shards"
                " with depth at the camera's size"
            )
        return refine(way, model, pred, picture, model.upsampling)

    def predict(batch: Batch) -> Tensor:
        size = tuple(batch.depth_mm.shape[-2:])
        return torch.stack(
            [one(pred, number, size) for pred, number in zip(model(batch.rgb), batch.samples)]
        )

    return predict


def untrained_rows(model: DepthModel, record: AdapterRecord, device: torch.device) -> Predictor:
    """Predictions of what the run began from: of `model` without its adapter or, where the whole
    network trained, of the base model itself.
    """
    if isinstance(model.net, PeftModel):
        return untrained_predictor(model)
    base = load_base(record.model)
    base.set_normalization((record.mean, record.std))
    base.upsampling = record.upsampling
    return network_predictor(base.to(device).eval())


def mean_depth(run: Run, dataset: Dataset, split: str, bounds: DepthRange) -> tuple[str, float]:
    """The constant's row, and its depth in mm: the mean of what the run learned from.

    Where that is lost it is of the scored data, and the row says so.
    """
    if (mean_mm := run.mean_mm) is not None:
        return f"constant {mean_mm:.0f} mm", mean_mm
    whose = "train" if any("train" in part.stats for part in dataset.parts) else split
    mean_mm = dataset.stats(whose)["mean_mm"]
    allowed = min(max(mean_mm, bounds.near_mm), bounds.far_mm)  # nothing else can be predicted
    return (
        (
            f"constant {allowed:.0f} mm, {'mean' if allowed == mean_mm else 'nearest to the mean'}"
            f" of the scored data's {whose}"
        ),
        allowed,
    )


def main(argv: list[str] | None = None) -> None:
    (settings,) = parse(
        "Score a run in mm against the untrained model and a constant depth, or compare two runs.",
        EvaluateSettings,
        argv=argv,
    )
    if settings.run:
        evaluate_run(settings)
        return
    if (
        not settings.data
        and len({open_run(run).record["derived"].get("data_sha256") for run in settings.compare})
        > 1
    ):
        raise ValueError(
            f"{' and '.join(map(str, settings.compare))} learned from different data; expected runs"
            " of the same, or --data that both are measured on"
        )
    called, found = label_runs(settings.compare), []
    for letter, name, run in zip("AB", called, settings.compare):
        print(f"\n{letter}  {name}")
        found.append(evaluate_run(replace(settings, run=run, compare=None)))
    print(f"\n{compare_runs(*found, called)}")
