"""Predictors: what gives a batch its normalized inverse depth."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from depthdist.captures.readers import open_rgb
from depthdist.data.batch import Batch
from depthdist.data.dataset import Dataset
from depthdist.geometry.depth_range import DepthRange, normalize_depth
from depthdist.models.adapter import AdapterRecord
from depthdist.models.base_model import load_base
from depthdist.models.depth_model import DepthModel
from depthdist.models.refinement import Refinement, average_with_mirror, refine

Predictor = Callable[[Batch], Tensor]  # normalised inverse depth (B, H, W) at the truth's size


def network_predictor(model: DepthModel, flip: bool = False) -> Predictor:
    """Predictions of a model, averaged with those of the mirror image where `flip` is true, brought
    to the truth's size.
    """
    see = average_with_mirror(model) if flip else model
    return lambda batch: model.upsampled(see(batch.rgb), batch.depth_mm.shape[-2:])


def untrained_predictor(model: DepthModel) -> Predictor:
    """The same of the base model that its adapter is in."""

    def predict(batch: Batch) -> Tensor:
        with model.net.disable_adapter():
            return network_predictor(model)(batch)

    return predict


def constant_predictor(depth_mm: float, bounds: DepthRange) -> Predictor:
    """The same depth everywhere: the row that every other must beat."""
    value = float(normalize_depth(torch.tensor([[depth_mm]]), bounds)[0])
    return lambda batch: torch.full_like(batch.depth_mm, value)


class TimedPredictor:
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


def refined_predictor(
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


def starting_predictor(model: DepthModel, record: AdapterRecord, device: torch.device) -> Predictor:
    """Predictions of what the run began from: of `model` without its adapter or, where the whole
    network trained, of the base model itself.
    """
    if isinstance(model.net, PeftModel):
        return untrained_predictor(model)
    base = load_base(record.model)
    base.normalise((record.mean, record.std))
    base.upsampling = record.upsampling
    return network_predictor(base.to(device).eval())
