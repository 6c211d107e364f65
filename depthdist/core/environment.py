"""This process: its rank, cores, device, worker processes, versions."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthdist import __version__
from depthdist.core.nvidia_driver import describe_unusable_gpu

if TYPE_CHECKING:
    import torch


SHM = "/dev/shm"  # where Linux keeps what processes share


def rank() -> int:
    """Return this process's number among all that the launcher started, 0 without a launcher."""
    return int(os.environ.get("RANK") or 0)


def world_size() -> int:
    """Return how many processes the launcher started, on all machines."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def local_rank() -> int:
    """Return this process's number among those of this machine."""
    return int(os.environ.get("LOCAL_RANK") or 0)


def local_world_size() -> int:
    """Return how many processes the launcher started on this machine."""
    sizes = (os.environ.get("LOCAL_WORLD_SIZE"), os.environ.get("LOCAL_SIZE"), world_size())
    return int(next(size for size in sizes if size))


def is_beside_rank_0() -> bool:
    """Return whether this process runs on the machine of rank 0, whose disk has the run.

    Also of its own machine's first processes alone, where ranks are dealt out in turn.
    """
    return rank() == local_rank()


def timeout_seconds() -> float:
    """Return the seconds that a rank waits for the others, to meet and in each exchange.

    DEPTHDIST_TIMEOUT in the environment sets it. raises ValueError where that is no number > 0
    """
    text = os.environ.get("DEPTHDIST_TIMEOUT", "600")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < math.inf:
        raise ValueError(f"DEPTHDIST_TIMEOUT is {text!r}: expected seconds > 0, such as 600")
    return seconds


def process_space() -> str:
    """Return a name for what a process id means something in: this machine, this container.

    "" where the system does not tell. It changes when the machine starts again.
    """
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def pick_device() -> torch.device:
    """Return the device that a single process computes on: the GPU where there is one.

    A warning says why a GPU of this machine cannot be used.
    """
    import torch

    if has_usable_gpu():
        return torch.device("cuda")
    if problem := describe_unusable_gpu():
        warnings.warn(f"{problem}; this computes on the CPU", stacklevel=2)
    return torch.device("cpu")


def has_usable_gpu() -> bool:
    """Return whether PyTorch finds a GPU, without its own warning about an old driver.

    `describe_unusable_gpu` says more.
    """
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.cuda.is_available()


def silence_libraries() -> None:
    """Keep progress bars and remarks of transformers and peft off the terminal."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="peft")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Do what `silence_libraries` does, and undo it at the end: for use in other people's code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # while transformers is imported
        from transformers.utils import logging as transformers_logging

        verbosity = transformers_logging.get_verbosity()
        had_bars = transformers_logging.is_progress_bar_enabled()
        silence_libraries()
        try:
            yield
        finally:
            transformers_logging.set_verbosity(verbosity)
            if had_bars:
                transformers_logging.enable_progress_bar()


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return where, when and with which versions something is computed, for records in JSON."""
    import torch

    if device.type == "cuda":
        device_name = torch.cuda.get_device_name()
    else:
        device_name = platform.processor() or platform.machine()
    return {
        "device": device_name,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git": _git_revision(),
        "versions": {
            "depthdist": __version__,
            "python": platform.python_version(),
            "deepspeed": version("deepspeed"),
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "peft": version("peft"),
            "numpy": version("numpy"),
        },
    }


def _git_revision() -> str:
    git = shutil.which("git")
    if not git:
        return ""
    command = [git, "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip()


def count_workers(wanted: int, num_jobs: int, ranks: int = 1) -> int:
    """Return how many processes to start: `wanted`, or with 0 this rank's share of the cores.

    Never more than there are jobs.
    """
    return max(1, min(wanted or usable_cores() // ranks, num_jobs))


def open_pool(
    workers: int, initializer: Callable[..., Any] | None = None, *initargs: Any
) -> ProcessPoolExecutor:
    """Return a pool of worker processes, none of which is started yet.

    They are spawned: fork copies locks that other threads hold. raises ValueError where this
    machine does not let them be made
    """
    context = multiprocessing.get_context("spawn")
    try:
        return ProcessPoolExecutor(workers, context, initializer, initargs)
    except (ImportError, OSError) as err:
        raise ValueError(no_workers(err)) from err


def no_workers(err: Exception) -> str:
    """Return why worker processes cannot be started, in one line: their locks are in /dev/shm."""
    reason = getattr(err, "strerror", None) or err
    return f"worker processes cannot be started ({reason}); they need a {SHM} that can be written"


def free_shared_memory() -> float:
    """Return the bytes of shared memory that a process of this rank may still use."""
    if not sys.platform.startswith("linux"):
        return math.inf
    try:
        free = shutil.disk_usage(SHM).free if os.access(SHM, os.W_OK) else 0
    except OSError:
        free = 0
    return free / local_world_size()


def start_worker() -> None:
    """Prepare this worker process as its command was, and end it when that command is gone."""
    silence_image_warnings()
    obey_parent_only()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()  # returns when the command is gone, however it ended
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def no_signals_to_children() -> Iterator[None]:
    """Start processes that signals do not reach while they start: they inherit the mask.

    Launchers and SLURM send a request to stop to every process; the command that started this one
    serves it. Each worker calls obey_parent_only(), each rank note_stop_signals().
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _sent_to_groups())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_parent_only(_: int = 0) -> None:
    """Ignore in this worker what is sent to its whole process group; its command can end it."""
    if not hasattr(signal, "sigwaitinfo"):  # only Linux says who sent a signal
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, _sent_to_groups())
    parent = os.getppid()

    def obey() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(1)

    threading.Thread(target=obey, daemon=True).start()


def _sent_to_groups() -> set[signal.Signals]:
    return {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}


def silence_image_warnings() -> None:
    """Suppress warnings about unusual but readable files, for the whole process.

    A file that cannot be read raises BadFile, it never only warns. Call this once at the start of a
    command and of each of its worker processes.
    """
    warnings.filterwarnings(  # of a file that Python 2 wrote
        "ignore", message="Reading `.npy` or `.npz` file required additional header parsing"
    )
    warnings.filterwarnings("ignore", module=r"PIL\.")
    for name in ("PIL", "tifffile"):
        logger = logging.getLogger(name)
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())


def peak_memory_gib() -> float | None:
    """Return the largest memory use of this process so far, GiB; None where that is not known."""
    try:
        import resource
    except ImportError:  # only Unix has it
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)  # macOS counts bytes, Linux KiB
