"""Small shards, models and runs, and what a run has logged."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

from helpers.captures import ROOT, write_raw
from helpers.commands import Done, command

SIZE = (28, 42)  # of the pictures that the network sees


def make_shards(folder: Path, count: int = 14, **settings: Any) -> Path:
    """FOLDER/shards of FOLDER/raw, which is made where it is missing.

    14 captures are 11 for training and 3 for validation.

    Pictures are stored without loss, so that what was captured is what is compared.
    """
    from depthdist.core.settings import Size
    from depthdist.shards.build import build_shards
    from depthdist.shards.settings import ShardSettings
    from depthdist.shards.writer import write_shard

    raw, out = folder / "raw", folder / "shards"
    if not raw.exists():
        write_raw(raw, count)
    with mock.patch(
        "depthdist.shards.build.write_shards", lambda jobs, *how: [write_shard(job) for job in jobs]
    ):  # no processes
        build_shards(
            ShardSettings(
                raw=str(raw), out=str(out), **{"size": Size(*SIZE), "rgb": "png", **settings}
            )
        )
    return out


def make_loader(data: Path, **settings: Any):
    """A Loader of those shards."""
    from depthdist.data.dataset import DataSettings, open_dataset
    from depthdist.data.loader import Loader

    given = DataSettings(data=(str(data),), **settings)
    return Loader(open_dataset(given), given)


def make_model(folder: Path, width: int = 96, layers: int = 4) -> Path:
    """A small DA-V2 in Hugging Face format, whose decoder counts as pretrained and whose depth
    differs widely from pixel to pixel. `width` is a multiple of 12."""
    import torch
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    seen = {
        "image_size": 224,
        "patch_size": 14,
        "out_indices": list(range(layers - 3, layers + 1)),
        "reshape_hidden_states": False,
        "apply_layernorm": True,
    }
    backbone = Dinov2Config(
        hidden_size=width, num_attention_heads=3, num_hidden_layers=layers, **seen
    )
    decoder = {
        "reassemble_hidden_size": width,
        "neck_hidden_sizes": [width // 4, width // 2, width, width],
        "fusion_hidden_size": 32,
        "head_hidden_size": 16,
    }
    net = DepthAnythingForDepthEstimation(
        DepthAnythingConfig(backbone_config=backbone, patch_size=14, head_in_index=-1, **decoder)
    )
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (p for p in net.parameters() if p.dim() > 1):
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=random)
        net.head.conv3.bias.fill_(0.3)
    net.save_pretrained(folder)
    return folder


def deepspeed_json(path: Path, name: str = "fp32", **changes: Any) -> Path:
    """The shipped configuration of that name with `changes`, as a file of its own."""
    path.write_text(
        json.dumps({**json.loads((ROOT / f"ds_configs/{name}.json").read_text()), **changes})
    )
    return path


def train_words(data: Path, run: Path, deepspeed: Path) -> list[Any]:
    """Return the words of depthdist train for `tiny`, without figures."""
    where = ["--data", data, "--run", run, "--deepspeed", deepspeed]
    return ["launch/train.py", *where, "--model", "tiny", "--pictures", 0, "--lr", 1e-3]


def train(
    data: Path, run: Path, *words: Any, deepspeed: Path = ROOT / "ds_configs/fp32.json"
) -> Done:
    """launch/train.py of `tiny`, in this process, without figures."""
    return command(*train_words(data, run, deepspeed), *words)


def log(run: Path, *, of: str = "") -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, or those that have the value `of`."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if not of or of in line]


def make_curves_older(run: Path) -> None:
    """Let TensorBoard's files have begun a minute earlier.

    It reads them by the second in their names, and within one second in no order.
    """
    for curves in sorted((run / "tensorboard").iterdir()):  # none takes the name of another
        words = curves.name.split(".")
        words[3] = f"{int(words[3]) - 60:010d}"
        curves.rename(curves.with_name(".".join(words)))


def saved_state(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the newest of RUN/last holds: tensors of weights and optimizer; counters."""
    from depthdist.runs.training_state import load_state

    return load_state(run / "last", print)[:2]


def saved_weights(run: Path) -> dict[str, Any]:
    """The fp32 weights of the newest state, by parameter name."""
    tensors, _ = saved_state(run)
    return {n.removeprefix("weights/"): t for n, t in tensors.items() if n.startswith("weights/")}


def largest_difference(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Over all elements of tensors that must have the same names."""
    assert a.keys() == b.keys() and a
    return max(float((a[name] - b[name]).abs().max()) for name in a)
