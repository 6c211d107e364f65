"""Micro-batches: the largest that fits is found, and their size changes no gradient."""

import pytest
import torch
from helpers.captures import ROOT
from helpers.commands import joined
from helpers.runs import (
    deepspeed_json,
    train,
)


def test_the_largest_micro_batch_that_fits_is_found_by_trying_and_divides(monkeypatch):
    from depthdist.training.deepspeed_config import EngineSettings
    from depthdist.training.micro_batch import find_micro_batch

    joined()
    settings = EngineSettings(deepspeed=ROOT / "ds_configs/fp32.json", micro_batch="auto")
    assert (
        settings.micro_batches(1) == [8, 4, 2, 1]
        and settings.micro_batches(2) == [4, 2, 1]
        and settings.micro_batches(3) == [1]
    )
    tried = []
    assert find_micro_batch([8, 4, 2, 1], lambda n: tried.append(n) or n <= 2) == 2 and tried == [
        8,
        4,
        2,
    ]
    with pytest.raises(ValueError, match="not even 1 image at a time fits"):
        find_micro_batch([2, 1], lambda n: False)


GIB = 2**30


@pytest.fixture
def card(monkeypatch):
    """The memory of a GPU of 11 GiB, of which others have `used` GiB."""

    def make(used):
        counts = {"allocated": 0, "peak": 0}

        def allocate(gib):
            counts["peak"] = max(counts["peak"], counts["allocated"] + gib * GIB)

        for name, function in {
            "empty_cache": lambda: None,
            "reset_peak_memory_stats": lambda _: counts.update(peak=counts["allocated"]),
            "memory_allocated": lambda _: counts["allocated"],
            "max_memory_allocated": lambda _: counts["peak"],
            "mem_get_info": lambda _: ((11 - used) * GIB - counts["allocated"], 11 * GIB),
        }.items():
            monkeypatch.setattr(torch.cuda, name, function)
        return allocate

    return make


@pytest.mark.parametrize(
    ("used", "peak", "beside", "fits"),
    [
        (0.4, 8.5, 0, True),
        (0.4, 9.5, 0, False),  # 0.3 for NCCL and some fragments would be too much
        (0.4, 8.5, 1, False),
        (6.0, 4.0, 0, True),
        (6.0, 6.0, 0, False),  # another process has that memory
    ],
)
def test_on_a_gpu_what_fits_is_judged_by_the_free_memory(used, peak, beside, fits, card):
    from depthdist.training.micro_batch import fits_on_gpu

    allocate = card(used)
    for _ in range(2):  # the second trial is not judged by the first one's peak
        assert fits_on_gpu(lambda: allocate(peak), beside * GIB, torch.device("cuda")) == fits
    assert fits_on_gpu(lambda: allocate(1), 0, torch.device("cuda"))


def test_a_trial_that_is_out_of_memory_does_not_fit(card):
    from depthdist.training.micro_batch import fits_on_gpu

    def fails():
        raise torch.OutOfMemoryError("CUDA out of memory")

    card(0.4)
    assert not fits_on_gpu(fails, 0, torch.device("cuda"))


def test_on_a_cpu_what_fits_follows_from_the_free_memory(data, model, monkeypatch):
    import psutil

    from depthdist.geometry.depth_range import DepthRange
    from depthdist.losses.settings import LossSettings
    from depthdist.models.base_model import load_base
    from depthdist.models.lora import add_lora
    from depthdist.models.settings import LoraSettings
    from depthdist.training.micro_batch import CPU_SHARE, fits_in_memory, step_memory

    network = add_lora(load_base(str(model)), LoraSettings(), 0)
    needed = {
        n: sum(step_memory(network, n, (28, 42), (30, 40), "fp32").values()) for n in (1, 2, 4)
    }
    assert needed[1] < needed[2] < needed[4]
    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: type("", (), {"available": needed[2] / CPU_SHARE + 1})()
    )
    joined(), monkeypatch.setenv("WORLD_SIZE", "1")
    assert [
        fits_in_memory(
            network,
            n,
            (28, 42),
            (30, 40),
            LossSettings(),
            DepthRange(500, 3000),
            torch.device("cpu"),
            "fp32",
        )
        for n in (1, 2, 4)
    ] == [True, True, False]


def test_the_gradient_is_the_same_in_micro_batches_of_any_size(data, model, tmp_path):
    """One step of SGD at rate 1 moves the weights by the gradient."""
    sgd = {"type": "SGD", "params": {}}
    found = {}
    for n in (1, 2, 4):
        path = deepspeed_json(
            tmp_path / "sgd.json", train_batch_size=4, optimizer=sgd, gradient_clipping=0.0
        )
        words = [
            "--epochs",
            1,
            "--model",
            model,
            "--lr",
            1.0,
            "--schedule",
            "constant",
            "--micro-batch",
            n,
            "--save-every",
            1,
            "--keep",
            9,
        ]
        assert train(data, tmp_path / f"run{n}", *words, deepspeed=path).code == 0
        from safetensors.torch import load_file

        found[n] = load_file(tmp_path / f"run{n}/last/step-000001/state.safetensors")
    largest = max(
        float(found[1][name].abs().max()) for name in found[1] if "lora_B" in name
    )  # from 0: it is the gradient
    assert largest > 1e-3
    for n in (2, 4):
        assert (
            max(float((found[n][name] - found[1][name]).abs().max()) for name in found[1])
            < 1e-5 * largest
        )
