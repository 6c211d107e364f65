"""GPUs that PyTorch cannot use are said, and nobody trains around them on the CPU unasked."""

import warnings

import pytest
import torch
from helpers.commands import joined
from helpers.runs import train

from depthdist.core import nvidia_driver
from depthdist.core.environment import pick_device
from depthdist.distributed.accelerator import load_deepspeed

CLOSED = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n"
)
OPEN = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build"
    "  (dvs-builder@U22)  Sun Jul 27 07:02:54 UTC 2025\nGCC version:  gcc version 12.3.0\n"
)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with a GPU whose driver is `driver`, and a PyTorch that finds none."""

    def make(driver, cuda="13.0"):
        path = tmp_path / "version"
        path.write_text(driver)
        monkeypatch.setattr(nvidia_driver, "DRIVER", path)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch, "__version__", "2.13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        for name in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"):
            monkeypatch.delenv(name, raising=False)

    return make


def problem():
    with pytest.raises(ValueError) as caught:
        load_deepspeed()
    return str(caught.value)


def test_a_driver_too_old_is_named_with_what_to_install(machine):
    machine(CLOSED)
    assert problem() == (
        "this machine has an NVIDIA GPU, and PyTorch cannot use it: its driver is 535.183.01, and"
        " PyTorch 2.13.0 is built for CUDA 13.0, which needs 580 or newer; install a newer driver,"
        " or a PyTorch for an older CUDA: pip install torch --index-url"
        ' https://download.pytorch.org/whl/cu126; CUDA_VISIBLE_DEVICES="" in the environment'
        " trains on the CPU"
    )


@pytest.mark.parametrize(
    ("driver", "cuda", "expected"),
    [
        (
            OPEN,
            "13.0",
            "its driver 580.65.06 suits PyTorch 2.13.0 (CUDA 13.0), so this process may",
        ),
        (CLOSED, "12.6", "its driver 535.183.01 suits PyTorch 2.13.0 (CUDA 12.6)"),
        (CLOSED, None, "PyTorch 2.13.0 is built without CUDA; install one"),
        ("", "13.0", "the NVIDIA driver is not loaded (PyTorch 2.13.0 needs 580 or newer)"),
    ],
)
def test_another_reason_is_said_as_it_is(machine, driver, cuda, expected):
    machine(driver, cuda)
    assert expected in problem()


def test_a_command_ends_with_that_one_line(machine, data, tmp_path, monkeypatch):
    joined()
    monkeypatch.setattr("helpers.commands.ON_CPU", {"OMP_NUM_THREADS": "1"})
    machine(CLOSED)
    (line,) = train(data, tmp_path / "run", "--epochs", 1).errors
    assert "its driver is 535.183.01" in line and not (tmp_path / "run").exists()


def test_one_process_computes_on_the_cpu_and_says_why(machine, monkeypatch):
    machine(CLOSED)
    with pytest.warns(UserWarning, match="535.183.01.* this computes on the CPU$"):
        assert pick_device().type == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pick_device().type == "cpu"


@pytest.mark.parametrize(
    ("name", "value"),
    [("CUDA_VISIBLE_DEVICES", ""), ("CUDA_VISIBLE_DEVICES", "-1"), ("DS_ACCELERATOR", "cpu")],
)
def test_whoever_asks_for_the_cpu_gets_it(machine, monkeypatch, name, value):
    machine(CLOSED)
    monkeypatch.setenv(name, value)
    assert load_deepspeed().__name__ == "deepspeed"


def test_a_machine_without_a_gpu_needs_no_driver(machine, monkeypatch, tmp_path):
    machine(CLOSED)
    monkeypatch.setattr(nvidia_driver, "DRIVER", tmp_path / "none")
    monkeypatch.setattr(nvidia_driver, "GPU", tmp_path / "none")
    assert load_deepspeed().__name__ == "deepspeed"
