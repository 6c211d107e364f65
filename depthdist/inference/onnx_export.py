"""Export the network as ONNX with output in mm, and compare it with PyTorch.

    # writes depth_fp32.onnx and depth_fp16.onnx, prints differences and times
    export_onnx(model, record, out, run)

Input and output of the network:

    rgb       (B, h, w, 3) uint8, resized to the training size as by Pillow's bicubic filter
    depth_mm  (B, h, w) float32

onnx_detail.py exports the network together with a detail stage.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from depthdist.data.dataset import open_dataset
from depthdist.data.loader import Loader
from depthdist.geometry.depth_range import DepthRange, denormalize_depth
from depthdist.geometry.image_resizing import resize_rgb
from depthdist.geometry.patches import PATCH_SIZE
from depthdist.inference.external_model import load_probe
from depthdist.inference.model_folder import find_model_folder
from depthdist.models.adapter_record import AdapterRecord
from depthdist.models.depth_model import DepthModel
from depthdist.runs.run_folder import RUN_FILE, open_run

OPSET = 20
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}
NUM_CHECK_IMAGES = 4  # that PyTorch and onnxruntime are compared on


class MillimetreModel(nn.Module):
    """(B, h, w, 3) uint8 -> (B, h, w) float32 mm, for images of one size.

    The position encodings of that size are computed once, at construction.
    """

    def __init__(
        self, model: DepthModel, bounds: DepthRange, size: tuple[int, int], dtype: torch.dtype
    ):
        super().__init__()
        self.model = deepcopy(model).to(dtype)
        self.bounds = bounds
        backbone: Any = self.model.net.backbone
        embeddings = backbone.embeddings
        height, width = size
        num_tokens = (height // PATCH_SIZE) * (width // PATCH_SIZE) + 1
        tokens = torch.zeros(1, num_tokens, backbone.config.hidden_size)
        codes = embeddings.float().interpolate_pos_encoding(tokens, height, width).to(dtype)
        self.model.to(dtype)
        embeddings.register_buffer("codes", codes)
        embeddings.interpolate_pos_encoding = lambda *_: embeddings.codes

    def forward(self, rgb: Tensor) -> Tensor:
        """Return depth in mm."""
        return denormalize_depth(self.model(rgb), self.bounds)


@torch.no_grad()
def export_onnx(model: DepthModel, record: AdapterRecord, out: Path, run: str) -> None:
    """Write both precisions.

    Prints the largest difference from PyTorch in float32, mm, and times, on images of the run.
    """
    out.mkdir(parents=True, exist_ok=True)
    images, description = load_check_images(run, record.size)
    model = model.eval()
    model(images[0][None])  # the first call is slow
    start = time.perf_counter()
    expected = [denormalize_depth(model(rgb[None]), record.bounds)[0].numpy() for rgb in images]
    seconds = (time.perf_counter() - start) / len(images)
    print(
        f"onnx         against PyTorch in float32 ({seconds:.2f} s per image) on {len(images)}"
        f" {description}, on the CPU:"
    )
    for name, dtype in PRECISIONS.items():
        path = out / f"depth_{name}.onnx"
        write_onnx(MillimetreModel(model, record.bounds, record.size, dtype), record.size, path)
        print_differences(path, images, expected)


def print_differences(path: Path, images: list[Tensor], expected: list[np.ndarray]) -> None:
    """Print how far an ONNX file's depth is from PyTorch's, mm, and its time.

    images    (H, W, 3) uint8
    expected  (H, W) float32 mm, of each image
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    session.run(None, {"rgb": images[0][None].numpy()})  # the first call is slow
    start = time.perf_counter()
    found = [session.run(["depth_mm"], {"rgb": rgb[None].numpy()})[0][0] for rgb in images]
    seconds = (time.perf_counter() - start) / len(images)
    errors = [np.abs(f - e) for f, e in zip(found, expected)]
    print(
        f"  {path}: off by at most {max(e.max() for e in errors):.3f} mm, on average"
        f" {np.mean([e.mean() for e in errors]):.4f} mm; {seconds:.2f} s per image,"
        f" {path.stat().st_size / 1e6:.1f} MB"
    )


def write_onnx(network: nn.Module, size: tuple[int, int], path: Path) -> None:
    """Write one ONNX file, for batches of any number of images of one size."""
    example = torch.zeros(2, *size, 3, dtype=torch.uint8)
    shapes = {"rgb": {0: torch.export.Dim("batch")}}
    # it warns of torchvision's operators, which are not in the network
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own
        program = torch.onnx.export(
            network.eval(),
            (example,),
            dynamo=True,
            input_names=["rgb"],
            output_names=["depth_mm"],
            dynamic_shapes=shapes,
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None  # it is None only without dynamo
    program.save(path, external_data=False)


def load_validation_images(run: str, size: tuple[int, int]) -> list[Tensor]:
    """Return the first validation images of a run; none if it is no run or has another size."""
    folder = find_model_folder(run)
    if not (folder / RUN_FILE).exists():
        return []
    settings = open_run(folder).data
    dataset = open_dataset(settings)
    if dataset.size != tuple(size):
        return []
    loader = Loader(dataset, settings)
    split = "val" if dataset.has("val") else "train"
    return [
        loader.samples(split, [number]).to(torch.device("cpu")).rgb[0]
        for number in range(min(NUM_CHECK_IMAGES, dataset.count(split)))
    ]


def load_check_images(
    run: str,
    size: tuple[int, int],
    load_images: Callable[[str, tuple[int, int]], list[Tensor]] = load_validation_images,
) -> tuple[list[Tensor], str]:
    """Return images (h, w, 3) uint8 of that size and a description of them.

    They are from the run's validation set, or the built-in image if that set is not available.

    load_images  returns images of a run of that size; none, or ValueError, where it has none
    """
    try:
        images = load_images(run, size)
    except ValueError as err:  # the data was moved: any image shows whether the two agree
        print(f"onnx         the built-in image is used instead of the run's images: {err}")
        images = []
    if images:
        return images, "validation images"
    probe = resize_rgb(load_probe(), size)
    flips = [probe, probe[::-1], probe[:, ::-1], probe[::-1, ::-1]]
    return [torch.from_numpy(rgb.copy()) for rgb in flips], "flips of the built-in image"
