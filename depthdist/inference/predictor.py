"""A model at work: from a batch of images to depth in mm on one device, and on several in parallel.

predictor = Predictor(model, record)
((depth_mm, sigma_mm),) = predictor([InputImage(rgb, rgb.shape[:2])])
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import cycle, islice
from typing import NamedTuple

import numpy as np
import torch

from depthdist.core.environment import pick_device
from depthdist.core.errors import BadFile
from depthdist.geometry.depth_range import denormalize_depth
from depthdist.geometry.image_resizing import resize_rgb
from depthdist.inference.image_sources import ImageSource, InputImage
from depthdist.models import seen_range
from depthdist.models.adapter_record import AdapterRecord
from depthdist.models.completion import Completion, complete, fill_depth
from depthdist.models.depth_model import DepthModel
from depthdist.models.refinement import average_with_mirror
from depthdist.models.refiner import Refiner


class Depth(NamedTuple):
    """The depth of one image.

    depth_mm  (H, W) float32 mm, NaN where it was refused
    sigma_mm  (H, W) float32 mm, standard deviation of its error, 0 where it was measured; None
              where it was not asked for, or nothing can say it
    """

    depth_mm: np.ndarray
    sigma_mm: np.ndarray | None = None


class Predictor:
    """Predicts depth in mm of images, on one device.

    refiner     how predictions come to the image's full size
    flip        as --flip
    completion  the stage that fills, and knows how sure a depth is
    """

    def __init__(
        self,
        model: DepthModel,
        record: AdapterRecord,
        device: torch.device | str = "cpu",
        refiner: Refiner | None = None,
        flip: bool = False,
        completion: Completion | None = None,
    ):
        self.model = model.to(device)
        self.record = record
        self.device = torch.device(device)
        self.refiner = (refiner or Refiner()).to(self.device)
        self.network = average_with_mirror(model) if flip else model
        self.completion = completion.to(self.device) if completion else None

    @torch.no_grad()
    def __call__(
        self, images: list[InputImage], sigma: bool = False, refuse_mm: float | None = None
    ) -> list[Depth]:
        """Return the depth of each at its own `size`.

        sigma      return how sure each pixel is; needs a completion stage
        refuse_mm  depth whose sigma is larger becomes NaN
        """
        resized = [torch.from_numpy(self._resized(image.rgb)) for image in images]
        pred = self.network(torch.stack(resized).to(self.device))  # (B, h, w)
        sigma = sigma or refuse_mm is not None
        depths = [self._depth(target, image, sigma) for target, image in zip(pred, images)]
        return depths if refuse_mm is None else [refused(depth, refuse_mm) for depth in depths]

    def _depth(self, pred: torch.Tensor, image: InputImage, sigma: bool) -> Depth:
        target = self._at_size(pred, image)
        depth_mm: np.ndarray = denormalize_depth(target, self.record.bounds).cpu().numpy()
        measured_mm = image.truth_mm if image.fill else None
        if self.completion is not None and (image.fill or sigma):
            rgb, bounds = at_full_size(image), self.record.bounds
            return Depth(*complete(self.completion, rgb, pred, depth_mm, measured_mm, bounds))
        assert not sigma, "checked by the callers"
        return Depth(depth_mm if measured_mm is None else fill_depth(depth_mm, measured_mm))

    def _resized(self, rgb: np.ndarray) -> np.ndarray:
        return rgb if rgb.shape[:2] == self.record.size else resize_rgb(rgb, self.record.size)

    def _at_size(self, pred: torch.Tensor, image: InputImage) -> torch.Tensor:
        if self.refiner.refinement == "plain" or is_small(image):
            return self.model.upsampled(pred[None], image.size)[0]
        rgb = torch.from_numpy(at_full_size(image)).to(self.device)
        return self.refiner(self.network, pred, rgb, self.record.bounds, self.model.upsampling)

    def remarks(self, image: InputImage) -> dict[str, str]:
        """Return by kind why the depth of an image is less sure: "of 60x90 has another aspect"."""
        found = {"aspect": self.record.aspect_remark(image.size)}
        if self.refiner.refinement != "plain" and is_small(image):
            height, width = image.rgb.shape[:2]
            found["plain"] = (
                f"{height}x{width}, the network's size, are not refined: --refine"
                f" {self.refiner.refinement} needs them at full size, as captures have them"
            )
        else:
            found["width"] = self.refiner.width_remark(image.size)
        if self.completion is not None and self.completion.record.seen is not None:
            found |= seen_range.remarks(self.completion.record.seen, image.rgb, image.truth_mm)
        return {kind: f"of {text}" for kind, text in found.items() if text}


def at_full_size(image: InputImage) -> np.ndarray:
    """Return the image (H, W, 3) uint8 at the size of its depth."""
    return image.rgb if image.rgb.shape[:2] == image.size else resize_rgb(image.rgb, image.size)


def refused(depth: Depth, refuse_mm: float) -> Depth:
    """Return the depth without what is less sure than `refuse_mm`."""
    assert depth.sigma_mm is not None
    too_unsure = depth.sigma_mm > refuse_mm
    return depth._replace(depth_mm=np.where(too_unsure, np.float32(np.nan), depth.depth_mm))


def is_small(image: InputImage) -> bool:
    """Return whether an image, from shards, is smaller than its depth: it shows no more detail."""
    return image.rgb.shape[0] < image.size[0] or image.rgb.shape[1] < image.size[1]


class Prediction(NamedTuple):
    """A source with its image and depth, or with the reason why it could not be read."""

    source: ImageSource
    image: InputImage | BadFile
    depth: Depth | None


def list_devices() -> list[torch.device]:
    """Return every GPU of this machine, or the CPU."""
    first = pick_device()
    if first.type != "cuda":
        return [first]
    return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]


def predict_sources(
    sources: list[ImageSource],
    predictors: list[Predictor],
    batch: int,
    sigma: bool = False,
    refuse_mm: float | None = None,
) -> Iterator[Prediction]:
    """Predict every source and yield the results in the order of the sources.

    sigma, refuse_mm  as `Predictor` has them

    Images are read ahead in threads. Each device has a thread of its own, with one batch in work
    and one queued, so that it is not idle while results are written. Memory use does not grow with
    the number of sources.
    """
    readers = ThreadPoolExecutor(2)
    workers = [ThreadPoolExecutor(1) for _ in predictors]
    turns = cycle(zip(predictors, workers))
    remaining = iter(sources)
    queue: deque[Future[list[Prediction]]] = deque()
    try:
        while True:
            while len(queue) < 2 * len(predictors):
                some = list(islice(remaining, batch))
                if not some:
                    break
                predictor, worker = next(turns)
                reading = [readers.submit(_read, source) for source in some]
                predict = partial(predictor, sigma=sigma, refuse_mm=refuse_mm)
                queue.append(worker.submit(_predict_batch, predict, some, reading))
            if not queue:
                return
            yield from queue.popleft().result()
    finally:
        for pool in (readers, *workers):
            pool.shutdown(cancel_futures=True)


def _read(source: ImageSource) -> InputImage | BadFile:
    try:
        return source.read()
    except BadFile as err:
        return err


def _predict_batch(
    predict: Callable[[list[InputImage]], list[Depth]],
    sources: list[ImageSource],
    reading: list[Future[InputImage | BadFile]],
) -> list[Prediction]:
    images = [future.result() for future in reading]
    readable = [image for image in images if isinstance(image, InputImage)]
    depths = iter(predict(readable) if readable else [])
    return [
        Prediction(source, image, next(depths) if isinstance(image, InputImage) else None)
        for source, image in zip(sources, images)
    ]
