"""`depthdist train`: check the settings at once, then run DeepSpeed's launcher."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from depthdist.core.settings import range_problems
from depthdist.distributed.accelerator import run_launcher
from depthdist.distributed.early_failure import expect_ranks
from depthdist.distributed.launcher_watch import watch_launchers
from depthdist.training.command import MOST_USED, read_settings, work

HELP = """Fine-tune a Depth Anything V2 with LoRA on a folder of captures, or on shards of them.

  depthdist train data/mine --run runs/mine                      # one process a GPU
  depthdist train data/mine --dry-run
  depthdist train data/mine data/more --gpus 4 --epochs 30
  depthdist train --config runs/mine/run.json --run runs/again   # the same once more

The processes are started by DeepSpeed's launcher. Under another one (torchrun, srun, deepspeed)
this is one of its processes: `torchrun --nproc_per_node 8 -m -- depthdist train data/mine`."""


@dataclass(frozen=True)
class LaunchSettings:
    """Launcher (DeepSpeed's)."""

    gpus: int | None = None
    "Processes a machine, one a GPU; on a CPU as many as wanted. Default: all GPUs, one on a CPU."
    hostfile: Path | None = None
    "Machines to train on, a line each such as `node1 slots=8`, reached by ssh. Default: this one."
    master_port: int | None = None
    "Port on which the processes meet. Default: a free one, with --hostfile 29500."

    def problems(self) -> list[str]:
        """Return what is wrong with the values, a line each."""
        port = self.master_port
        found = range_problems(
            self,
            ("gpus", self.gpus is None or self.gpus >= 1, ">= 1"),
            ("master_port", port is None or 1 <= port < 2**16, "1 .. 65535"),
        )
        if self.hostfile and not self.hostfile.is_file():
            found.append(f"--hostfile {self.hostfile}: no such file")
        return found

    def words(self) -> list[str]:
        """Return the settings as the launcher takes them."""
        words = [] if self.gpus is None else ["--num_gpus", str(self.gpus)]
        if self.hostfile:
            words += ["--hostfile", str(self.hostfile), "--quiet"]  # it says whose rank failed
        port = self.master_port or (None if self.hostfile else free_port())
        return words + ([] if port is None else ["--master_port", str(port)])


def main(argv: list[str] | None = None) -> None:
    """Train as the command line says: as a rank, or by starting all ranks."""
    argv = sys.argv[1:] if argv is None else argv
    expect_ranks()
    is_rank = "RANK" in os.environ  # a launcher started this process
    if is_rank:
        watch_launchers()
    launch, settings = read_settings(
        HELP, argv, LaunchSettings, bare="data", first=(*MOST_USED, "gpus"), on_device=is_rank
    )
    if is_rank or settings.keep.dry_run:
        return work(settings)
    # which starts this very command once a GPU
    ranks = ["--module", "--no_local_rank", "depthdist", "train", *argv]
    run_launcher([*launch.words(), *ranks], launch.hostfile)


def free_port() -> int:
    """Return a port that nobody uses now, so that runs side by side do not disturb each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
