"""Training on a CUDA device that does nothing: types and devices, of the real engine's every step.

PyTorch's CPU build runs it in fake tensors, beside a small guard in C++: tests/helpers/fake_cuda*.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.captures import ROOT
from helpers.commands import Typed

from depthdist.losses.terms import LOSSES

SOURCE = ROOT / "tests/helpers/fake_cuda.cpp"
PLAIN = {"precision": "fp16", "lora": {}, "loss": "l1=1,grad=3", "stage": 0, "checkpointing": False}
ALL_LOSSES = ",".join(f"{name}=1" for name in LOSSES)
CASES = {
    "fp16": PLAIN,
    "bf16, linear, checkpointing": PLAIN
    | {"precision": "bf16", "lora": {"lora": "linear"}, "checkpointing": True},
    "fp32, dora": PLAIN | {"precision": "fp32", "lora": {"dora": True}},
    "fp16, conv": PLAIN | {"lora": {"lora": "conv"}},
    "fp16, decoder and every loss": PLAIN | {"lora": {"decoder": "trained"}, "loss": ALL_LOSSES},
    "fp16, ZeRO 2": PLAIN | {"stage": 2},
}
DTYPES = {"fp16": "torch.float16", "bf16": "torch.bfloat16", "fp32": "torch.float32"}
COMPILER = shutil.which("g++") or shutil.which("c++")

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler"),
    pytest.mark.skipif(torch.version.cuda is not None, reason="PyTorch has a CUDA of its own here"),
]


def compile_guard(folder: Path) -> Path:
    """The shared library of the fake device; compiled once for this PyTorch."""
    made = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    library, torch_folder = folder / f"{made}.so", Path(torch.__file__).parent
    if not library.exists():
        new = library.with_suffix(".new")
        words = [COMPILER, "-std=c++20", "-shared", "-fPIC", f"-I{torch_folder}/include", SOURCE]
        words += ["-o", new, f"-L{torch_folder}/lib", "-Wl,--no-as-needed", "-lc10", "-ltorch_cpu"]
        words += [f"-Wl,-rpath,{torch_folder}/lib"]
        subprocess.run(list(map(str, words)), check=True)
        new.rename(library)
    return library


@pytest.fixture(scope="module")
def found(tmp_path_factory, request):
    """What each case was like; all in one process, which knows of the device from its start."""
    folder = tmp_path_factory.mktemp("fake_cuda")
    cache = getattr(request.config, "cache", None)
    library = compile_guard(Path(cache.mkdir("fake_cuda")) if cache else folder)
    (folder / "cases.json").write_text(json.dumps(CASES))
    words = ["tests/helpers/fake_cuda_steps.py", library, folder / "cases.json"]
    path = f"{ROOT}:{ROOT / 'tests'}"
    words = [sys.executable, *words, folder / "found.json"]
    done = Typed(*words, PYTHONPATH=path, RANK=0, LOCAL_RANK=0).done()
    assert done.code == 0, done
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(params=CASES)
def case(request, found):
    """A case's settings, and what it was like."""
    seen = found[request.param]
    assert "error" not in seen, seen["error"]
    return CASES[request.param], seen


def test_no_operation_mixes_devices(case):
    _, seen = case
    assert seen["mixed"] == []
    assert all(seen["operations"][phase] > 50 for phase in ("forward", "loss", "backward", "step"))


def test_every_gradient_is_on_the_gpu_in_the_parameters_precision(case):
    settings, seen = case
    dtype = DTYPES[settings["precision"]]
    assert seen["gradients"] == [["cuda", dtype]] and seen["without a gradient"] == []
    assert seen["parameters"] == [dtype]


def test_the_end_of_the_head_computes_in_float32_and_the_rest_in_the_runs_precision(case):
    settings, seen = case
    assert seen["head"] == ["torch.float32"]
    beside_the_head = {"torch.float32"} if settings["lora"].get("lora") == "conv" else set()
    assert set(seen["others"]) == {DTYPES[settings["precision"]]} | beside_the_head


def test_masters_moments_and_averages_stay_on_the_gpu_in_float32(case):
    _, seen = case
    assert seen["taken"] and seen["kinds of state"] == ["exp_avg", "exp_avg_sq", "weights"]
    assert seen["state"] == seen["averages"] == [["cuda", "torch.float32"]]


def test_nothing_waits_for_the_gpu_before_the_step(case):
    _, seen = case
    assert {phase for phase, count in seen["read back"].items() if count} <= {"start", "step"}
