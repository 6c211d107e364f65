"""What follows from the settings, the data and the model: printed, and kept in run.json."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from depthdist.core.environment import describe_environment
from depthdist.core.files import parse_json, write_json
from depthdist.data.dataset import Dataset
from depthdist.data.few_samples import FewSamples
from depthdist.data.loader import Loader
from depthdist.data.sample_order import TrainPlan
from depthdist.geometry.depth_range import DepthRange
from depthdist.models.depth_model import DepthModel
from depthdist.runs.run_folder import RUN_FILE
from depthdist.shards.dataset_warnings import left_out_lines, small_scale, stretched_line
from depthdist.shards.remote_cache import is_remote

if TYPE_CHECKING:
    from depthdist.training.settings import Settings


def training_bounds(dataset: Dataset) -> DepthRange:
    """Return the nearest and farthest valid Z of the training set, mm."""
    stats = dataset.stats("train")
    return DepthRange(stats["min_mm"], stats["max_mm"]).checked()


def range_warnings(dataset: Dataset, scale: str) -> list[str]:
    """Return what a reader must know of the depths that are learned, a line each.

    scale  of the target: on a linear one a far bound costs nothing of the near part's share
    """
    lines = []
    for part in dataset.parts:
        stats = part.stats.get("train", {})
        lines += left_out_lines("train", stats)
        text = small_scale(stats) if stats and scale == "inverse" else None
        lines += filter(None, (text, stretched_line(part.raw)))
    return lines


def derive_facts(
    dataset: Dataset,
    plan: TrainPlan,
    loader: Loader,
    model: DepthModel,
    epochs: int,
    precision: str,
) -> dict[str, Any]:
    """Return everything that is computed from the settings, the data and the model."""
    trained, total = model.parameter_counts()
    bounds = training_bounds(dataset)
    remark = " (no pretrained decoder: a fresh one is trained too)" if model.fresh_decoder else ""
    places = [part.place for part in dataset.parts]
    return {
        "model": model.name + remark,
        "trained_parameters": trained,
        "all_parameters": total,
        "train_samples": dataset.count("train"),
        "epoch_samples": plan.num_samples,
        "val_samples": dataset.count("val") if dataset.has("val") else 0,
        "picture_size": str(dataset.size),
        "truth_size": str(dataset.depth_size),
        "near_mm": bounds.near_mm,
        "far_mm": bounds.far_mm,
        "mean_mm": dataset.stats("train")["mean_mm"],
        "data": [p if is_remote(p) else str(Path(p).resolve()) for p in places],
        "data_sha256": dataset.sha256,
        "data_buffers_mib": round(loader.memory_bytes(plan.micro_batch) / 2**20, 1),
        "precision": precision,
        "world_size": plan.world,
        "global_batch": plan.global_batch,
        "micro_batch": plan.micro_batch,
        "accumulation": plan.accumulation,
        "steps_per_epoch": plan.steps_per_epoch,
        "steps": plan.steps_per_epoch * epochs,
    }


def describe_facts(facts: dict[str, Any]) -> list[str]:
    """Return the derived facts as lines for the terminal."""
    share = 100 * facts["trained_parameters"] / facts["all_parameters"]
    return [
        f"model        {facts['model']}",
        (
            f"trains       {facts['trained_parameters']:,} of {facts['all_parameters']:,}"
            f" parameters ({share:.4f} %), in {facts['precision']}"
        ),
        (
            f"data         {facts['train_samples']} training, {facts['val_samples']} validation"
            f" samples; images {facts['picture_size']}, truth {facts['truth_size']}"
        ),
        f"reading      {facts['data_buffers_mib']:.0f} MiB of buffers a rank at most",
        f"depth        {facts['near_mm']:.2f} .. {facts['far_mm']:.2f} mm, of the training set",
        (
            f"batch        {facts['global_batch']} = {facts['world_size']} ranks x micro-batch"
            f" {facts['micro_batch']} x {facts['accumulation']} accumulated"
        ),
        f"steps        {facts['steps']}, {facts['steps_per_epoch']} an epoch",
    ]


def describe_rates(settings: Settings) -> list[str]:
    """Return what --global-batch does to the learning rates, as lines for the terminal."""
    engine, train = settings.engine, settings.train
    own = engine.file_batch
    if engine.batch == own:
        return []
    factor = engine.lr_factor
    if factor != 1:
        beside = f", {factor * train.decoder_lr:g} of the decoder" if train.decoder_lr else ""
        return [
            f"lr           {factor * train.lr:g}{beside}: {train.lr:g} x {factor:.4g} (--lr-scaling"
            f" {engine.lr_scaling}) for a batch of {engine.batch} in place of {own}"
        ]
    lines = [f"lr           {train.lr:g} for a batch of {engine.batch} in place of {own}"]
    if engine.batch > own:
        lines.append(
            f"advice       a batch of {engine.batch} takes {engine.batch / own:.4g} times fewer"
            f" steps than {own}, all at the same learning rate: --lr-scaling sqrt (or linear, with"
            " --warmup) or more --epochs make up for it"
        )
    return lines


def validation_remarks(dataset: Dataset, most: int) -> list[str]:
    """Return what it means for the run that few or no validation images of its own are scored.

    most  --val-images
    """
    if isinstance(dataset, FewSamples):
        return [
            f"validation   the {dataset.count('val')} samples that are learned by heart: scores"
            " say nothing of new images"
        ]
    if dataset.has("val"):
        if not 0 < most < dataset.count("val"):
            return []
        return [
            f"validation   {most} of {dataset.count('val')} images, evenly spread, are scored at"
            " each evaluation and in the final table (--val-images)"
        ]
    return [
        f"validation   none: {dataset.place} has no images of a split val; the last weights are"
        " kept as the best, and pictures and the final table are of training images"
    ]


def hyperparameters(settings: Settings, facts: dict[str, Any]) -> dict[str, bool | float | str]:
    """Return what the results of runs may depend on, for comparing them; no paths, no caches.

    A setting has the same type in all runs: one that may be left out is text.
    """
    groups = (settings.model, settings.lora, settings.loss, settings.augment)
    found: dict[str, bool | float | str] = {}
    for group in (settings.train, settings.schedule, *groups):
        for setting in fields(group):
            if setting.name != "run":
                value = getattr(group, setting.name)
                is_number = setting.type in ("bool", "int", "float")
                found[setting.name] = value if is_number else str(value).lower()
    found["lr"] = settings.engine.lr_factor * settings.train.lr
    found["model"] = facts["model"]
    counts = ("global_batch", "train_samples", "val_samples", "trained_parameters")
    found |= {name: facts[name] for name in ("picture_size", "precision", *counts)}
    return {**found, "data_sha256": facts["data_sha256"][:8]}


def text_table(values: dict[str, Any]) -> str:
    """Return values by name as a Markdown table."""
    rows = [f"| {name} | {value} |" for name, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def text_json(content: dict[str, Any]) -> str:
    """Return JSON as a block of Markdown."""
    return f"```json\n{json.dumps(content, indent=2)}\n```"


def run_record(
    settings: dict[str, Any],
    facts: dict[str, Any],
    ds_config: dict[str, Any],
    remarks: list[str],
    device: torch.device,
) -> dict[str, Any]:
    """Return the content of run.json."""
    return {
        "settings": settings,
        "derived": facts,
        "deepspeed_config": ds_config,
        "remarks": remarks,
        **describe_environment(device),
    }


def mark_as_scored(run: Path, epoch: int) -> None:
    """Note in run.json that the best adapter was scored after `epoch` epochs."""
    path = run / RUN_FILE
    write_json(path, {**parse_json(path.read_bytes()), "scored_at_epoch": epoch})


def is_scored(run: Path, epoch: int) -> bool:
    """Return whether run.json says that the best adapter was scored after `epoch` epochs."""
    path = run / RUN_FILE
    return path.exists() and parse_json(path.read_bytes()).get("scored_at_epoch") == epoch
