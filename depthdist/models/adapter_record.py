"""The record beside a saved adapter: what depth in mm needs besides the weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from depthdist.core.files import recover_folder
from depthdist.core.settings import from_dict
from depthdist.geometry.depth_range import DepthRange
from depthdist.models.depth_model import DepthModel

ADAPTER_FILE = "depthdist.json"


WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class AdapterRecord:
    """What an adapter needs besides its weights to give millimetres, and where it came from.

    model            what `--model` named
    near_mm, far_mm  bounds of the normalization, mm
    height, width    size of the pictures that the network saw, pixels
    mean, std        of the picture normalization, for red, green and blue in 0..1
    step, epoch      when it was saved
    eval_loss        of that moment
    target           what the network learned: "inverse" depth or "linear"
    upsampling       how its output is brought to another size: "bicubic" or "bilinear"
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
    eval_loss: float
    target: str = "inverse"
    upsampling: str = "bicubic"

    @classmethod
    def of(
        cls,
        model: DepthModel,
        bounds: DepthRange,
        size: tuple[int, int],
        *,
        step: int,
        epoch: int,
        eval_loss: float,
    ) -> AdapterRecord:
        """That of `model` as it stands now, which sees pictures of `size`."""
        return cls(
            model.name,
            bounds.near_mm,
            bounds.far_mm,
            *size,
            *model.normalization,
            step,
            epoch,
            eval_loss,
            bounds.scale,
            model.upsampling,
        )

    def __post_init__(self) -> None:
        self.bounds.checked()
        if not min(self.std) > 0:
            raise ValueError(f"std is {self.std}; expected three numbers > 0")
        if self.target not in ("inverse", "linear") or self.upsampling not in (
            "bicubic",
            "bilinear",
        ):
            raise ValueError(
                f"target is {self.target}, upsampling {self.upsampling}; expected inverse or"
                " linear, bicubic or bilinear"
            )

    @property
    def bounds(self) -> DepthRange:
        return DepthRange(self.near_mm, self.far_mm, self.target)

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width


def read_record(folder: Path) -> AdapterRecord:
    """The record of an adapter's folder.

    ValueError where there is none or it is not one of ours.
    """
    recover_folder(folder)
    path = folder / ADAPTER_FILE
    if not path.exists():
        raise ValueError(
            f"{folder}: no adapter here: expected {ADAPTER_FILE} and {WEIGHTS}, as a run's best/ holds"
            " them"
        )
    try:
        return from_dict(AdapterRecord, json.loads(path.read_text()))
    except (AttributeError, KeyError, TypeError, ValueError) as err:
        raise ValueError(f"{path}: not an adapter's record ({err})") from None
