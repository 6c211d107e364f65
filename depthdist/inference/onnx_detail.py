"""Export the network and its detail stage as one ONNX graph: images at full size in, mm out.

    # writes depth_detail_fp32.onnx and depth_detail_fp16.onnx, prints differences and times
    export_detail_onnx(model, record, detail, out, run)

Input and output of the graph, H and W those of the images that the stage was trained on:

    rgb       (B, H, W, 3) uint8
    depth_mm  (B, H, W) float32

The image is resized to the network's size in the graph, exactly as Pillow does it, by matrix
products: every runtime has these, few have ONNX's antialiased Resize.
"""

from __future__ import annotations

import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depthdist.data.dataset import DataSettings, open_dataset
from depthdist.data.full_size import FullSizeReader
from depthdist.geometry.depth_range import denormalize_depth
from depthdist.geometry.image_resizing import resize_rgb
from depthdist.inference.model_folder import find_model_folder
from depthdist.inference.onnx_export import (
    PRECISIONS,
    MillimetreModel,
    load_check_images,
    print_differences,
    write_onnx,
)
from depthdist.models.adapter_record import AdapterRecord
from depthdist.models.depth_model import DepthModel
from depthdist.models.detail import LEAST_MM, Detail, coarse_log, refine_by_detail
from depthdist.runs.run_folder import RUN_FILE, Run, open_run

NUM_CHECK_IMAGES = 2  # of full size, that PyTorch and onnxruntime are compared on
NUM_BLOCKS = 14  # of new pixels along each axis that is resized; divides every side
HALF = 2**11  # Pillow's weights are multiples of its square's inverse
READER_MB = 64  # for decoded samples


class PillowResize(nn.Module):
    """(B, H, W, 3) uint8 -> (B, h, w, 3) uint8, exactly as `resize_rgb`, for images of one size.

    Pillow resizes along rows first, and rounds to whole levels after each of the two steps.
    """

    def __init__(self, old: tuple[int, int], new: tuple[int, int]):
        super().__init__()
        self.vertical, self.horizontal = map(AxisResize, old, new)

    def forward(self, rgb: Tensor) -> Tensor:
        """Return the resized images."""
        image = self.horizontal(rgb.permute(0, 3, 1, 2).float())  # (B, 3, H, w)
        image = self.vertical(image.mT)  # (B, 3, w, h)
        return image.permute(0, 3, 2, 1).to(torch.uint8)


class AxisResize(nn.Module):
    """Resizes the last axis of images of whole levels 0..255 with Pillow's bicubic filter.

    Pillow's weights are whole numbers of 22 bits. Their upper and lower 11 bits make two products,
    so that every sum is a whole number that float32 holds, and TF32 the factors: the result does
    not depend on who multiplies. A block of new pixels depends on few old ones.
    """

    def __init__(self, old: int, new: int):
        super().__init__()
        weights = pillow_weights(old, new)
        self.blocks = []
        for number, columns in enumerate(np.array_split(np.arange(new), NUM_BLOCKS)):
            used = np.flatnonzero(weights[:, columns].any(axis=1))
            part = weights[used[0] : used[-1] + 1, columns]
            high = np.round(part / HALF)
            self.register_buffer(f"high{number}", torch.from_numpy(high).float())
            self.register_buffer(f"low{number}", torch.from_numpy(part - high * HALF).float())
            self.blocks.append((int(used[0]), int(used[-1]) + 1))

    def forward(self, image: Tensor) -> Tensor:
        """Return (..., new) float32 of (..., old)."""
        resized = []
        for number, (first, last) in enumerate(self.blocks):
            part = image[..., first:last]
            high = part @ self.get_buffer(f"high{number}")
            low = part @ self.get_buffer(f"low{number}")
            resized.append(((high + HALF / 2 + (low / HALF).floor()) / HALF).floor())
        return torch.cat(resized, -1).clamp(0, 255)


def pillow_weights(old: int, new: int) -> np.ndarray:
    """Return the weights (old, new) of Pillow's antialiased bicubic filter, in units of HALF**-2.

    float64 whole numbers
    """
    scale = old / new
    centers = (np.arange(new) + 0.5) * scale
    x = np.abs(np.arange(old)[:, None] + 0.5 - centers) / max(scale, 1.0)
    near = (1.5 * x - 2.5) * x * x + 1
    far = -0.5 * (((x - 5) * x + 8) * x - 4)
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    weights /= weights.sum(axis=0)
    return np.round(weights * HALF**2)


class FullSizeModel(nn.Module):
    """(B, H, W, 3) uint8 -> (B, H, W) float32 mm, for images of the detail stage's size.

    dtype  precision of both networks; resizing and the depth are float32
    """

    def __init__(
        self, model: DepthModel, record: AdapterRecord, detail: Detail, dtype: torch.dtype
    ):
        super().__init__()
        self.size = (detail.record.camera[0], detail.record.camera[1])
        self.bounds = record.bounds
        self.resize = PillowResize(self.size, record.size)
        self.coarse = MillimetreModel(model, record.bounds, record.size, dtype).model
        self.network = deepcopy(detail.network).to("cpu", dtype)
        self.network.brightness = detail.network.brightness.clone()  # contrast is small
        self.network.norm.float()  # of the last layers, which are float32

    def forward(self, rgb: Tensor) -> Tensor:
        """Return depth in mm."""
        pred = self.coarse(self.resize(rgb)).unsqueeze(1)  # (B, 1, h, w)
        pred = F.interpolate(pred, self.size, mode="bicubic", align_corners=False).squeeze(1)
        depth_mm = torch.exp(self.network(rgb, coarse_log(pred, self.bounds)))
        return depth_mm.clamp(LEAST_MM, self.bounds.far_mm)  # the scale ends there


@torch.no_grad()
def export_detail_onnx(
    model: DepthModel, record: AdapterRecord, detail: Detail, out: Path, run: str
) -> None:
    """Write both precisions.

    Prints the largest difference from PyTorch in float32, mm, and times, on images of the run.
    """
    out.mkdir(parents=True, exist_ok=True)
    height, width = detail.record.camera
    images, description = load_check_images(run, detail.record.camera, load_full_images)
    images = images[:NUM_CHECK_IMAGES]
    start = time.perf_counter()
    expected = [predict_in_float32(model.eval(), record, detail, rgb) for rgb in images]
    seconds = (time.perf_counter() - start) / len(images)
    print(
        f"onnx         with the detail stage, {height}x{width}, against PyTorch in float32"
        f" ({seconds:.2f} s per image) on {len(images)} {description}, on the CPU:"
    )
    for name, dtype in PRECISIONS.items():
        path = out / f"depth_detail_{name}.onnx"
        write_onnx(FullSizeModel(model, record, detail, dtype), detail.record.camera, path)
        print_differences(path, images, expected)


def predict_in_float32(
    model: DepthModel, record: AdapterRecord, detail: Detail, rgb: Tensor
) -> np.ndarray:
    """Return depth (H, W) mm of an image (H, W, 3) uint8 by PyTorch, resized by Pillow."""
    small = torch.from_numpy(resize_rgb(rgb.numpy(), record.size))
    target = refine_by_detail(detail, model(small[None])[0], rgb, record.bounds, torch.float32)
    return denormalize_depth(target, record.bounds).numpy()


def load_full_images(run: str, size: tuple[int, int]) -> list[Tensor]:
    """Return the first validation images of a run at full size; none if it is of another size.

    raises ValueError where its shards hold small images and its captures are not there
    """
    folder = find_model_folder(run)
    if not (folder / RUN_FILE).exists():
        return []
    opened = open_run(folder)
    dataset = open_dataset(opened.data)
    if dataset.depth_size != tuple(size):
        return []
    reader = FullSizeReader(dataset, find_captures(opened), READER_MB)
    split = "val" if dataset.has("val") else "train"
    count = min(NUM_CHECK_IMAGES, dataset.count(split))
    return [torch.from_numpy(reader.image(split, number)) for number in range(count)]


def find_captures(run: Run) -> Path | None:
    """Return the folder of a run's captures: its --raw, or --data; None where it had shards."""
    if run.settings.get("raw"):
        return Path(run.settings["raw"])
    places = DataSettings(data=tuple(run.settings["data"])).captures
    return Path(places[0].removeprefix("file://")) if len(places) == 1 else None
