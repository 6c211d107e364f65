"""Measure how well a groove's depth can be read from rendered images by simple local statistics.

    python tools/make_tires.py fit --pairs 10 --seed 101
    python tools/make_tires.py test --pairs 10 --seed 202
    python tools/groove_cues.py fit test

A line is fitted from the statistics of each groove of FIT (see CUES) to its true depth, and applied
to the grooves of TEST. The table has its mean absolute error in mm beside that of saying FIT's mean
depth for every groove, and that of a line that knows widths and distance alone. What all cues take
off that is what the brightness shows of the depth: what a network can learn. Grooves count that are
at least 4 pixels wide, with floor and ribs that the camera measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from depthdist.core.command import run_command
from depthdist.core.command_line import parse
from depthdist.core.settings import positional
from depthdist.synthetic.command import paths

SIZES = (
    "log width, pixels",
    "log width, mm",
    "log distance, m",
)
CUES = (
    *SIZES,
    "log brightness of the floor's middle, less the ribs'",
    "the same of the floor beside the walls",
    "the same of the darkest tenth, where the wall's shadow is",
    "the same of the brightest tenth",
    "spread of log brightness on floor and walls",
    "spread on the ribs",
    "log brightness of the ribs",
    "log brightness of the floor's middle less the ribs', times the width in mm",
)
MIN_WIDTH_PX = 4.0
MIN_PIXELS = 25  # of the floor's middle, and of the ribs


@dataclass(frozen=True)
class CueSettings:
    """Captures."""

    fit: Path = positional()
    "Folder that tools/make_tires.py wrote: the line is fitted to its grooves."
    test: Path = positional()
    "Another one, of another seed: the line is scored on its grooves."


def main(argv: list[str] | None = None) -> None:
    """Print the table of one row."""
    (settings,) = parse(
        "Measure how well groove depth can be read from rendered images: the error of a linear fit"
        " to the brightness and width of each groove, in mm, beside that of always saying the mean"
        " depth, and that of a fit to widths and distance alone.",
        CueSettings,
        argv=argv,
        epilog="example: tools/make_tires.py fit --pairs 10 --seed 101; tools/make_tires.py test"
        " --pairs 10 --seed 202; tools/groove_cues.py fit test",
    )
    cues, depth_mm = read_folder(settings.fit)
    test_cues, test_depth_mm = read_folder(settings.test)
    num_sizes = len(SIZES)
    predictions = {
        "mean depth": np.full(len(test_depth_mm), depth_mm.mean()),
        "widths": fit_and_apply(cues[:, :num_sizes], depth_mm, test_cues[:, :num_sizes]),
        "all cues": fit_and_apply(cues, depth_mm, test_cues),
    }
    mae = [f"{np.abs(pred - test_depth_mm).mean():.2f}" for pred in predictions.values()]
    r = float(np.corrcoef(predictions["all cues"], test_depth_mm)[0, 1])
    print("| grooves fit | test | their mean mm | MAE mm:", " | ".join(predictions), "| r |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {len(depth_mm)} | {len(test_depth_mm)} | {test_depth_mm.mean():.2f} |",
        " | ".join(mae),
        f"| {r:.2f} |",
    )


def read_folder(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return CUES (N, C) and true depths (N,) mm of all grooves of a folder of captures.

    Raise ValueError where there are none.
    """
    if not (folder / "tires.json").exists():
        raise ValueError(
            f"{folder} has no tires.json; give a folder that tools/make_tires.py wrote"
        )
    pairs = json.loads((folder / "tires.json").read_text())["settings"]["pairs"]
    stems = sorted(p.name.removesuffix("_truth.npz") for p in folder.glob("truth/*_truth.npz"))
    rows = [row for stem in stems for row in groove_rows(folder, stem)]
    if not rows:
        raise ValueError(
            f"{folder} has {len(stems)} of {pairs} captures and no groove {MIN_WIDTH_PX:g} pixels"
            " wide in them; a larger --size or more --pairs is needed"
        )
    cues, depths = zip(*rows)
    return np.array(cues), np.array(depths)


def groove_rows(folder: Path, stem: str) -> Iterator[tuple[list[float], float]]:
    """Yield the CUES and the true depth in mm of each groove of a capture."""
    files = paths(folder, stem)
    log_grey = np.log(np.asarray(Image.open(files["rgb"])).mean(axis=2) + 1.0)
    z = np.load(files["xyz"])[..., 2]
    truth = np.load(files["truth"])
    groove = truth["groove"]
    inside_px = ndimage.distance_transform_edt(groove > 0)
    outside_px, nearest = ndimage.distance_transform_edt(groove == 0, return_indices=True)
    measured = np.isfinite(z)
    rib_of = groove[tuple(nearest)]
    rib_of[(outside_px < 2.5) | (outside_px > 12.0) | (truth["tire"] == 0) | ~measured] = 0
    boxes = ndimage.find_objects(groove.astype(np.int32))
    for id_, depth_mm in zip(truth["groove_id"], truth["groove_depth_mm"]):
        box = tuple(slice(max(s.start - 13, 0), s.stop + 13) for s in boxes[id_ - 1])
        own = (groove[box] == id_) & measured[box]
        if not own.any():
            continue
        away = inside_px[box][own]
        half_px = float(np.quantile(away, 0.95))
        grey = log_grey[box][own]
        middle = grey[away > 0.6 * half_px]
        edge = grey[away <= 0.4 * half_px]
        ribs = log_grey[box][rib_of[box] == id_]
        enough = min(len(middle), len(ribs)) >= MIN_PIXELS and len(edge) > 0
        if 2 * half_px < MIN_WIDTH_PX or not enough:
            continue
        rib = float(np.median(ribs))
        contrast = float(np.median(middle)) - rib
        z_m = float(np.median(z[box][own])) / 1000.0
        width_px = 2 * half_px
        width_mm = width_px * z_m * 1000.0 / truth["K"][0, 0]
        yield (
            [
                float(np.log(width_px)),
                float(np.log(width_mm)),
                float(np.log(z_m)),
                contrast,
                float(np.median(edge)) - rib,
                float(np.quantile(grey, 0.1)) - rib,
                float(np.quantile(grey, 0.9)) - rib,
                float(grey.std()),
                float(ribs.std()),
                rib,
                contrast * width_mm,
            ],
            float(depth_mm),
        )


def fit_and_apply(cues: np.ndarray, depth_mm: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the depths (M,) mm that a linear fit of `cues` (N, C) to depths (N,) says of `others`.

    The cues are standardized. The fit is by least squares, with a ridge of a hundredth of the
    number of grooves, and limited to the depths that it was fitted to.
    """
    mean = cues.mean(axis=0)
    spread = cues.std(axis=0) + 1e-9
    design = (cues - mean) / spread
    weights = np.linalg.solve(
        design.T @ design + 0.01 * len(design) * np.eye(design.shape[1]),
        design.T @ (depth_mm - depth_mm.mean()),
    )
    pred_mm = depth_mm.mean() + (others - mean) / spread @ weights
    return np.clip(pred_mm, depth_mm.min(), depth_mm.max())


if __name__ == "__main__":
    run_command(main)
