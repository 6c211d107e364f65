"""The parts of the GPU check: python -m helpers.gpu_parts PART WORK [--tiny]

Each appends its checks and figures to WORK/PART.jsonl at once, so that nothing is lost when it is
ended. Parts use what `data` has made in WORK. tests/gpu_check.py runs them.
"""

import collections
import contextlib
import json
import math
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
RECIPE_BATCH = 8
TFLOP_AN_IMAGE = 2.1  # forward and backward of DA-V2-Small at 756x1260, LoRA on qkv
KINDS = {  # of kernels, by their names; the first that fits
    "attention": r"fmha|flash|sdpa|mha|attention",
    "copies": r"memcpy|memset|catarray",
    "convolution": r"conv|wgrad|dgrad|implicit|nhwc|fprop",
    "matrix product": r"gemm|cutlass|nvjet|cublas|splitk",
    "int64, dropout's hash": r"long|bitwise|rshift",
    "layer norm": r"layer_norm",
    "resampling": r"embeddingbag|upsample",
    "NCCL": r"nccl",
    "elementwise and rest": r"",
}


class Check:
    """Where a part writes; what holds for all of them."""

    def __init__(self, part: str, work: Path, tiny: bool):
        import torch

        self.part, self.work, self.tiny = part, work, tiny
        self.cuda = torch.cuda.is_available()
        self.half = "fp16" if self.cuda else "fp32"
        self.size = "28x42" if tiny else "756x1260"
        self.camera = (72, 98) if tiny else (1200, 1944)

    def _write(self, what: str, ok: bool | None, found: Any) -> None:
        line = {"what": what, "ok": ok, "found": found}
        with (self.work / f"{self.part}.jsonl").open("a") as file:
            file.write(json.dumps(line, default=str) + "\n")

    def figure(self, what: str, found: Any) -> None:
        """Note a figure."""
        self._write(what, None, found)

    def check(self, what: str, ok: Any, found: Any = "") -> None:
        """Note PASS or FAIL."""
        self._write(what, bool(ok), found)

    def run(self, name: str, *words: Any) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; its output goes to logs/."""
        words = tuple(map(str, words))
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
        text = f"{' '.join(words)}\n{done.stdout}\n--- stderr\n{done.stderr}"
        (self.work / "logs" / f"{self.part}-{name}.log").write_text(text)
        return done

    def ends_well(self, what: str, done: subprocess.CompletedProcess[str]) -> bool:
        """Note PASS where a command's exit code is 0, else its last line."""
        lines = (done.stdout + done.stderr).strip().splitlines()
        said = [line for line in lines if "error: " in line.lower()] or lines
        self.check(what, done.returncode == 0, "" if done.returncode == 0 else said[-1:])
        return done.returncode == 0

    def train_words(self, run: str, precision: str, *words: Any, zero: int = 0) -> list[Any]:
        """The words of a training run on one device, at a ZeRO stage."""
        config = json.loads((ROOT / f"ds_configs/{precision}.json").read_text())
        config["zero_optimization"]["stage"] = zero
        config["train_batch_size"] = 2 if self.tiny else RECIPE_BATCH
        path = self.work / f"{precision}-zero{zero}.json"
        path.write_text(json.dumps(config))
        launcher = [sys.executable, "-m", "deepspeed.launcher.runner"]
        launcher += ["--num_gpus" if self.cuda else "--num_accelerators", "1"]
        places = ["--data", self.work / "shards", "--model", self.model, "--run", self.work / run]
        how = ["--micro-batch", "auto", "--watch-every", 1, "--save-every", 1, "--pictures", 0]
        return [*launcher, "launch/train.py", "--deepspeed", path, *places, *how, *words]

    @property
    def model(self) -> Any:
        return "tiny" if self.tiny else self.work / "small"

    def log(self, run: str, of: str) -> list[dict[str, Any]]:
        """The lines of a run's log that have the value `of`."""
        lines = (self.work / run / "metrics.jsonl").read_text().splitlines()
        return [line for line in map(json.loads, lines) if of in line]


def environment(check: Check) -> None:
    """Versions, the GPU, and which attention kernel PyTorch takes."""
    import deepspeed
    import numba
    import numpy
    import peft
    import torch
    import transformers

    modules = (torch, numpy, numba, transformers, peft, deepspeed)
    check.figure("versions", {module.__name__: module.__version__ for module in modules})
    check.check("everything can be imported", True)
    if not check.cuda:
        return check.figure("GPU", "none")
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    check.figure("GPU, compute capability, CUDA", [name, capability, torch.version.cuda])
    check.figure("cuDNN, NCCL", [torch.backends.cudnn.version(), torch.cuda.nccl.version()])
    q = torch.randn(8, 6, 4861, 64, device="cuda", dtype=torch.float16, requires_grad=True)
    choice = torch._fused_sdp_choice(q, q, q)
    check.figure("attention: 0 math 1 flash 2 efficient 3 cuDNN", choice)
    check.check("attention is a fused kernel", choice != 0, choice)
    for backend in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend[backend]):
            try:
                ms = seconds_of(lambda: attend(q)) / 8 * 12 * 1e3
                check.figure(f"{backend}, 12 layers there and back, ms an image", round(ms, 2))
            except RuntimeError as err:
                check.figure(backend, f"not there: {str(err)[:80]}")


def attend(q: Any) -> None:
    """Attention, forward and backward."""
    import torch

    torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()


def seconds_of(work: Callable[[], Any], times: int = 3) -> float:
    """Seconds of a piece of work on the GPU, after one to warm up."""
    import torch

    work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / times


def data(check: Check) -> None:
    """Captures of the camera's size, their shards, and a model."""
    from helpers.captures import write_capture
    from tools.benchmarks.step import untrained_small

    raw = check.work / "raw"
    for i in range(10):
        write_capture(raw / f"{i}.png", raw / f"{i}.npy", i, check.camera)
    words = [sys.executable, "tools/shard.py", raw, check.work / "shards", "--split", "random"]
    check.ends_well("captures and shards", check.run("shard", *words, "--size", check.size))
    if not check.tiny:
        untrained_small(check.work / "small")


def step(check: Check, variants: tuple[tuple[str, bool], ...] = (("1", False), ("auto", False))):
    """An optimizer step at a time: images a second, memory, kernels by kind, host syncs by line."""
    from depthdist.distributed.process_group import start

    world = start()
    for micro_batch, compiled in variants:
        with prepared(check, world, micro_batch, compiled) as (name, batch, take_step):
            measure_step(check, name, batch, take_step)


@contextlib.contextmanager
def prepared(check: Check, world: Any, micro_batch: str, compiled: bool) -> Iterator[Any]:
    """A run that is ready to take steps; yields its name, its global batch, and what takes one."""
    import torch

    from depthdist.training.loop import optimizer_step
    from depthdist.training.step_timer import StepTimer
    from tools.benchmarks.depthdist_path import build_run
    from tools.benchmarks.turns import Job

    config = ROOT / f"ds_configs/{check.half}.json"
    height, width = map(int, check.size.split("x"))
    shards = str(check.work / "shards")
    places = dict(model=str(check.model), raw="", shards=shards, lossless="")
    job = Job(
        **places,
        size=(height, width),
        near_mm=0.0,
        far_mm=0.0,
        deepspeed=str(config),
        precision=check.half,
        micro_batch=micro_batch,
        compile=compiled,
    )
    run = build_run(job, check.work / f"step-{micro_batch}-{compiled}", world)
    batches, timer = iter(run.data.loader.train(run.data.plan, 0, 0)), StepTimer()

    def take_step() -> None:
        timer.saved()
        optimizer_step(run, batches, timer)

    how = ", compiled" if compiled else ""
    name = f"micro-batch {run.data.plan.micro_batch} ({micro_batch}{how})"
    yield name, run.data.plan.global_batch, take_step
    run.output.tracker.close()
    if check.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measure_step(check: Check, name: str, batch: int, take_step: Callable[[], None]) -> None:
    """Note what a step takes."""
    import torch

    if not check.cuda:
        took = []
        for _ in range(2):
            began = time.perf_counter()
            take_step()
            took.append(time.perf_counter() - began)
        check.check(f"{name}: steps are taken", True, f"{batch / min(took):.1f} images/s")
        return
    seconds = seconds_of(take_step)
    check.figure(f"{name}: s a step", round(seconds, 4))
    check.figure(f"{name}: images/s", round(batch / seconds, 1))
    check.figure(f"{name}: TFLOP/s", round(TFLOP_AN_IMAGE * batch / seconds, 1))
    peak = torch.cuda.max_memory_allocated() / 2**30
    check.figure(f"{name}: peak GiB", round(peak, 2))
    check.figure(f"{name}: free GiB beside it", round(torch.cuda.mem_get_info()[0] / 2**30, 1))
    syncs = host_syncs(take_step)
    check.figure(f"{name}: host syncs a step", sum(syncs.values()))
    check.figure(f"{name}: where", syncs.most_common(12))
    number, kinds, busy = kernels(take_step)
    check.figure(f"{name}: kernels a step", number)
    check.figure(f"{name}: GPU is busy, while profiled", f"{busy:.0%}")
    each = {kind: round(ms / batch, 3) for kind, ms in kinds.most_common()}
    check.figure(f"{name}: GPU ms an image", each)
    check.check(f"{name}: steps are taken", True)


def host_syncs(take_step: Callable[[], None]) -> collections.Counter[str]:
    """Where a step made the CPU wait for the GPU, by file and line."""
    import torch

    calls: collections.Counter[str] = collections.Counter()
    real = torch.cuda.synchronize

    def counted(*where: Any) -> None:
        calls["torch.cuda.synchronize"] += 1
        real(*where)

    torch.cuda.synchronize = counted
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            take_step()
            torch.cuda.set_sync_debug_mode("default")
    finally:
        torch.cuda.synchronize = real
    for warning in heard:
        if "synchroniz" in str(warning.message):
            calls[f"{Path(warning.filename).name}:{warning.lineno}"] += 1
    return calls


def kernels(take_step: Callable[[], None]) -> tuple[int, collections.Counter[str], float]:
    """A step's number of kernels, their GPU milliseconds by kind, and how busy it was."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        began = time.perf_counter()
        take_step()
        torch.cuda.synchronize()
        wall = time.perf_counter() - began
    kinds: collections.Counter[str] = collections.Counter()
    number = 0
    for event in seen.events():
        on_gpu = str(event.device_type).endswith("CUDA")
        if on_gpu and not getattr(event, "is_user_annotation", False):
            kind = next(k for k, pattern in KINDS.items() if re.search(pattern, event.name, re.I))
            kinds[kind] += event.time_range.elapsed_us() / 1e3
            number += 1
    return number, kinds, sum(kinds.values()) / wall / 1e3


def train(check: Check) -> None:
    """The main command; and again, its rank killed in mid-run, and continued."""
    words = ["--epochs", 2 if check.tiny else 3]
    if not check.ends_well(
        "trains", check.run("whole", *check.train_words("a", check.half, *words))
    ):
        return
    steps = check.log("a", "train/loss")
    losses = [line["train/loss"] for line in steps]
    check.check("losses are numbers", all(map(math.isfinite, losses)), losses)
    check.check("no step was skipped", steps[-1]["train/skipped_steps"] == 0)
    check.figure("images/s, by the log", round(steps[-1]["speed/images_per_s"], 2))
    waits = [round(line["speed/data_wait_share"], 3) for line in steps]
    check.figure("share of a step that waits for data", waits)
    if check.cuda:
        off = max(line["eval/precision_mm"] for line in check.log("a", "eval/precision_mm"))
        check.check("half precision is near float32", off < 5, f"{off:.2f} mm at most")
        check.figure("peak GiB", round(steps[-1]["memory/gpu_peak_gib"], 2))
    lose_rank(check, check.train_words("b", check.half, *words))
    done = check.run("continued", *check.train_words("b", check.half, *words))
    if check.ends_well("the same command goes on", done):
        again = [line["train/loss"] for line in check.log("b", "train/loss")]
        limit = 0.02 if check.cuda else 0  # atomics add up in any order on a GPU
        near = [math.isclose(x, y, rel_tol=limit) for x, y in zip(losses, again)]
        check.check("as if it had not been killed", len(again) == len(losses) and all(near), again)


def lose_rank(check: Check, words: list[Any]) -> None:
    """Kill the rank after its first saved state; the launcher must end, and nothing be left."""
    log = (check.work / "logs" / f"{check.part}-killed.log").open("w")
    launcher = subprocess.Popen([*map(str, words)], stdout=log, stderr=log, cwd=ROOT)
    is_saved = False
    family: list[psutil.Process] = []
    rank = None
    while launcher.poll() is None and not rank:
        time.sleep(0.05)
        is_saved = is_saved or bool(list((check.work / "b/last").glob("step-*[0-9]")))
        if is_saved:
            with contextlib.suppress(psutil.Error):  # short-lived children of theirs come and go
                family = psutil.Process(launcher.pid).children(recursive=True)
                rank = find_rank(family)
    if not rank:
        return check.check("a rank can be killed", False, f"ended with {launcher.wait()} before")
    rank.kill()
    began = time.monotonic()
    code = launcher.wait()
    took = time.monotonic() - began
    check.check("the launcher ends when its rank is lost", code != 0, f"code {code}, {took:.0f} s")
    _, left = psutil.wait_procs(family, timeout=15)
    check.check("no process is left", not left, [process.pid for process in left])


def find_rank(family: list[psutil.Process]) -> psutil.Process | None:
    """The process that trains among those of a launcher, which starts it through another one."""
    for process in family:
        with contextlib.suppress(psutil.Error):
            parent = process.parent()
            if parent and "deepspeed.launcher.launch" in parent.cmdline():
                return process
    return None


def use(check: Check) -> None:
    """Predict from a trained run, and score it."""
    out = check.work / "out"
    words = ["--run", check.work / "a", "--out", out, "--save", "npy"]
    done = check.run("predict", sys.executable, "launch/predict.py", check.work / "raw", *words)
    if check.ends_well("predicts", done):
        import numpy as np

        depths = [np.load(path) for path in sorted(out.rglob("*.npy"))]
        good = len(depths) == 10 and all(np.isfinite(d).all() and (d > 0).all() for d in depths)
        check.check("10 depth maps of finite millimetres", good, [d.shape for d in depths[:1]])
    words = ["--run", check.work / "a", "--no-details"]
    check.ends_well(
        "evaluates", check.run("evaluate", sys.executable, "launch/evaluate.py", *words)
    )


def precisions(check: Check) -> None:
    """The other precisions."""
    import torch

    for name in ("bf16", "fp32"):
        done = check.run(name, *check.train_words(f"run-{name}", name, "--epochs", 1))
        if check.cuda and name == "bf16" and torch.cuda.get_device_capability()[0] < 8:
            refused = done.returncode == 2 and "has no bf16" in done.stderr
            check.check("bf16 is refused by this GPU", refused)
        else:
            check.ends_well(f"trains in {name}", done)


def zero(check: Check) -> None:
    """ZeRO 1 to 3, on one GPU."""
    for stage in (1, 2, 3):
        words = check.train_words(f"zero-{stage}", check.half, "--epochs", 1, zero=stage)
        check.ends_well(f"trains with ZeRO {stage}", check.run(f"zero{stage}", *words))


def stages(check: Check) -> None:
    """The detail and the completion stage, after a short run on images of the camera's size."""
    shards, size = check.work / "shards-camera", check.size
    words = [sys.executable, "tools/shard.py", check.work / "raw", shards, "--split", "random"]
    done = check.run("shard", *words, "--size", size, "--rgb-size", "camera")
    if not check.ends_well("shards with images at the camera's size", done):
        return
    crop = ["--detail-crop", 64 if check.tiny else 256]
    detail = ["--detail", "--detail-steps", 4, "--detail-crops", 2, *crop]
    words = check.train_words("stages", check.half, "--epochs", 1, *detail)
    words[words.index("--data") + 1] = shards
    check.ends_well("trains the detail stage", check.run("detail", *words))
    words += ["--completion", "--completion-steps", 4]
    check.ends_well("trains the completion stage", check.run("completion", *words))


def tests(check: Check) -> None:
    """tests/test_gpu.py without its trainings: `train` and `precisions` are shorter."""
    chosen = "not every_shipped and not fp16_stays"
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen]
    done = check.run("pytest", *words, "-o", "addopts=--import-mode=importlib", "tests/test_gpu.py")
    last = done.stdout.strip().splitlines()[-1:]
    check.check("tests/test_gpu.py", done.returncode == 0, "".join(last)[:200])


def bench(check: Check) -> None:
    """Steps beside the ordinary way to train."""
    words = [sys.executable, "tools/bench.py", "step", "--work", check.work / "bench"]
    words += ["--captures", "8", "--repeats", "2"]
    if check.tiny:
        from helpers.models import save_dav2

        words += ["--capture-size", "72x98", "--size", check.size]
        words += ["--model", save_dav2(check.work / "dav2")]
    done = check.run("step", *words)
    if check.ends_well("bench.py step", done):
        for line in done.stdout.splitlines():
            if line.startswith(("met ", "MISSED ")) and check.cuda:
                check.check(line[8:].strip(), line.startswith("met"))


def compiled(check: Check) -> None:
    """A step with torch.compile."""
    if not check.cuda:
        return check.figure("torch.compile", "not on a CPU")
    step(check, (("auto", True),))


PARTS = (environment, data, step, train, use, precisions, zero, stages, tests, bench, compiled)

if __name__ == "__main__":
    chosen = next(part for part in PARTS if part.__name__ == sys.argv[1])
    os.chdir(ROOT)
    chosen(Check(sys.argv[1], Path(sys.argv[2]), "--tiny" in sys.argv))
