"""Write synthetic captures of tires in a crate, in the real camera's layout, with ground truth.

    python -m depthdist.synthetic OUT --pairs 58 --size 1200x1944 --seed 0 --sheet

With X for a stem such as 21-12-03-18-50-31_Zivid_acquisition:

    OUT/images/X_color.png      (H, W, 3) uint8
    OUT/images/X_grooves.png    (H, W) uint16: the groove seen there, 0 for none
    OUT/depth/X_rawDepth.npy    (H, W, 3) float32 X, Y, Z in mm, NaN holes
    OUT/truth/X_truth.npz       exact Z, tires, grooves, paint: see synthetic/tires/render.py
    OUT/tires.json              the settings; a second run continues where one stopped
    OUT/truth/sheet.png         with --sheet: an overview, images beside their depth

A capture is complete when its .npy is there, which is written last; each file is written beside its
place and moved in.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from depthdist.core.command_line import parse
from depthdist.core.files import write_atomic
from depthdist.core.settings import as_dict
from depthdist.synthetic.capture_files import (
    npy_bytes,
    npz_bytes,
    png_bytes,
    read_folder_settings,
    render_all,
)
from depthdist.synthetic.settings import OutputSettings
from depthdist.synthetic.tires.plan import Settings, plan_captures

SHEET_CAPTURES, SHEET_WIDTH = 12, 480
# The colors of depth, near to far.
RAMP = np.array(
    [(255, 255, 190), (254, 190, 90), (240, 80, 60), (140, 30, 110), (20, 10, 90)], float
)


@dataclass(frozen=True)
class Output(OutputSettings):
    """Output."""

    sheet: bool = False
    "Also write OUT/truth/sheet.png, images beside their depth, as an overview."


def main(argv: list[str] | None = None) -> None:
    """Render what is missing in OUT and print a summary of the set."""
    settings, output = parse(
        "Write synthetic captures of tires, with ground truth.", Settings, Output, argv=argv
    )
    prepare_folder(output.out, settings)
    start = time.perf_counter()
    stems = [capture.stem for capture in plan_captures(settings)]
    missing = [i for i, stem in enumerate(stems) if not is_complete(output.out, stem)]
    render_all(partial(render_files, settings, output.out), missing, output.workers, unit="pair")
    seconds = time.perf_counter() - start
    if output.sheet:
        write_atomic(output.out / "truth" / "sheet.png", png_bytes(sheet(output.out, stems)))
    print(
        f"{summary(output.out, stems)}; {seconds / max(len(missing), 1):.2f} s a pair,"
        f" {len(missing)} made: {output.out}"
    )


def prepare_folder(out: Path, settings: Settings) -> None:
    """Make OUT's folders and note the settings in OUT/tires.json.

    Raise ValueError where OUT holds captures of other settings, or something else.
    """
    record = out / "tires.json"
    wanted = as_dict(settings)
    found = read_folder_settings(record, "settings")
    if found is not None:
        if "groove_depth" not in found:
            raise ValueError(
                f"{record}: made by an earlier version, in whose images grooves look different;"
                " move that folder away, or give another folder"
            )
        differences = [
            f"{name} {found.get(name)} there, {value} asked for"
            for name, value in wanted.items()
            if found.get(name) != value
        ]
        if differences:
            raise ValueError(
                f"{record}: made with other settings ({'; '.join(differences)}); give those, or"
                " another folder"
            )
    for folder in ("images", "depth", "truth"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    write_atomic(record, json.dumps({"settings": wanted}, indent=1).encode())


def paths(out: Path, stem: str) -> dict[str, Path]:
    """Return the files of one capture in the order they are written."""
    return {
        "rgb": out / "images" / f"{stem}_color.png",
        "grooves": out / "images" / f"{stem}_grooves.png",
        "truth": out / "truth" / f"{stem}_truth.npz",
        "xyz": out / "depth" / f"{stem}_rawDepth.npy",
    }


def is_complete(out: Path, stem: str) -> bool:
    """Return whether all files of a capture are there."""
    return all(path.exists() for path in paths(out, stem).values())


def render_files(settings: Settings, out: Path, index: int) -> None:
    """Render capture number `index` and write its files."""
    from depthdist.synthetic.tires.render import render  # numba: not needed for --help

    capture = render(settings, index)
    files = paths(out, capture.stem)
    write_atomic(files["rgb"], png_bytes(capture.rgb))
    write_atomic(files["grooves"], png_bytes(capture.truth["groove"]))
    write_atomic(files["truth"], npz_bytes(capture.truth))
    write_atomic(files["xyz"], npy_bytes(capture.xyz))


def summary(out: Path, stems: list[str]) -> str:
    """Return the share of valid pixels and the distribution of Z of the whole set, in one line."""
    count = pixels = total = squares = 0.0
    low, high = np.inf, -np.inf
    for stem in stems:
        z = np.load(paths(out, stem)["xyz"], mmap_mode="r")[..., 2]
        valid = z[np.isfinite(z)].astype(np.float64)
        pixels += z.size
        count += valid.size
        total += valid.sum()
        squares += np.square(valid).sum()
        low = min(low, valid.min(initial=np.inf))
        high = max(high, valid.max(initial=-np.inf))
    mean = total / count
    std = np.sqrt(max(squares / count - mean**2, 0.0))
    return (
        f"{len(stems)} pairs, {count / pixels:.1%} valid, z {low:.2f} .. {high:.2f} mm, mean"
        f" {mean:.0f}, std {std:.0f}"
    )


def sheet(out: Path, stems: list[str]) -> np.ndarray:
    """Return up to SHEET_CAPTURES captures, spread over the set, as one image (H, W, 3) uint8.

    Image and depth are side by side, two captures a row.
    """
    chosen = np.unique(np.linspace(0, len(stems) - 1, SHEET_CAPTURES).round().astype(int))
    tiles = []
    for stem in (stems[i] for i in chosen):
        files = paths(out, stem)
        z = np.load(files["xyz"], mmap_mode="r")[..., 2]
        size = (SHEET_WIDTH, round(SHEET_WIDTH * z.shape[0] / z.shape[1]))
        rgb = Image.open(files["rgb"]).resize(size, Image.Resampling.BOX)
        depth = Image.fromarray(depth_colors(z)).resize(size, Image.Resampling.BOX)
        tiles.append(np.hstack([np.asarray(rgb), np.asarray(depth)]))
    if len(tiles) % 2:
        tiles.append(np.zeros_like(tiles[0]))
    return np.vstack([np.hstack(tiles[i : i + 2]) for i in range(0, len(tiles), 2)])


def depth_colors(z: np.ndarray) -> np.ndarray:
    """Return depth (H, W) mm as colors (H, W, 3) uint8 over its own range; holes are black."""
    valid = np.isfinite(z)
    if not valid.any():
        return np.zeros((*z.shape, 3), np.uint8)
    low, high = np.percentile(z[valid], (1, 97))
    place = np.clip((np.where(valid, z, low) - low) / max(high - low, 1.0), 0, 1) * (len(RAMP) - 1)
    colors = np.stack(
        [np.interp(place, np.arange(len(RAMP)), RAMP[:, c]) for c in range(3)], axis=-1
    )
    return np.where(valid[..., None], colors, 0).astype(np.uint8)
