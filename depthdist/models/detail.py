"""A trained detail stage: its file, the adapter it belongs to, and how it refines a prediction.

    detail = load_detail(run / "detail/best", adapter=run / "best")
    target = refine_by_detail(detail, pred, image, bounds)

detail.safetensors  the network's weights, float32
detail.json         DetailRecord: the SHA-256 of the adapter on whose predictions it was trained,
                    and how it was trained

The stage learned how that adapter errs: on predictions of another one it makes things worse, so
loading it beside another adapter is an error.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from depthdist.core.errors import one_line
from depthdist.core.files import parse_json, replace_folder, write_json
from depthdist.core.settings import from_dict
from depthdist.geometry.depth_range import DepthRange, denormalize_depth, normalize_valid
from depthdist.geometry.resampling import upsample
from depthdist.models.adapter_record import WEIGHTS
from depthdist.models.detail_network import DetailNetwork

FULL_WEIGHTS = "model.safetensors"  # of a network that trained as a whole, or was exported
DETAIL_WEIGHTS = "detail.safetensors"
DETAIL_FILE = "detail.json"
DETAIL_FOLDER = "detail/best"  # in a run's folder
NOT_A_DETAIL = (
    *(AttributeError, KeyError, TypeError, ValueError),  # its record
    *(OSError, RuntimeError, SafetensorError),  # its weights
)
LEAST_MM = 1.0  # a coarse depth is at least that: its logarithm is taken


@dataclass(frozen=True)
class DetailRecord:
    """What a detail stage needs besides its weights, and how it was trained.

    adapter    SHA-256 of the adapter's weights that it refines
    widths     channels of the network's scales
    camera     height and width of the images that it was trained on, pixels
    step       optimizer steps
    eval_loss  loss on validation crops, None without validation
    """

    adapter: str
    widths: tuple[int, ...]
    camera: tuple[int, int]
    step: int
    eval_loss: float | None = None


@dataclass(frozen=True)
class Detail:
    """A detail stage, ready to refine."""

    network: DetailNetwork
    record: DetailRecord


def adapter_sha256(folder: Path) -> str:
    """Return the SHA-256 of an adapter's weights, or of those of a whole model.

    raises ValueError where there are none
    """
    for name in (WEIGHTS, FULL_WEIGHTS):
        path = folder / name
        if path.exists():
            return hashlib.sha256(path.read_bytes()).hexdigest()
    raise ValueError(f"{folder}: no adapter here: expected {WEIGHTS} or {FULL_WEIGHTS}")


def has_detail(run: Path) -> bool:
    """Return whether a run's folder holds a trained detail stage."""
    return (run / DETAIL_FOLDER / DETAIL_FILE).exists()


def save_detail(weights: dict[str, Tensor], record: DetailRecord, folder: Path) -> None:
    """Write a detail stage into `folder`, in place of what is there; all of it or nothing."""
    with replace_folder(folder) as fresh:
        write_detail(weights, record, fresh)


def write_detail(weights: dict[str, Tensor], record: DetailRecord, folder: Path) -> None:
    """Write the two files of a detail stage beside what is in `folder`."""
    dense = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    (folder / DETAIL_WEIGHTS).write_bytes(save(dense))
    write_json(folder / DETAIL_FILE, asdict(record))


def load_detail(folder: Path, adapter: Path) -> Detail:
    """Return the detail stage in `folder` for the adapter in another.

    raises ValueError: none there, damaged, or trained on another adapter
    """
    path = folder / DETAIL_FILE
    if not path.exists():
        raise ValueError(
            f"{folder}: no detail stage here: expected {DETAIL_FILE} and {DETAIL_WEIGHTS};"
            " `depthdist train --detail` makes it"
        )
    try:
        record = from_dict(DetailRecord, parse_json(path.read_bytes()))
        network = DetailNetwork(record.widths)
        network.load_state_dict(load_file(folder / DETAIL_WEIGHTS))
    except NOT_A_DETAIL as err:
        raise ValueError(f"{path}: not a detail stage ({one_line(err)})") from None
    found = adapter_sha256(adapter)
    if found != record.adapter:
        raise ValueError(
            f"{folder}: was trained on another adapter ({record.adapter[:12]}) than that in"
            f" {adapter} ({found[:12]}); train it anew with `depthdist train --detail`, or use"
            " --refine plain"
        )
    return Detail(network.eval(), record)


def best_dtype(device: torch.device) -> torch.dtype:
    """Return what the network's inner layers compute in: half precision where it is fast.

    On a GPU float16; on a CPU bfloat16 where it has units for it (AVX512-BF16, AMX).
    """
    if device.type == "cuda":
        return torch.float16
    if device.type == "cpu" and has_bf16_units():
        return torch.bfloat16
    return torch.float32


def has_bf16_units() -> bool:
    """Return whether this machine's CPU multiplies matrices in bfloat16."""
    cpu = torch.cpu
    with contextlib.suppress(AttributeError):  # private in torch
        return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())
    return False


def coarse_log(pred: Tensor, bounds: DepthRange) -> Tensor:
    """Return the natural logarithm of depth in mm of a normalized inverse depth."""
    return denormalize_depth(pred, bounds).clamp(min=LEAST_MM).log()


@torch.no_grad()
def refine_by_detail(
    detail: Detail,
    pred: Tensor,
    image: Tensor,
    bounds: DepthRange,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return `pred` at the size of `image`, with the relief that the image shows.

    pred     (h, w) normalized inverse depth of the whole image, the adapter's
    image    (H, W, 3) uint8
    dtype    what the network's inner layers compute in; by default `best_dtype`
    returns  (H, W) float32 normalized inverse depth
    """
    size = image.shape[0], image.shape[1]
    dtype = dtype or best_dtype(image.device)
    network = detail.network.to(image.device)
    with torch.autocast(image.device.type, dtype, enabled=dtype != torch.float32):
        log_depth = network(image[None], coarse_log(upsample(pred[None], size), bounds))[0]
    return normalize_valid(log_depth.exp(), bounds)
