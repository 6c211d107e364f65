"""Settings of depthdist predict, depthdist export and depthdist serve."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from depthdist.captures.read_options import camera_problems
from depthdist.core.settings import Size, did_you_mean, positional
from depthdist.geometry.image_size import RECIPE_SIZE
from depthdist.geometry.patches import PATCH_SIZE
from depthdist.models.settings import Refinement

RESULT_KINDS = ("npy", "png", "colour", "figure", "ply", "sigma")
FORMS = ("model", "adapter", "onnx")
DEFAULT_SIZE = Size(*RECIPE_SIZE)


@dataclass(frozen=True)
class PredictSettings:
    """Prediction."""

    run: str
    """Folder of the run, of an adapter (a run's best/, or one that plain peft saved elsewhere),
    of an exported model, or a hub id."""
    inputs: list[str] = positional(())
    """Images, folders of them or of raw captures, patterns such as 'day1/*.png', folders of
    shards."""
    out: Path = Path("predictions")
    "Folder for the results, created if it is missing."
    save: tuple[str, ...] = RESULT_KINDS[:4]
    """What to write for each image, separated by commas: npy, png, colour, figure, ply (15
    bytes per pixel), sigma (how sure each pixel is, mm: needs the run's completion stage)."""
    refine: Refinement | None = None
    """Detail from the image at its full size: detail (the run's detail stage, RUN/detail/best),
    guided (moves depth edges onto the image's edges), tiles (overlapping tiles, each shown to the
    network at the size of the whole) or plain (none). Default: detail where the run has it, else
    plain."""
    flip: bool = False
    "Average with the prediction of the mirrored image: takes twice the time."
    fill: bool = False
    """Fill the holes of what the camera measured, which lies beside each image, and leave the rest
    as it is: NAME_filled.npy and so on; NAME_filled_map.png says which pixels were measured. By the
    run's completion stage, where it has one; else by the prediction, moved to each hole's rim."""
    denoise: bool = False
    """With --fill: measured pixels that stand alone in space (flying pixels, at silhouettes) are
    filled too."""
    refuse: float | None = None
    """Leave out depth whose expected error (sigma) is larger than so many mm: NaN in npy, 0 in png,
    no point in ply. Needs the run's completion stage."""
    fov: float | None = None
    """For ply, if there is no point cloud beside the image: horizontal field of view of the
    camera, degrees."""
    intrinsics: tuple[float, ...] = ()
    "The same, exactly: fx,fy,cx,cy in pixels of the image; column + 0.5 = fx X / Z + cx."
    unit: float | None = None
    "Millimetres per unit of the depth that lies beside images. Default: as it or its layout says."
    batch: int = 1
    "Images in a batch on each device."
    again: bool = False
    "Ignore what is finished in --out and predict everything again."

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is written for each image."""
        return (*self.save, "map") if self.fill else self.save

    def problems(self) -> list[str]:
        """Return what is wrong with the values, one line for each problem."""
        found = [] if self.inputs else ["INPUTS is missing: images, or folders of them"]
        if self.out.exists() and not self.out.is_dir():
            found.append(f"--out {self.out}: is a file; expected a folder")
        found += check_choices("--save", self.save, RESULT_KINDS)[:1]
        found += camera_problems(self.intrinsics, self.fov)
        if (self.intrinsics or self.fov) and "ply" not in self.save:
            found.append("--intrinsics and --fov are for ply: name it in --save")
        if self.unit is not None and not 0 < self.unit < math.inf:
            found.append(f"--unit is {self.unit:g}: expected more than 0 mm")
        if self.denoise and not self.fill:
            found.append("--denoise is for --fill: give both")
        if self.refuse is not None and not 0 < self.refuse < math.inf:
            found.append(f"--refuse is {self.refuse:g}: expected more than 0 mm")
        if self.batch < 1:
            found.append(f"--batch is {self.batch}: expected >= 1")
        return found

    @property
    def needs_sigma(self) -> str | None:
        """The flag that asks how sure a depth is, None where none does."""
        if self.refuse is not None:
            return "--refuse"
        return "--save sigma" if "sigma" in self.save else None


@dataclass(frozen=True)
class ExportSettings:
    """Export."""

    run: str = positional()
    "Folder of the run, or of an adapter, or a hub id."
    out: Path = positional()
    "Folder to write to."
    forms: tuple[str, ...] = FORMS
    "What to write, separated by commas: model, adapter, onnx."
    detail: bool = True
    "Write the run's detail stage too, where it has one."

    def problems(self) -> list[str]:
        """Return what is wrong with the values, one line for each problem."""
        found = check_choices("--forms", self.forms, FORMS)
        if self.out.exists() and not self.out.is_dir():
            found.append(f"OUT {self.out}: is a file; expected a folder")
        if "onnx" in self.forms and (missing := missing_packages()):
            found.append(f"--forms has onnx: {missing}")
        return found


@dataclass(frozen=True)
class ServeSettings:
    """Page."""

    run: str = positional()
    "Folder of the run, of an adapter, of an exported model, or a hub id."
    host: str = "127.0.0.1"
    """Address to listen on. By default only this machine can connect; with 0.0.0.0 everybody on
    the network can."""
    port: int = 8000
    "Port; 0 takes a free one."
    refine: Refinement | None = None
    """Detail from the image at its full size, as in depthdist predict: detail, guided, tiles or
    plain. Default: detail where the run has it, else plain."""
    flip: bool = False
    "Average with the prediction of the mirrored image."
    fov: float = 55.0
    """Horizontal field of view of the camera, degrees, until the page sets another: for
    distances and the 3-D view."""
    max_mb: float = 32.0
    "Largest file that is accepted, MB."
    max_megapixels: float = 25.0
    "Largest image that is accepted."
    keep: int = 8
    "Number of results kept in memory; older ones are deleted."
    waiting: int = 4
    "Number of images that may wait in the queue; more are rejected."
    memory_mb: float = 1000.0
    """Memory for results and for files on their way, MB: half of it each. Older results are
    deleted, further files are rejected."""
    client_s: float = 120.0
    "Seconds a client has to send an image, and to take an answer."

    def problems(self) -> list[str]:
        """Return what is wrong with the values, one line for each problem."""
        found = []
        if not 0 <= self.port < 65536:
            found.append(f"--port is {self.port}: expected 0 to 65535")
        for name in ("max_mb", "max_megapixels", "keep", "waiting", "memory_mb", "client_s"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                flag = name.replace("_", "-")
                found.append(f"--{flag} is {value:g}: expected above 0, and a number")
        if not 0 < self.fov < 180:
            found.append(f"--fov is {self.fov:g}: expected degrees above 0 and below 180")
        return found


@dataclass(frozen=True)
class ExternalAdapterSettings:
    """What an adapter made elsewhere does not record."""

    near_mm: float | None = None
    "Depth at which its normalized inverse depth is 1: the nearest of its training, mm."
    far_mm: float | None = None
    "Depth at which it is 0: the farthest of its training, mm."
    size: Size = DEFAULT_SIZE
    "Height and width of its training images; multiples of 14."
    target: Literal["inverse", "linear"] = "inverse"
    "What it learned: normalized 1/depth, or normalized depth."
    base: str | None = None
    """Its base model, as in depthdist train. Default: the one that its adapter_config.json
    names."""

    def problems(self) -> list[str]:
        """Return what is wrong with the values, one line for each problem."""
        near, far = self.near_mm, self.far_mm
        found = [
            f"{name} is {value:g}: expected > 0 mm"
            for name, value in (("--near-mm", near), ("--far-mm", far))
            if value is not None and not 0 < value < math.inf
        ]
        if (near is None) != (far is None):
            found.append("--near-mm and --far-mm: expected both or neither")
        elif near is not None and far is not None and not found and near >= far:
            found.append(f"--near-mm is {near:g}, --far-mm is {far:g}: expected near < far")
        if any(side < PATCH_SIZE or side % PATCH_SIZE for side in self.size):
            found.append(f"--size is {self.size}: expected multiples of {PATCH_SIZE}")
        return found


def check_choices(flag: str, chosen: Sequence[str], known: Sequence[str]) -> list[str]:
    """Return a line for each of `chosen` that is not in `known`, or one if none is chosen."""
    expected = ", ".join(known)
    if not chosen:
        return [f"{flag} is empty: expected some of {expected}"]
    return [
        f"{flag} has {name}: expected {expected}{did_you_mean(name, list(known))}"
        for name in chosen
        if name not in known
    ]


def missing_packages() -> str | None:
    """Return which packages the ONNX export lacks and how to install them, None if none."""
    missing = [
        name
        for name in ("onnx", "onnxscript", "onnxruntime")
        if importlib.util.find_spec(name) is None
    ]
    return f"needs {', '.join(missing)}: python -m pip install -e '.[onnx]'" if missing else None
