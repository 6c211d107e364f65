"""What only a GPU can show, as one command: bash tests/run.sh tests/test_gpu.py"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from captures import ROOT, SHARD, write_capture

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """10 captures at the real camera's size, sharded at the recipe's size."""
    folder = tmp_path_factory.mktemp("gpu")
    for i in range(10):
        write_capture(folder / f"raw/{i}.png", folder / f"raw/{i}.npy", i, (1200, 1944))
    subprocess.run([*SHARD, folder / "raw", folder / "shards", "--size", "756x1260"], check=True)
    return folder / "shards"


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_every_shipped_precision_trains_at_full_size(precision, data, tmp_path):
    launcher = Path(sys.executable).with_name("deepspeed")
    command = [launcher, "--num_gpus", "1", "launch/train.py", "--deepspeed", f"ds_configs/{precision}.json"]
    subprocess.run([*command, "--data", data, "--model", "tiny", "--lr", "1e-3", "--epochs", "3", "--run", tmp_path / "run"], check=True, cwd=ROOT)
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert run["derived"]["precision"] == precision and run["remarks"] == []
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    steps, scores = [x for x in lines if "train/loss" in x], [x for x in lines if "eval/loss" in x]
    assert len(steps) == 3 and all(x["memory/gpu_peak_gib"] > 0 for x in steps)
    assert steps[-1]["train/skipped_steps"] == 0 and (steps[0]["train/loss_scale"] == 2**14) == (precision == "fp16")
    assert scores[-1]["eval/loss"] < scores[0]["eval/loss"]


def test_batches_on_the_gpu_are_those_of_the_cpu_out_of_pinned_buffers(data):
    """More batches than the ring has buffers, with the GPU kept busy, so that a buffer written too early would show."""
    from depthdist.dataset import DataSettings, open_dataset
    from depthdist.order import TrainPlan
    from depthdist.stream import Loader

    settings = DataSettings(data=(str(data),))
    dataset = open_dataset(settings)
    plan = TrainPlan(dataset.count("train"), 8, 2, 1)
    on_gpu, on_cpu = (Loader(dataset, settings, device=device) for device in ("cuda", "cpu"))
    busy = torch.randn(8192, 8192, device="cuda")
    found = []
    for packed in on_gpu.train(plan, 0, 0, epochs=6):
        assert packed.buffers.rgb.is_pinned() and packed.buffers.depth.is_pinned() and packed.buffers.mask.is_pinned()
        busy = (busy @ busy).clamp(-1, 1)
        batch = packed.to("cuda")
        found.append([batch.rgb, batch.depth_mm, batch.mask, batch.weight])
    wanted = [[b.rgb, b.depth_mm, b.mask, b.weight] for b in (packed.to("cpu") for packed in on_cpu.train(plan, 0, 0, epochs=6))]
    assert len(found) == 24 and all(torch.equal(a.cpu(), b) for gpu, cpu in zip(found, wanted) for a, b in zip(gpu, cpu))
