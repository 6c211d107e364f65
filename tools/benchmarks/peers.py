"""The other loaders: what to install, an environment for each, a copy of the samples for each."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
import sysconfig
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from tools.benchmarks.processes import print_progress, run, run_module


@dataclass(frozen=True)
class Peer:
    """Another loader.

    package  what pip installs
    module   what must import then
    note     a remark beside its numbers
    needs    installed instead of everything that the package requires
    stubs    files that are put beside it, their text by name
    """

    package: str
    module: str
    note: str
    needs: tuple[str, ...] = ()
    stubs: dict[str, str] = field(default_factory=dict)


# streaming.vision subclasses VisionDataset and may call to_tensor; a torchvision built for another
# torch cannot even be imported
TORCHVISION = {
    "torchvision/__init__.py": "",
    "torchvision/datasets.py": "class VisionDataset: ...\n",
    "torchvision/transforms/__init__.py": "",
    "torchvision/transforms/functional.py": "to_tensor = None\n",
}
PEERS = {
    # The first two require torchvision, which requires another torch; LitData works without it.
    "litdata": Peer(
        "litdata==0.2.76",
        "litdata",
        "mask packed",
        ("lightning-utilities", "boto3", "requests", "tifffile", "obstore"),
    ),
    "mosaicml": Peer(
        "mosaicml-streaming==0.13.0",
        "streaming",
        "mask packed; torchvision stubbed",
        ("Brotli", "python-snappy", "zstd", "xxhash<4", "catalogue"),
        TORCHVISION,
    ),
    "energon": Peer("megatron-energon==7.4.1", "megatron.energon", "mask packed"),
    "dali": Peer("nvidia-dali-cuda120==2.4.0", "nvidia.dali", "mask packed, CPU pipeline"),
}


def make_environment(folder: Path, peer: Peer) -> Path:
    """Return the Python of a loader's own environment, made when it is missing.

    This project's packages are visible there by a .pth file and pinned by a constraint: torch is
    always the same. Raise ValueError if the loader does not install or import.
    """
    python = folder / "bin" / "python"
    ready = folder / "ready"
    packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    made_of = json.dumps([astuple(peer), packages])
    if ready.exists() and ready.read_text(encoding="utf-8") == made_of:
        return python
    print_progress(f"installing {peer.package}")
    shutil.rmtree(folder, ignore_errors=True)
    run([sys.executable, "-m", "venv", folder])
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (site / "project.pth").write_text("\n".join(packages), encoding="utf-8")
    pins = [f"{name}=={importlib.metadata.version(name)}" for name in ("torch", "numpy")]
    (folder / "pins").write_text("\n".join(pins), encoding="utf-8")
    pip = [python, "-m", "pip", "install", "--quiet", "--constraint", folder / "pins"]
    run([*pip, *(["--no-deps"] if peer.needs else []), peer.package])
    if peer.needs:
        run([*pip, *peer.needs])
    for name, text in peer.stubs.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text, encoding="utf-8")
    run([python, "-c", f"import {peer.module}"])
    ready.write_text(made_of, encoding="utf-8")
    return python


def convert_samples(python: Path, job: dict[str, Any]) -> None:
    """Write the samples in the loader's own format, once."""
    folder = Path(job["data"])
    done = folder.with_suffix(".done")
    index = Path(job["shards"], "index.json").read_text(encoding="utf-8")
    if done.exists() and done.read_text(encoding="utf-8") == index:
        return
    print_progress(f"converting for {job['loader']}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run_module(python, "measure_loader", "convert", json.dumps(job))
    done.write_text(index, encoding="utf-8")
