"""Looking at a run while it trains: scores, figures, precision, images in two splits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from depthdist.captures.near_duplicates import (
    FINGERPRINT,
    fingerprint,
    format_warning,
    summarize_split,
)
from depthdist.data.few_samples import FewSamples
from depthdist.data.sample_order import evenly_spread
from depthdist.distributed.process_group import broadcast_from_rank_0, gather_from_all_ranks
from depthdist.evaluation.figures import figure, figure_pixels
from depthdist.evaluation.predictors import Predictor, network_predictor
from depthdist.evaluation.scoring import MeanScores, measure_ranges, score
from depthdist.evaluation.tables import format_scores
from depthdist.geometry.depth_range import denormalize_depth
from depthdist.runs.seen_images import SEEN_FILE, SeenImages, hashes_by_ranks, write_seen
from depthdist.shards.image_hashes import describe_shared
from depthdist.training.parts import Run
from depthdist.training.point_clouds import CaptureCloud
from depthdist.training.precision_check import LIMIT_MM, Float32Check

CPU = torch.device("cpu")
NOT_LOGGED = ("images", "damaged")  # of the mean scores
MOST_SCORED = 256  # training images, where there are none for validation
MAX_COMPARED = {"train": 256, "val": 64}  # images in which near-duplicates are looked for


def evaluate_before_training(run: Run) -> None:
    """Score the model before its first step, as it is and aligned, and keep that in the state."""
    run.state.before = evaluate(run, ["none", "disparity"])
    run.output.tracker.say(f"before training: {format_scores(run.state.before['none'])}")


def evaluate(run: Run, ways: Sequence[str] = ("none",)) -> dict[str, dict[str, float]]:
    """Return the mean scores of now by alignment; log and draw those without alignment."""
    learner, state = run.learner, run.state
    with learner.engine.holding(learner.ema.weights if learner.ema else None):
        scores = score_validation(run, predictor(run), ways)
        means = {way: without_empty_ranges(found.means()) for way, found in scores.items()}
        run.output.tracker.log(state.step, state.epoch, scores_to_log("eval", means["none"]))
        draw_figures(run)
    state.losses.append(means["none"]["loss"])
    return means


def look_without_validation(run: Run) -> None:
    """Draw figures of training samples with the weights that would be kept now."""
    learner = run.learner
    with learner.engine.holding(learner.ema.weights if learner.ema else None):
        draw_figures(run)


def predictor(run: Run) -> Predictor:
    """Return the network as it is evaluated now."""
    run.learner.model.eval()
    return network_predictor(run.learner.model)


def score_validation(
    run: Run, predict: Predictor, ways: Sequence[str] = ("none",)
) -> dict[str, MeanScores]:
    """Return the scores over the validation split by alignment; the ranks share the samples.

    Of many only --val-images are scored, evenly spread; without validation MOST_SCORED of training.
    """
    data, world = run.data, run.world
    samples = scored_samples(run)
    batches = data.loader.evaluate(
        data.watched_split, data.plan.micro_batch, world.rank, world.size, samples
    )
    return score(
        predict,
        batches,
        len(samples),
        data.depth_range,
        run.settings.loss,
        world.device,
        gather_from_all_ranks,
        ways,
        measure_ranges,
    )


def scored_samples(run: Run) -> list[int]:
    """Return the numbers of the samples that are scored: of validation, or some of train."""
    count = run.data.dataset.count(run.data.watched_split)
    most = run.settings.schedule.val_images or count
    return evenly_spread(count, most if run.data.has_validation else MOST_SCORED)


def without_empty_ranges(means: Mapping[str, float]) -> dict[str, float]:
    """Return mean scores without those of depth ranges that have no pixel, which are NaN."""
    return {n: value for n, value in means.items() if not ("@" in n and math.isnan(value))}


def scores_to_log(prefix: str, means: Mapping[str, float]) -> dict[str, float]:
    """Return mean scores as the log has them, PREFIX/NAME."""
    return {
        f"{prefix}/{name}": value
        for name, value in without_empty_ranges(means).items()
        if name not in NOT_LOGGED
    }


@torch.no_grad()
def draw_figures(run: Run) -> None:
    """Draw RGB | ground truth | prediction | error of validation samples in TensorBoard.

    The first of them also as point clouds.
    """
    step, split = run.state.step, run.data.watched_split
    folder = "validation" if run.data.has_validation else "training"
    for i in evenly_spread(run.data.dataset.count(split), run.settings.keep.pictures):
        batch = run.data.loader.samples(split, [i]).to(run.world.device)
        # on every rank: under ZeRO 3 they need each other
        pred_mm = denormalize_depth(predictor(run)(batch), run.data.depth_range)
        if run.world.rank == 0:
            name = batch.stems[0]
            arrays = (batch.rgb[0], pred_mm[0], batch.depth_mm[0], batch.mask[0])
            rgb, pred, truth, mask = (array.cpu().numpy() for array in arrays)
            drawn = figure(rgb, pred, truth, title=f"{name}, step {step}", columns=2)
            run.output.tracker.picture(f"{folder}/{i:03d} {name}", figure_pixels(drawn), step)
            if i == 0:
                cloud = CaptureCloud.of(truth, mask, rgb, run.data.dataset.meta(split, i))
                if cloud:
                    run.output.tracker.summary(cloud.beside(truth, pred, f"{folder} {name}"), step)


def check_precision(run: Run, check: Float32Check) -> None:
    """Log what the precision costs in mm on one sample, and warn where it is too much."""
    state, engine = run.state, run.learner.engine
    off_mm = check.difference_mm(engine.masters(), predictor(run))
    run.output.tracker.log(state.step, state.epoch, {"eval/precision_mm": off_mm})
    if off_mm > LIMIT_MM:
        run.output.warn(
            f"{engine.precision} moves a depth by up to {off_mm:.2f} mm against float32 (step"
            f" {state.step}, one sample of {run.data.watched_split})"
        )


def near_duplicates_warnings(run: Run) -> list[str]:
    """Return rank 0's warnings about validation images that the training set has too.

    They are what sharding found, which is in the index. Where that does not tell, some images are
    compared, of shards that are on this machine: none is fetched for it.
    """
    if run.world.rank or not run.data.has_validation or run.settings.train.overfit:
        return []
    parts = run.data.dataset.parts
    known = [part.raw["near_duplicates"] for part in parts if "near_duplicates" in part.raw]
    lines = [format_warning(found) for found in known]
    if len(known) < len(parts) or len(parts) > 1:  # an index knows nothing of the others
        lines.append(_compare_some(run))
    return list(dict.fromkeys(filter(None, lines)))


def _compare_some(run: Run) -> str | None:
    """Return the warning of near-duplicates among a few images of shards that are here."""
    train, train_stems = _fingerprints(run, "train")
    val, val_stems = _fingerprints(run, "val")
    if run.data.dataset.remote:
        run.output.tracker.say(
            f"duplicates   looked for in {len(val)} validation and {len(train)} training images,"
            " of shards that are on this machine"
        )
    if not (len(train) and len(val)):
        return None
    return format_warning(summarize_split(val, train, val_stems, train_stems))


def record_seen_images(run: Run, is_new: bool) -> None:
    """Write RUN/seen.npy, so that an evaluation knows what the run learned from.

    A new run also warns of images that are in two splits. Every rank calls it and reads its share.
    """
    folder, dataset, world = run.output.folder, run.data.dataset, run.world
    if not broadcast_from_rank_0(is_new or not (folder / SEEN_FILE).exists()):
        return
    hashes = {
        split: hashes_by_ranks(dataset, split, world.rank, world.size, gather_from_all_ranks)
        for split in dataset.splits
    }
    if world.rank:
        return
    if isinstance(dataset, FewSamples):
        hashes = {"train": hashes["train"][list(dataset.chosen)]}
    none = np.zeros_like(hashes["train"][:0])
    seen = SeenImages(hashes["train"], hashes.get("val", none))
    write_seen(folder, seen, base=Path(run.settings.model.model))
    if is_new:
        shared = describe_shared(hashes, lambda split, i: dataset.find(split, i)[1].stem)
        for line in shared:
            run.output.warn(line)


def _fingerprints(run: Run, split: str) -> tuple[np.ndarray, list[str]]:
    """Return fingerprints (N,) and names of a few images of a split, evenly spread, that are here.

    Of a remote shard that was not fetched yet there are none.
    """
    dataset = run.data.dataset
    numbers = evenly_spread(dataset.count(split), MAX_COMPARED[split])
    if dataset.remote:
        places = [(i, *dataset.find(split, i)) for i in numbers]
        numbers = [i for i, index, ref in places if index.is_here(ref.number)]
    batches = [run.data.loader.samples(split, [i]).to(CPU) for i in numbers]
    prints = np.array([fingerprint(batch.rgb[0].numpy()) for batch in batches], FINGERPRINT)
    return prints, [batch.stems[0] for batch in batches]
