"""Commands as a person types them: in this process, which is quick, or on several ranks through the
real launcher.

    done = command("launch/train.py", "--data", data, ...)          # done.code, done.out, done.err
    # deepspeed --num_accelerators 2 launch/train.py ...
    launch = Launch(2, "launch/train.py", "--data", data, ...)
    # function(*words) on each rank; it imports what it needs
    launch = on_ranks(2, function, tmp_path, "its", "words")
    # the same without a launcher, each rank for itself
    first, second = on_srun(2, script(function, tmp_path), "its")
    done = launch.done()  # waits for it; launch.kill() does not

Everything is on the CPU and one thread a process: pools of threads wait for one another when other
work shares the cores."""

import contextlib
import functools
import inspect
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from captures import ROOT, write_raw

ON_CPU = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
LAUNCHER = Path(sys.executable).with_name("deepspeed")
SIZE = (28, 42)  # of the pictures that the network sees


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines a person reads, once the exit code is 2 and there is no traceback."""
        assert self.code == 2 and "Traceback" not in self.err + self.out, self
        return [
            line.split("error: ", 1)[1] for line in self.err.splitlines() if ".py: error: " in line
        ]


def command(script: str, *words: Any) -> Done:
    """The script of that name in this process, with `words` on its command line, from the
    repository's root or where we are."""
    import depthdist.training.train  # noqa: F401

    joined()
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.dict(os.environ, ON_CPU),
        mock.patch.object(sys, "argv", [str(ROOT / script), *map(str, words)]),
        mock.patch("depthdist.training.train.stop"),  # DeepSpeed cannot start twice in one process
        mock.patch("depthdist.distributed.process_group.stop"),
    ):
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            code = end.code
    return Done(code, out.getvalue(), err.getvalue())


@functools.cache
def joined():
    """The World of this process, alone. The environment stays as it was."""
    import torch

    with mock.patch.dict(os.environ, ON_CPU):
        from depthdist.distributed.process_group import start

        torch.set_num_threads(1)
        return start()


def free_port() -> int:
    """A port that nobody uses right now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Typed:
    """A command, typed in the repository's root and at work from now on.

    `env` is added to its environment.
    """

    def __init__(self, *words: Any, **env: Any):
        self.files = (
            tempfile.TemporaryFile("w+"),
            tempfile.TemporaryFile("w+"),
        )  # a pipe that nobody reads would fill up
        out, err = self.files
        known = {**os.environ, **ON_CPU, **{name: str(value) for name, value in env.items()}}
        self.process = subprocess.Popen(
            [*map(str, words)], cwd=ROOT, env=known, stdout=out, stderr=err, start_new_session=True
        )

    @functools.cache
    def done(self, timeout: float = 240) -> Done:
        """How it ended. After `timeout` seconds all its processes are killed."""
        try:
            code = self.process.wait(timeout)
        finally:
            self.kill()
        return Done(code, *(file.seek(0) or file.read() for file in self.files))

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Launch(Typed):
    """`deepspeed --num_accelerators RANKS WORDS`."""

    def __init__(self, ranks: int, *words: Any):
        super().__init__(
            LAUNCHER, "--num_accelerators", ranks, "--master_port", free_port(), *words
        )


def on_srun(ranks: int, *words: Any, **env: Any) -> list[Typed]:
    """`python WORDS` as srun starts it, once a rank, all on one machine."""
    shared = {
        "SLURM_STEP_NUM_TASKS": ranks,
        "SLURM_STEP_TASKS_PER_NODE": ranks,
        "SLURM_NODEID": 0,
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }
    return [
        Typed(sys.executable, *words, **shared, SLURM_PROCID=rank, SLURM_LOCALID=rank, **env)
        for rank in range(ranks)
    ]


def script(function, folder: Path) -> Path:
    """A file that calls `function` with its command line's words: it gets text, and finds nothing
    of its module."""
    path = folder / f"{function.__name__}.py"
    call = (
        f"\n\nimport sys\nsys.path.insert(0, {str(ROOT / 'tests')!r})\n{function.__name__}(*(word"
        " for word in sys.argv[1:] if not word.startswith('--local_rank')))\n"
    )
    path.write_text(textwrap.dedent(inspect.getsource(function)) + call)
    return path


def on_ranks(ranks: int, function, folder: Path, *words: Any) -> Launch:
    """`function(*words)` on each rank, as `script` has it."""
    return Launch(ranks, script(function, folder), *words)


# ----------------------------------------------------------------------- small data, settings, runs


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


def make_model(folder: Path) -> Path:
    """A small DA-V2 in Hugging Face format, whose decoder counts as pretrained and whose depth
    differs widely from pixel to pixel."""
    import torch
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    seen = {
        "image_size": 224,
        "patch_size": 14,
        "out_indices": [1, 2, 3, 4],
        "reshape_hidden_states": False,
        "apply_layernorm": True,
    }
    backbone = Dinov2Config(hidden_size=96, num_attention_heads=3, num_hidden_layers=4, **seen)
    decoder = {
        "reassemble_hidden_size": 96,
        "neck_hidden_sizes": [24, 48, 96, 96],
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


def train(
    data: Path, run: Path, *words: Any, deepspeed: Path = ROOT / "ds_configs/fp32.json"
) -> Done:
    """launch/train.py of `tiny`, in this process, without pictures."""
    return command(
        "launch/train.py",
        "--data",
        data,
        "--run",
        run,
        "--model",
        "tiny",
        "--deepspeed",
        deepspeed,
        "--pictures",
        0,
        "--lr",
        1e-3,
        *words,
    )


def log(run: Path, *, of: str = "") -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, or those that have the value `of`."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if not of or of in line]
