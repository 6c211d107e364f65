"""The record beside a saved adapter: what depth in mm needs besides the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from depthdist.core.files import parse_json, recover_folder
from depthdist.core.settings import from_dict
from depthdist.geometry.depth_range import DepthRange
from depthdist.geometry.image_size import LARGE_STRETCH, stretch
from depthdist.geometry.patches import PATCH_SIZE

if TYPE_CHECKING:
    from depthdist.models.depth_model import DepthModel

ADAPTER_FILE = "depthdist.json"
WEIGHTS = "adapter_model.safetensors"
MAX_SIDE = 14 * 1024  # pixels of an image that the network gets


@dataclass(frozen=True)
class AdapterRecord:
    """What an adapter needs besides its weights to give millimetres, and how it was trained.

    model            base model, as `--model` named it
    near_mm, far_mm  depth range of the normalization, mm
    height, width    size of the images that the network gets, pixels
    mean, std        of the image normalization, for red, green and blue in 0..1
    step, epoch      when it was saved
    eval_loss        validation loss at that step; None where there was no validation
    target           what the network learned: "inverse" depth or "linear"
    upsampling       how its output is resampled to another size: "bicubic" or "bilinear"
    camera           height and width of the training images before they were resized; None where
                     that is not known (an older version's): then their aspect is that of the size
    """

    model: str
    near_mm: float
    far_mm: float
    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    step: int
    epoch: int
    eval_loss: float | None
    target: Literal["inverse", "linear"] = "inverse"
    upsampling: Literal["bicubic", "bilinear"] = "bicubic"
    camera: tuple[int, int] | None = None

    @classmethod
    def of(
        cls,
        model: DepthModel,
        bounds: DepthRange,
        size: tuple[int, int],
        *,
        camera: tuple[int, int],
        step: int,
        epoch: int,
        eval_loss: float | None,
    ) -> AdapterRecord:
        """Return the record of `model` in its present state.

        It gets images of `size`, which were of the size `camera` before.
        """
        height, width = size
        mean, std = model.normalization
        return cls(
            model=model.name,
            near_mm=bounds.near_mm,
            far_mm=bounds.far_mm,
            height=height,
            width=width,
            mean=mean,
            std=std,
            step=step,
            epoch=epoch,
            eval_loss=eval_loss,
            target=bounds.scale,
            upsampling=model.upsampling,
            camera=camera,
        )

    def __post_init__(self) -> None:
        self.bounds.checked()
        if not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"std is {self.std}; expected three numbers > 0")
        if not all(map(math.isfinite, self.mean)):
            raise ValueError(f"mean is {self.mean}; expected three numbers")
        if not all(0 < side <= MAX_SIDE and side % PATCH_SIZE == 0 for side in self.size):
            raise ValueError(
                f"height and width are {self.height} and {self.width}; expected multiples of"
                f" {PATCH_SIZE} from {PATCH_SIZE} to {MAX_SIDE}"
            )
        if self.camera is not None and not all(side > 0 for side in self.camera):
            raise ValueError(f"camera is {self.camera}; expected a height and a width > 0")
        if self.target not in ("inverse", "linear"):
            raise ValueError(f"target is {self.target}; expected inverse or linear")
        if self.upsampling not in ("bicubic", "bilinear"):
            raise ValueError(f"upsampling is {self.upsampling}; expected bicubic or bilinear")

    @property
    def bounds(self) -> DepthRange:
        """The depth range of the normalization."""
        return DepthRange(self.near_mm, self.far_mm, self.target)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images that the network gets."""
        return self.height, self.width

    def aspect_remark(self, image: tuple[int, int]) -> str | None:
        """Return how the aspect of an image (H, W) differs from training's, None if not by much."""
        learned = self.camera or self.size
        share = stretch(image, learned)
        if share <= LARGE_STRETCH:
            return None
        return (
            f"{image[0]}x{image[1]} has another aspect than the training images"
            f" ({learned[0]}x{learned[1]}), by {100 * share:.0f} %: the network sees it stretched"
            " as none before, so its depth is less sure"
        )


def read_record(folder: Path) -> AdapterRecord:
    """Read the record of an adapter's folder; raise ValueError if it is missing or invalid."""
    recover_folder(folder)
    path = folder / ADAPTER_FILE
    if not path.exists():
        raise ValueError(
            f"{folder}: no adapter here: expected {ADAPTER_FILE} and {WEIGHTS}, as in a run's best/"
        )
    try:
        return from_dict(AdapterRecord, parse_json(path.read_bytes()))
    except (AttributeError, KeyError, TypeError, ValueError) as err:
        raise ValueError(f"{path}: not an adapter's record ({err})") from None
