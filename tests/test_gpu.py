"""What only a GPU can show, as one command: bash tests/run.sh tests/test_gpu.py"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.captures import ROOT, SHARD, write_capture

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

# as a module: `pip install --target` puts no `deepspeed` beside this Python
LAUNCHER = [sys.executable, "-m", "deepspeed.launcher.runner"]


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
    command = [
        *LAUNCHER,
        "--num_gpus",
        "1",
        "launch/train.py",
        "--deepspeed",
        f"ds_configs/{precision}.json",
    ]
    subprocess.run(
        [
            *command,
            "--data",
            data,
            "--model",
            "tiny",
            "--lr",
            "1e-3",
            "--epochs",
            "3",
            "--run",
            tmp_path / "run",
        ],
        check=True,
        cwd=ROOT,
    )
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert run["derived"]["precision"] == precision and run["remarks"] == []
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    steps, scores = [x for x in lines if "train/loss" in x], [x for x in lines if "eval/loss" in x]
    assert len(steps) == 3 and all(x["memory/gpu_peak_gib"] > 0 for x in steps)
    assert steps[-1]["train/skipped_steps"] == 0 and (steps[0]["train/loss_scale"] == 2**14) == (
        precision == "fp16"
    )
    assert scores[-1]["eval/loss"] < scores[0]["eval/loss"]


def test_batches_on_the_gpu_are_those_of_the_cpu_out_of_pinned_buffers(data):
    """More batches than the ring has buffers, with the GPU kept busy, so that a buffer written too
    early would show."""
    from depthdist.data.dataset import DataSettings, open_dataset
    from depthdist.data.loader import Loader
    from depthdist.data.sample_order import TrainPlan

    settings = DataSettings(data=(str(data),))
    dataset = open_dataset(settings)
    plan = TrainPlan(dataset.count("train"), 8, 2, 1)
    on_gpu, on_cpu = (Loader(dataset, settings, device=device) for device in ("cuda", "cpu"))
    busy = torch.randn(8192, 8192, device="cuda")
    found = []
    for packed in on_gpu.train(plan, 0, 0, epochs=6):
        assert (
            packed.buffers.rgb.is_pinned()
            and packed.buffers.depth.is_pinned()
            and packed.buffers.mask.is_pinned()
        )
        busy = (busy @ busy).clamp(-1, 1)
        batch = packed.to("cuda")
        found.append([batch.rgb, batch.depth_mm, batch.mask, batch.weight])
    wanted = [
        [b.rgb, b.depth_mm, b.mask, b.weight]
        for b in (packed.to("cpu") for packed in on_cpu.train(plan, 0, 0, epochs=6))
    ]
    assert len(found) == 24 and all(
        torch.equal(a.cpu(), b) for gpu, cpu in zip(found, wanted) for a, b in zip(gpu, cpu)
    )


def test_dropout_draws_the_same_mask_as_on_the_cpu():
    from depthdist.models.sample_dropout import DropoutKeys, SampleDropout, draw_keys

    draws = DropoutKeys()
    draws.num_layers = 3
    drop = SampleDropout(0.05, 1, draws).train()
    x, found = torch.ones(2, 4861, 384), []
    for device in ("cpu", "cuda"):
        draws.set(draw_keys(0, 3, [5, 17]), torch.device(device))
        found.append(drop(x.to(device)).cpu())
    assert torch.equal(*found) and 0.04 < (found[0] == 0).float().mean() < 0.06


def test_the_last_convolutions_are_float32_and_not_tf32():
    """TF32 has 10 bits: a millimetre at 1.5 m."""
    from depthdist.models.base_model import load_base

    torch.manual_seed(0)
    conv = load_base("tiny").head.conv2.cuda()
    x = torch.randn(1, conv.in_channels, 128, 128, device="cuda")
    exact = torch.nn.functional.conv2d(
        x.double(), conv.weight.double(), conv.bias.double(), padding=conv.padding
    )
    assert (conv(x) - exact).abs().max() < 1e-5 * exact.abs().max()


def test_compiling_changes_no_gradient():
    """On a CPU it does (torch 2.13), and is refused there."""
    from depthdist.models.base_model import load_base
    from depthdist.models.lora import add_lora
    from depthdist.models.sample_dropout import draw_keys
    from depthdist.models.settings import LoraSettings

    rgb, draws, found = (
        torch.randint(0, 256, (2, 154, 252, 3), dtype=torch.uint8, device="cuda"),
        draw_keys(0, 0, [1, 2]).cuda(),
        [],
    )
    for compiled in (False, True):
        base = load_base("tiny")
        base.fresh_decoder = False  # frozen, as a pretrained one is
        model = add_lora(base, LoraSettings(), 0).cuda().train()
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.02)
        if compiled:
            model.compile()
        model(rgb, draws).square().mean().backward()
        found.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
    assert found[0].norm() > 0 and (found[1] - found[0]).norm() < 1e-3 * found[0].norm()


def test_the_micro_batch_is_halved_until_it_fits(data):
    from depthdist.geometry.depth_range import DepthRange
    from depthdist.losses.settings import LossSettings
    from depthdist.models.base_model import load_base
    from depthdist.models.lora import add_lora
    from depthdist.models.settings import LoraSettings
    from depthdist.training.micro_batch import fits_in_memory

    model = add_lora(load_base("tiny"), LoraSettings(), 0)
    sizes, rest = (
        ((756, 1260), (1200, 1944)),
        (LossSettings(), DepthRange(250, 3900), torch.device("cuda"), "fp16"),
    )
    assert fits_in_memory(model, 1, *sizes, *rest)
    _free, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(
        min(1.0, (torch.cuda.memory_reserved() + 3 * 2**30) / total)
    )
    try:
        found = [fits_in_memory(model, n, *sizes, *rest) for n in (64, 1)]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert found == [False, True]


def test_fp16_stays_near_float32_and_data_is_hardly_waited_for(data, tmp_path):
    command = [
        *LAUNCHER,
        "--num_gpus",
        "1",
        "launch/train.py",
        "--deepspeed",
        "ds_configs/fp16.json",
        "--watch-every",
        "1",
        "--pictures",
        "0",
    ]
    subprocess.run(
        [
            *command,
            "--data",
            data,
            "--model",
            "tiny",
            "--lr",
            "1e-3",
            "--epochs",
            "6",
            "--run",
            tmp_path / "run",
        ],
        check=True,
        cwd=ROOT,
    )
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert max(line["eval/precision_mm"] for line in lines if "eval/precision_mm" in line) < 5
    assert (
        sorted(line["speed/data_wait_share"] for line in lines if "speed/data_wait_share" in line)[
            2
        ]
        < 0.2
    )


@pytest.mark.parametrize("way", ["plain", "guided", "tiles"])
def test_predictions_are_those_of_the_cpu(way):
    """TF32 is off (depth_model.py): at 4 m a last digit of the network's output is a tenth of a
    millimetre."""
    import numpy as np

    from depthdist.inference.image_sources import InputImage
    from depthdist.inference.predictor import Predictor
    from depthdist.models.adapter_record import AdapterRecord
    from depthdist.models.base_model import load_base
    from depthdist.models.refiner import Refiner
    from depthdist.synthetic.rooms import render as rooms

    model = load_base("built-in")
    model.rescale(0.1, 0.0)  # 0 .. 10 to 0 .. 1
    record = AdapterRecord(
        "built-in", 300.0, 4000.0, 196, 308, *model.normalization, step=0, epoch=0, eval_loss=0.0
    )
    rgb = rooms.render(rooms.Settings(1, (400, 640), 3), 0).rgb
    cpu, gpu = (
        Predictor(model, record, device, Refiner(way), flip=True)([InputImage(rgb, (400, 640))])[
            0
        ].depth_mm
        for device in ("cpu", "cuda")
    )
    assert cpu.std() > 50 and np.abs(cpu - gpu).mean() < 0.1 and np.abs(cpu - gpu).max() < 2


def test_a_completion_stage_fills_as_on_the_cpu():
    """In half precision, so to about a thousandth of the correction."""
    import numpy as np

    from depthdist.models.completion import Completion, CompletionRecord, run_network
    from depthdist.models.completion_maps import WorkingMaps, network_inputs
    from depthdist.models.completion_network import CompletionNetwork

    random = np.random.default_rng(0)
    depth = np.full((120, 200), 1500, np.float32)
    depth[40:80, 50:120] = 0
    pred = np.log(1400 + random.random(depth.shape)).astype(np.float32)
    rgb = random.integers(0, 256, (*depth.shape, 3), dtype=np.uint8)
    inputs = network_inputs(WorkingMaps(rgb, depth, pred))
    network = CompletionNetwork((16, 16)).begin(0)
    torch.nn.init.normal_(network.head.weight, generator=torch.Generator().manual_seed(0))
    record = CompletionRecord("", (16, 16), (120, 200), 1)
    cpu, gpu = (
        run_network(Completion(network.eval(), record).to(torch.device(name)), inputs)
        for name in ("cpu", "cuda")
    )
    for one, other in zip(cpu, gpu):
        assert np.abs(one - other).mean() < 0.01 * np.abs(one - one.mean()).max() + 1e-4
