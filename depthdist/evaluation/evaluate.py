"""Evaluate a run: the adapter beside the untrained model and a constant depth, every image once.

Images that the run has learned from are named and left out (seen.py).

    depthdist evaluate --run runs/NAME
    depthdist evaluate --compare runs/A runs/B

    row                        images      loss   abs_rel    delta1   rmse_mm    mae_mm
    constant 1542 mm               12  ...

RUN/evaluation.json gets everything: of each row the kind, the means, their intervals, the values of
each image, and the depth of each groove.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch
from tqdm import tqdm

from depthdist.core.environment import describe_environment, pick_device, silence_libraries
from depthdist.core.files import write_json
from depthdist.core.settings import Size, as_dict
from depthdist.data.capture_folders import real_places, shard_captures
from depthdist.data.dataset import Dataset, DataSettings, open_dataset
from depthdist.data.full_size import FullSizeReader
from depthdist.data.loader import Loader
from depthdist.evaluation.image_details import DetailOptions, DetailsPool, all_metrics
from depthdist.evaluation.metrics.confidence import interval
from depthdist.evaluation.metrics.grooves import Groove, summarize_grooves, summarize_mean_depth
from depthdist.evaluation.predictors import (
    TimedPredictor,
    constant_predictor,
    full_size_images,
    network_predictor,
    refined_predictor,
    untrained_predictor,
)
from depthdist.evaluation.row_kinds import RowKind
from depthdist.evaluation.scoring import Row, Scores, score_rows
from depthdist.evaluation.seen import ScoredSamples, check_split, choose_samples
from depthdist.evaluation.settings import EvaluateSettings
from depthdist.evaluation.tables import (
    FOOTNOTE,
    SAYS_MEAN,
    UNTRAINED,
    details_table,
    groove_table,
    scores_table,
)
from depthdist.evaluation.verdict import verdict
from depthdist.geometry.depth_range import DepthRange
from depthdist.models.adapter import describe_model, load_adapter
from depthdist.models.adapter_record import AdapterRecord
from depthdist.models.depth_model import DepthModel
from depthdist.models.detail import DetailRecord
from depthdist.models.refiner import Refiner, load_refiner
from depthdist.models.settings import Refinement
from depthdist.runs.run_folder import Run


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a run's best adapter in its model, and the data to score it on.

    scored    the images of the split that are scored: by default without those of its training
    refiners  how the adapter is refined, a row each
    images    at full size, for them
    """

    run: Run
    data: DataSettings
    dataset: Dataset
    scored: ScoredSamples
    model: DepthModel
    record: AdapterRecord
    device: torch.device
    refiners: list[Refiner]
    images: FullSizeReader | None

    @property
    def detail(self) -> DetailRecord | None:
        """The record of the detail stage that is scored, None without one."""
        return next((one.detail.record for one in self.refiners if one.detail), None)


def evaluate_run(run: Run, settings: EvaluateSettings) -> dict[str, Any]:
    """Score a run, print the tables, and return what its evaluation.json gets."""
    silence_libraries()
    subject = load_subject(run, settings)
    rows = build_rows(subject, settings)
    found = score_split(subject, rows, settings)
    means = {row: scores.means() for row, scores in found.items()}
    intervals = {
        row: {name: interval(values) for name, values in scores.values.items()}
        for row, scores in found.items()
    }
    kinds = {label: row.kind for label, row in rows.items()}
    print(
        f"\n{scores_table(means, intervals, kinds)}\n{FOOTNOTE}\n"
        "below each row the 95 % interval of the mean (bootstrap over images); images of one scene"
        " are not independent: the true interval is wider"
    )
    for line in subject.scored.lines:
        print(line)
    no_better = verdict(run, {"rows": means, "kinds": {row: k.value for row, k in kinds.items()}})
    if no_better:
        print(f"WARNING      {no_better}")
    print_seconds(rows)
    if settings.details:
        print_details(means, found, settings)
    content = {
        **describe_environment(subject.device),
        "run": str(run.folder),
        "adapter": asdict(subject.record),
        "detail": asdict(subject.detail) if subject.detail else None,
        "data": subject.dataset.place,
        "data_sha256": subject.dataset.sha256,
        "split": settings.split,
        "seen": subject.scored.record,
        "settings": as_dict(settings),
        "kinds": {label: kind.value for label, kind in kinds.items()},
        "rows": means,
        "intervals": intervals,
        "images": {row: images_content(scores) for row, scores in found.items()},
        "grooves": {row: grooves_content(scores) for row, scores in found.items()},
    }
    write_json(run.folder / "evaluation.json", content)
    print(f"\nwritten to {run.folder}/evaluation.json")
    return content


def load_subject(run: Run, settings: EvaluateSettings) -> Subject:
    """Load a run's adapter and open the data, and raise ValueError if they do not fit together."""
    model, record = load_adapter(run.folder / "best")
    size = Size(*record.size)
    data = given_data(run, settings.data, size) if settings.data else run.data
    dataset = open_dataset(data)
    check_split(dataset, settings.split)
    print(describe_model(model, record))
    if dataset.size != size:
        raise ValueError(
            f"{dataset.place}: images are {dataset.size}, the run was trained on {size}: shard"
            f" again with --size {size}"
        )
    scored = choose_samples(run, dataset, settings.split, settings.include_seen)
    device = pick_device()
    model.to(device)
    refiners, images = choose_refiners(run, dataset, settings)
    refiners = [refiner.to(device) for refiner in refiners]
    return Subject(run, data, dataset, scored, model, record, device, refiners, images)


def choose_refiners(
    run: Run, dataset: Dataset, settings: EvaluateSettings
) -> tuple[list[Refiner], FullSizeReader | None]:
    """Return the refinements to score and what reads the images for them; print what is special.

    Where nothing else was asked for: the run's detail stage, or none where its images are nowhere.
    """
    names: tuple[Refinement | None, ...] = settings.refine or (None,)
    refiners = [load_refiner(name, run.folder) for name in names]
    refiners = [refiner for refiner in refiners if refiner.refinement != "plain"]
    if not refiners:
        return [], None
    try:
        images = full_size_images(run, dataset, settings)
    except ValueError as err:
        if settings.refine:
            raise
        print(f"WARNING      {refiners[0]} is not scored: {err}")
        return [], None
    for refiner in refiners:
        print(f"refine       {refiner}")
        remark = refiner.width_remark(dataset.depth_size)
        if remark:
            print(f"WARNING      images of {remark}")
    return refiners, images


def given_data(run: Run, places: tuple[str, ...], size: Size) -> DataSettings:
    """Return other data for a run: shards, or captures, which are sharded as the run's were.

    size  of its images; that of captures it was trained on has been chosen for them already
    """
    data = replace(run.data, data=places, weights=())
    if set(real_places(data)) != set(run.settings["data"]):
        data = replace(data, size=size)
    return shard_captures(data, run.folder_settings) if data.captures else data


def build_rows(subject: Subject, settings: EvaluateSettings) -> dict[str, Row]:
    """Return the rows of the tables by label."""
    model = subject.model
    record = subject.record
    baseline, mean_mm = constant_baseline(
        subject.run, subject.dataset, settings.split, record.bounds
    )
    untrained = untrained_predictor(model, record, subject.device)
    adapter = TimedPredictor(network_predictor(model))
    name = f"adapter, epoch {record.epoch}"
    rows = {
        baseline: Row(constant_predictor(mean_mm, record.bounds), RowKind.CONSTANT),
        UNTRAINED: Row(untrained, RowKind.UNTRAINED),
        f"{UNTRAINED}, disparity-aligned": Row(untrained, RowKind.UNTRAINED_ALIGNED, "disparity"),
        name: Row(adapter, RowKind.ADAPTER),
    }
    for alignment in settings.align:
        rows[f"{name}, {alignment}-aligned"] = Row(adapter, RowKind.ADAPTER_ALIGNED, alignment)
    if settings.flip:
        flipped = TimedPredictor(network_predictor(model, flip=True))
        rows[f"{name}, flip"] = Row(flipped, RowKind.ADAPTER_REFINED)
    for refiner in subject.refiners:
        assert subject.images is not None  # choose_refiners
        refined = refined_predictor(model, refiner, record.bounds, subject.images, settings.split)
        label = f"{name} + detail" if refiner.detail else f"{name}, {refiner.refinement}"
        rows[label] = Row(TimedPredictor(refined), RowKind.ADAPTER_REFINED)
    return rows


def constant_baseline(
    run: Run, dataset: Dataset, split: str, bounds: DepthRange
) -> tuple[str, float]:
    """Return the label of the constant's row, and its depth: the mean of the training data, mm.

    Where that is not known any more, it is the mean of the scored data, and the label says so.
    """
    mean_mm = run.mean_mm
    if mean_mm is not None:
        return f"constant {mean_mm:.0f} mm", mean_mm
    has_train = any("train" in part.stats for part in dataset.parts)
    source = "train" if has_train else split
    mean_mm = dataset.stats(source)["mean_mm"]
    # nothing else can be predicted
    allowed_mm = min(max(mean_mm, bounds.near_mm), bounds.far_mm)
    how = "mean" if allowed_mm == mean_mm else "nearest to the mean"
    return f"constant {allowed_mm:.0f} mm, {how} of the scored data's {source}", allowed_mm


def score_split(
    subject: Subject, rows: Mapping[str, Row], settings: EvaluateSettings
) -> dict[str, Scores]:
    """Score the images of the split once, with a progress bar."""
    samples = subject.scored.samples
    num = len(samples)
    loader = Loader(subject.dataset, subject.data, device=subject.device)
    batches = tqdm(
        loader.evaluate(settings.split, settings.micro_batch, rank=0, world=1, samples=samples),
        desc="scoring",
        total=-(-num // settings.micro_batch),
        unit="batch",
        leave=False,
        disable=not sys.stderr.isatty(),
    )
    flat_rows = [
        label for label, row in rows.items() if row.kind in (RowKind.CONSTANT, RowKind.UNTRAINED)
    ]
    details = DetailOptions(settings.bins_mm, settings.tread_limit, flat_rows)
    pool = DetailsPool(subject.dataset, settings.split, details, settings.workers)
    with pool if settings.details else nullcontext() as measure:
        return score_rows(
            rows,
            batches,
            num_samples=num,
            bounds=subject.record.bounds,
            loss=subject.run.loss,
            device=subject.device,
            measure=measure,
        )


def print_seconds(rows: Mapping[str, Row]) -> None:
    """Print the seconds an image of each way to use the adapter, where there are several."""
    seconds = {
        label: row.predict.seconds
        for label, row in rows.items()
        if isinstance(row.predict, TimedPredictor) and not row.kind.is_aligned
    }
    if len(seconds) > 1:
        medians = [f"{label} {median(of_batches):.2f}" for label, of_batches in seconds.items()]
        print(f"seconds an image (median over batches): {', '.join(medians)}")


def print_details(
    means: Mapping[str, Mapping[str, float]],
    found: Mapping[str, Scores],
    settings: EvaluateSettings,
) -> None:
    """Print the tables of the details and of the grooves."""
    print(f"\n{details_table(means, all_metrics(settings.bins_mm))}")
    summaries = {}
    by_image: dict[str, list[Groove]] = {}  # the same in every row that has them
    for row, scores in found.items():
        grooves = [groove for of_image in scores.grooves for groove in of_image]
        summaries[row] = summarize_grooves(grooves, settings.tread_limit)
        if grooves:
            by_image = dict(zip(map(str, scores.samples), scores.grooves))
    summaries[SAYS_MEAN] = summarize_mean_depth(by_image, settings.tread_limit)
    print(groove_table(summaries, settings.tread_limit))


def images_content(scores: Scores) -> dict[str, Any]:
    """Return the images of one row as evaluation.json holds them.

    samples  their numbers in the split;  keys  their names;  values  by metric
    """
    return {"samples": scores.samples, "keys": scores.keys, "values": scores.values}


def grooves_content(scores: Scores) -> list[dict[str, Any]]:
    """Return the grooves of one row as evaluation.json holds them."""
    return [
        {"key": key, **asdict(groove)}
        for key, of_image in zip(scores.keys, scores.grooves)
        for groove in of_image
    ]
