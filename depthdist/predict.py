"""Depth in mm for pictures, with a trained adapter.

    python launch/predict.py data/tires_raw/images --run runs/NAME --out predictions

For each picture, at its own size:
    NAME_depth.npy        float32 (H, W), mm
    NAME_depth_0.1mm.png  16 bit, one unit is 0.1 mm (1 mm where the run's depth ends beyond 6.5 m: then NAME_depth_1mm.png)
    NAME_figure.png       RGB | prediction, and truth and error where the picture's point cloud stands beside it
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from tqdm import tqdm

from depthdist import config
from depthdist.checkpoint import RECORD, load_adapter, loaded
from depthdist.config import Size
from depthdist.depth import Bounds, depth_from_target
from depthdist.figures import figure, save
from depthdist.model import pick_device, quiet
from depthdist.network import DepthModel
from depthdist.pairs import BadFile, find_cloud, list_pictures, read_rgb, read_xyz, resize_rgb


@dataclass(frozen=True)
class PredictSettings:
    """Prediction"""

    run: Path
    "Folder of the run, or of an adapter (a run's best/)."
    inputs: list[Path] = config.positional(())
    "Pictures, or folders of them."
    out: Path = Path("predictions")
    "Folder for the results, made where it is missing."
    figures: bool = True
    "Also draw RGB | truth | prediction | error for each picture."

    def problems(self) -> list[str]:
        found = [] if self.inputs else ["INPUTS is missing: pictures, or folders of them"]
        if self.out.exists() and not self.out.is_dir():
            found.append(f"--out {self.out}: is a file; expected a folder")
        return found


def predict_mm(model: DepthModel, rgb: np.ndarray, size: tuple[int, int], bounds: Bounds, device: torch.device) -> np.ndarray:
    """(H, W) float32 mm of a picture (H, W, 3) uint8; `size` is what the network was trained to see."""
    small = torch.from_numpy(resize_rgb(rgb, Size(*size))).unsqueeze(0).to(device)  # (1, h, w, 3)
    with torch.no_grad():
        target = model.upsampled(model(small), rgb.shape[:2])
    return depth_from_target(target, bounds)[0].cpu().numpy()


def predict_all(settings: PredictSettings) -> list[str]:
    """Write the results of every picture. Returns one line for each picture that could not be read."""
    quiet()
    found = [p for given in settings.inputs for p in list_pictures(given)]
    mine = settings.out.resolve()  # results of an earlier run are no inputs
    pictures = list({p.resolve(): p for p in found if mine not in p.resolve().parents}.values())
    names = output_names(pictures)
    adapter = settings.run if (settings.run / RECORD).exists() else settings.run / "best"
    model, record = load_adapter(adapter)
    print(loaded(model, record))
    device = pick_device()
    model.to(device)
    settings.out.mkdir(parents=True, exist_ok=True)
    problems: list[str] = []
    done = 0
    for path, name in tqdm(list(zip(pictures, names)), desc="predicting", unit="picture", disable=not sys.stderr.isatty()):
        try:
            rgb = read_rgb(path, upright=True)
        except BadFile as err:
            problems.append(str(err))
            continue
        try:
            truth_mm = truth_of(path, rgb.shape[:2])
        except BadFile as err:
            problems.append(f"{err}; {path.name} is drawn without truth")
            truth_mm = None
        depth_mm = predict_mm(model, rgb, record.size, record.bounds, device)
        try:
            write(settings.out, name, depth_mm, record.bounds)
            if settings.figures:
                save(figure(rgb, depth_mm, truth_mm, title=path.name), settings.out / f"{name}_figure.png")
        except OSError as err:
            raise ValueError(f"{settings.out}/{name}_*: cannot be written after {done} pictures: {err.strerror or err}") from err
        done += 1
    print(f"{done} of {len(pictures)} pictures: depth in mm as .npy and 16-bit PNG in {settings.out}")
    return problems


def truth_of(picture: Path, size: tuple[int, int]) -> np.ndarray | None:
    """(H, W) Z in mm from the picture's point cloud, NaN where not measured; None where it has none.

    raises BadFile where the cloud cannot be read or is not of the picture's `size`
    """
    cloud = find_cloud(picture)
    if cloud is None:
        return None
    depth_mm = read_xyz(cloud)[:, :, 2]
    if depth_mm.shape != size:
        raise BadFile(cloud, f"xyz is {depth_mm.shape}, {picture.name} is {size}; expected one size")
    return depth_mm


def output_names(pictures: list[Path]) -> list[str]:
    """A name for each picture's results: its stem, with its folder's name where two would be the same."""
    stems = [p.stem for p in pictures]
    names = [stem if stems.count(stem) == 1 else f"{p.absolute().parent.name}_{stem}_{p.suffix[1:]}" for p, stem in zip(pictures, stems)]
    twice = {n for n in names if names.count(n) > 1}
    if twice:
        raise ValueError(f"two pictures would be written as {sorted(twice)[0]}; predict them into two folders")
    return names


def write(out: Path, name: str, depth_mm: np.ndarray, bounds: Bounds) -> None:
    """NAME_depth.npy and the 16-bit PNG, whose unit stands in its name and in its text chunk `unit_mm`."""
    np.save(out / f"{name}_depth.npy", depth_mm)
    unit = 0.1 if bounds.far_mm < 6500 else 1.0
    text = PngImagePlugin.PngInfo()
    text.add_text("unit_mm", f"{unit:g}")
    levels = np.clip(np.rint(depth_mm / unit), 0, 65535).astype(np.uint16)
    Image.fromarray(levels).save(out / f"{name}_depth_{unit:g}mm.png", pnginfo=text)


def main(argv: list[str] | None = None) -> int:
    (settings,) = config.parse("Depth in mm for pictures, with a trained adapter.", PredictSettings, argv=argv)
    problems = predict_all(settings)
    if problems:
        raise ValueError("\n".join(problems))
    return 0
