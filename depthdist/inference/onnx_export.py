"""The network as ONNX that says millimetres, and how close to PyTorch's it is.

# writes depth_fp32.onnx and depth_fp16.onnx, prints differences and times
export(model, record, OUT, run)

rgb       (B, h, w, 3) uint8, resized to the training size as Pillow's bicubic does
depth_mm  (B, h, w) float32
"""

from __future__ import annotations

import importlib.util
import logging
import time
import warnings
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from depthdist.data.dataset import open_dataset
from depthdist.data.loader import Loader
from depthdist.geometry.depth_range import DepthRange, denormalize_depth
from depthdist.geometry.patches import PATCH_SIZE
from depthdist.inference.external_model import find_adapter
from depthdist.models.adapter_record import AdapterRecord
from depthdist.models.depth_model import DepthModel
from depthdist.runs.run_folder import RUN_FILE, open_run
from depthdist.synthetic.rooms import render as rooms

OPSET = 20
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}
NUM_CHECK_IMAGES = 4  # that PyTorch and onnxruntime are compared on


def missing_packages() -> str | None:
    """What to install before anything can be exported; None where all is there."""
    lost = [
        name
        for name in ("onnx", "onnxscript", "onnxruntime")
        if importlib.util.find_spec(name) is None
    ]
    return f"needs {', '.join(lost)}: python -m pip install -e '.[onnx]'" if lost else None


class MillimetreModel(nn.Module):
    """(B, h, w, 3) uint8 -> (B, h, w) float32 mm.

    The place codes of the one size are computed here, once.
    """

    def __init__(
        self, model: DepthModel, bounds: DepthRange, size: tuple[int, int], dtype: torch.dtype
    ):
        super().__init__()
        self.model, self.bounds = deepcopy(model).to(dtype), bounds
        embeddings = self.model.net.backbone.embeddings
        height, width = size
        tokens = torch.zeros(
            1,
            (height // PATCH_SIZE) * (width // PATCH_SIZE) + 1,
            model.net.backbone.config.hidden_size,
        )
        codes = embeddings.float().interpolate_pos_encoding(tokens, height, width).to(dtype)
        self.model.to(dtype)
        embeddings.register_buffer("codes", codes)
        embeddings.interpolate_pos_encoding = lambda *_: embeddings.codes

    def forward(self, rgb: Tensor) -> Tensor:
        return denormalize_depth(self.model(rgb), self.bounds)


@torch.no_grad()
def export_onnx(model: DepthModel, record: AdapterRecord, out: Path, run: str) -> None:
    """Write both precisions.

    Print the largest difference in mm from PyTorch in float32, and times, on pictures of the run's
    own.
    """
    import onnxruntime

    out.mkdir(parents=True, exist_ok=True)
    pictures, whose = check_images(run, record.size)
    model = model.eval()
    model(pictures[0][None])  # the first call of each is slow
    began = time.perf_counter()
    wanted = [denormalize_depth(model(p[None]), record.bounds)[0].numpy() for p in pictures]
    torch_s = (time.perf_counter() - began) / len(pictures)
    print(
        f"onnx         against PyTorch in float32 ({torch_s:.2f} s a picture) on {len(pictures)}"
        f" {whose}, on the CPU:"
    )
    for name, dtype in PRECISIONS.items():
        path = out / f"depth_{name}.onnx"
        write_onnx(MillimetreModel(model, record.bounds, record.size, dtype), record.size, path)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        session.run(None, {"rgb": pictures[0][None].numpy()})
        began = time.perf_counter()
        found = [session.run(["depth_mm"], {"rgb": p[None].numpy()})[0][0] for p in pictures]
        seconds = (time.perf_counter() - began) / len(pictures)
        off = [np.abs(f - w) for f, w in zip(found, wanted)]
        print(
            f"  {path}: off by at most {max(o.max() for o in off):.3f} mm, on average"
            f" {np.mean([o.mean() for o in off]):.4f} mm; {seconds:.2f} s a picture,"
            f" {path.stat().st_size / 1e6:.1f} MB"
        )


def write_onnx(network: MillimetreModel, size: tuple[int, int], path: Path) -> None:
    """One ONNX file, any number of pictures at a time."""
    example = torch.zeros(2, *size, 3, dtype=torch.uint8)
    shapes = {"rgb": {0: torch.export.Dim("batch")}}
    logging.getLogger("torch.onnx").setLevel(
        logging.ERROR
    )  # it tells of torchvision's operators, which are not in the network
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
    program.save(path, external_data=False)


def check_images(run: str, size: tuple[int, int]) -> tuple[list[Tensor], str]:
    """(h, w, 3) uint8 as the network sees them, and what they are: of the run's validation set, or
    built-in scenes where that is gone.
    """
    folder = find_adapter(run)
    try:
        settings = open_run(folder).data if (folder / RUN_FILE).exists() else None
        dataset = open_dataset(settings) if settings else None
        if dataset and dataset.size == tuple(size):
            loader, num = Loader(dataset, settings), min(NUM_CHECK_IMAGES, dataset.count("val"))
            return [
                loader.samples("val", [i]).to("cpu").rgb[0] for i in range(num)
            ], "validation pictures"
    except ValueError as err:  # the data moved on: any picture shows whether the two agree
        print(f"onnx         built-in scenes stand in for the run's pictures: {err}")
    return [
        torch.from_numpy(rooms.render(rooms.Settings(NUM_CHECK_IMAGES, size, 7), i).rgb)
        for i in range(NUM_CHECK_IMAGES)
    ], "built-in scenes"
