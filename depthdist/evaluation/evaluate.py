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

import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from statistics import median
from typing import Any

from tqdm import tqdm

from depthdist.core.environment import describe_environment, pick_device, silence_libraries
from depthdist.core.files import write_json
from depthdist.core.settings import Size, as_dict
from depthdist.data.dataset import Dataset, open_dataset
from depthdist.data.loader import Loader
from depthdist.evaluation.image_details import DetailsPool, all_metrics
from depthdist.evaluation.metrics.confidence import interval
from depthdist.evaluation.metrics.grooves import summarize_grooves
from depthdist.evaluation.predictors import (
    TimedPredictor,
    constant_predictor,
    network_predictor,
    refined_predictor,
    starting_predictor,
)
from depthdist.evaluation.scoring import Row, score_rows
from depthdist.evaluation.settings import EvaluateSettings
from depthdist.evaluation.tables import (
    FOOTNOTE,
    UNTRAINED,
    details_table,
    groove_table,
    scores_table,
)
from depthdist.geometry.depth_range import DepthRange
from depthdist.models.adapter import describe_model, load_adapter
from depthdist.runs.run_folder import Run, open_run


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
        starting_predictor(model, record, device),
        TimedPredictor(network_predictor(model)),
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
        {f"{trained}, flip": TimedPredictor(network_predictor(model, flip=True))}
        if settings.flip
        else {}
    )
    clocks |= {
        f"{trained}, {way}": TimedPredictor(
            refined_predictor(model, way, dataset, settings.split, settings.raw)
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
    details = DetailsPool(
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
