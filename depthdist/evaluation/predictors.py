"""Predictors: functions of a batch that return its normalized inverse depth.

The depth that they return has the size of the ground truth.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from depthdist.data.batch import Batch
from depthdist.data.dataset import Dataset, DataSettings
from depthdist.data.full_size import FullSizeReader
from depthdist.evaluation.settings import EvaluateSettings
from depthdist.geometry.depth_range import DepthRange, normalize_depth
from depthdist.models.adapter_record import AdapterRecord
from depthdist.models.base_model import load_base
from depthdist.models.depth_model import DepthModel
from depthdist.models.refinement import average_with_mirror
from depthdist.models.refiner import Refiner
from depthdist.runs.run_folder import Run

# normalized inverse depth (B, H, W), where H and W are the ground truth's
Predictor = Callable[[Batch], Tensor]


def network_predictor(model: DepthModel, flip: bool = False) -> Predictor:
    """Return a predictor of a model.

    flip  average each prediction with that of the mirrored image
    """
    network = average_with_mirror(model) if flip else model

    def predict(batch: Batch) -> Tensor:
        height, width = batch.depth_mm.shape[-2:]
        return model.upsampled(network(batch.rgb), (height, width))

    return predict


def untrained_predictor(
    model: DepthModel, record: AdapterRecord, device: torch.device
) -> Predictor:
    """Return a predictor of the model before training.

    This is `model` without its adapter or, where the whole network was trained, the base model.
    """
    if isinstance(model.net, PeftModel):
        return _predictor_without_adapter(model, model.net)
    base = load_base(record.model)
    base.set_normalization((record.mean, record.std))
    base.upsampling = model.upsampling
    return network_predictor(base.to(device).eval())


def _predictor_without_adapter(model: DepthModel, net: PeftModel) -> Predictor:
    predict_with_adapter = network_predictor(model)

    def predict(batch: Batch) -> Tensor:
        with net.disable_adapter():
            return predict_with_adapter(batch)

    return predict


def constant_predictor(depth_mm: float, bounds: DepthRange) -> Predictor:
    """Return a predictor of the same depth everywhere: the row that every other must beat."""
    target, _ = normalize_depth(torch.tensor([[depth_mm]]), bounds)
    value = float(target)
    return lambda batch: torch.full_like(batch.depth_mm, value)


class TimedPredictor:
    """A predictor that records the seconds an image of each batch."""

    def __init__(self, predict: Predictor):
        self.predict = predict
        self.seconds: list[float] = []

    def __call__(self, batch: Batch) -> Tensor:
        """Return the prediction and record its time."""
        started = time.perf_counter()
        pred = self.predict(batch)
        if pred.device.type == "cuda":
            torch.cuda.synchronize(pred.device)
        self.seconds.append((time.perf_counter() - started) / len(pred))
        return pred


def full_size_images(run: Run, dataset: Dataset, given: EvaluateSettings) -> FullSizeReader:
    """Return what reads the images of the data that a run is scored on at the camera's size.

    They are in the shards, or else in --raw or in the folder of captures that were sharded for it.
    raises ValueError where they are in neither
    """
    data = DataSettings(data=given.data or tuple(run.settings["data"]))
    folders = [Path(place.removeprefix("file://")) for place in data.captures]
    raw = given.raw or (folders[0] if len(folders) == 1 else None)
    return FullSizeReader(dataset, raw, memory_mb=0)


def refined_predictor(
    model: DepthModel, refiner: Refiner, bounds: DepthRange, images: FullSizeReader, split: str
) -> Predictor:
    """Return a predictor that adds detail from images at the size of the ground truth.

    The predictor raises ValueError if an image is damaged, or if its capture is missing or is not
    the one the shards were made from.
    """

    def predict(batch: Batch) -> Tensor:
        refined = []
        for pred, sample in zip(model(batch.rgb), batch.samples):
            image = torch.from_numpy(images.image(split, sample)).to(pred.device)  # (H, W, 3)
            refined.append(refiner(model, pred, image, bounds, model.upsampling))
        return torch.stack(refined)

    return predict
