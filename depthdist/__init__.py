"""Fine-tune a depth foundation model on your own camera data, in millimetres.

    import depthdist

    model = depthdist.load("runs/mine")             # a run, an adapter, an exported model, a hub id
    result = model.predict("a.png")                 # a path, a PIL image, a uint8 array, or a list
    result.depth_mm                                 # (H, W) float32, at the image's own size
    result.points_mm, result.colored                # (H, W, 3) float32; (H, W, 3) uint8
    result.save("depth.ply")                        # .npy, .png (16-bit depth) or .ply

    trained = depthdist.train("captures", run="runs/mine", epochs=15)  # on all GPUs
    capture = depthdist.read_capture("depth/a.npy")  # rgb, points_mm, mask

Importing this package imports no other library: each name is loaded when it is first used.
README.md in this folder has a chapter on it, and the map of the package.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from depthdist.captures.capture_file import CaptureArrays, read_capture
    from depthdist.inference.depth_result import DepthResult
    from depthdist.inference.loaded_model import LoadedModel, load
    from depthdist.training.training_process import TrainedRun, train

__version__ = "0.1.0"
__all__ = [
    "CaptureArrays",
    "DepthResult",
    "LoadedModel",
    "TrainedRun",
    "__version__",
    "load",
    "read_capture",
    "train",
]

_MODULES = {
    "CaptureArrays": "depthdist.captures.capture_file",
    "DepthResult": "depthdist.inference.depth_result",
    "LoadedModel": "depthdist.inference.loaded_model",
    "TrainedRun": "depthdist.training.training_process",
    "load": "depthdist.inference.loaded_model",
    "read_capture": "depthdist.captures.capture_file",
    "train": "depthdist.training.training_process",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
