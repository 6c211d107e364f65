"""Write built-in captures of tires in a crate, in the real camera's layout, with the truth beside
them.

    python tools/make_tires.py OUT --pairs 58 --size 1200x1944 --seed 0 --sheet

    OUT/images/21-12-03-18-50-31_Zivid_acquisition_color.png         (H, W, 3) uint8
    OUT/images/21-12-03-18-50-31_Zivid_acquisition_grooves.png       (H, W) uint16: the groove seen there, 0 for none
    OUT/depth/21-12-03-18-50-31_Zivid_acquisition_rawDepth.npy       (H, W, 3) float32 X, Y, Z in mm, NaN holes
    OUT/truth/21-12-03-18-50-31_Zivid_acquisition_truth.npz          noise-free Z, tire ids, grooves; see depthdist/synthetic/tires
    OUT/tires.json                                                   the settings; a second run goes on where one stopped
    OUT/truth/sheet.png                                              with --sheet: pictures and depth side by side

A pair is complete when its .npy is there, which is written last; each file is written beside its
place and moved in.
"""

from __future__ import annotations

import io
import json
import os
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from depthdist.core.command import run_command
from depthdist.core.environment import exit_with_parent
from depthdist.core.settings import Size, as_dict, parse, positional
from depthdist.synthetic.tires import render as tires

SHEET_PAIRS, SHEET_WIDTH = 12, 480
RAMP = np.array(
    [(255, 255, 190), (254, 190, 90), (240, 80, 60), (140, 30, 110), (20, 10, 90)], float
)  # near to far


@dataclass(frozen=True)
class Captures(tires.Settings):
    """Captures"""

    size: Size = Size(*tires.Settings.size)
    "Height and width of the pictures, pixels; 1200x1944 is the real camera's."


@dataclass(frozen=True)
class Output:
    """Output"""

    out: Path = positional()
    "The folder to write to."
    workers: int = 0
    "Processes; 0: one for each core there is. The bytes do not depend on it."
    sheet: bool = False
    "Also write OUT/truth/sheet.png, pictures and depth side by side, to look at."

    def problems(self) -> list[str]:
        return [f"--workers is {self.workers}; it must be 0 or more"] if self.workers < 0 else []


def main(argv: list[str] | None = None) -> None:
    """Make what is missing in OUT and say what it came to."""
    settings, output = parse(
        "Write built-in captures of tires, with truth.", Captures, Output, argv=argv
    )
    claim(output.out, settings)
    start, stems = time.perf_counter(), [pair.stem for pair in tires.plan(settings)]
    missing = [
        i
        for i, stem in enumerate(stems)
        if not all(path.exists() for path in paths(output.out, stem).values())
    ]
    workers = min(output.workers or len(os.sched_getaffinity(0)), max(len(missing), 1))
    for _ in tqdm(
        each(settings, output.out, missing, workers),
        total=len(missing),
        unit="pair",
        disable=not missing,
    ):
        pass
    spent = time.perf_counter() - start
    if output.sheet:
        write(output.out / "truth" / "sheet.png", png(sheet(output.out, stems)))
    print(
        f"{summary(output.out, stems)}; {spent / max(len(missing), 1):.2f} s a pair, {len(missing)}"
        f" made: {output.out}"
    )


def claim(out: Path, settings: tires.Settings) -> None:
    """Note the settings in OUT/tires.json, or ValueError where OUT holds captures of other
    settings.
    """
    wanted, path = {"settings": as_dict(settings)}, out / "tires.json"
    if path.exists():
        try:
            found = dict(json.loads(path.read_text())["settings"])
        except (KeyError, TypeError, ValueError) as err:
            raise ValueError(
                f"{path}: not what this command writes ({err}); give a new or empty folder"
            ) from None
        other = [
            f"{k} {found.get(k)} there, {v} asked for"
            for k, v in wanted["settings"].items()
            if found.get(k) != v
        ]
        if other:
            raise ValueError(
                f"{path}: made with other settings ({'; '.join(other)}); give those, or another"
                " folder"
            )
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} holds other files and no tires.json; give a new or empty folder")
    for folder in ("images", "depth", "truth"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    write(path, json.dumps(wanted, indent=1).encode())


def paths(out: Path, stem: str) -> dict[str, Path]:
    """The files of one pair in the order they are written."""
    return {
        "rgb": out / "images" / f"{stem}_color.png",
        "grooves": out / "images" / f"{stem}_grooves.png",
        "truth": out / "truth" / f"{stem}_truth.npz",
        "xyz": out / "depth" / f"{stem}_rawDepth.npy",
    }


def each(settings: tires.Settings, out: Path, indices: list[int], workers: int):
    """Make the pairs `indices`, in `workers` processes; yields as each is done."""
    if workers == 1 or not indices:
        yield from (make(settings, out, i) for i in indices)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), exit_with_parent) as pool:
        jobs = [pool.submit(make, settings, out, i) for i in indices]
        try:
            yield from (job.result() for job in as_completed(jobs))
        finally:
            pool.shutdown(cancel_futures=True)


def make(settings: tires.Settings, out: Path, index: int) -> None:
    """Render one pair and write its files."""
    capture = tires.render(settings, index)
    place = paths(out, capture.stem)
    write(place["rgb"], png(capture.rgb))
    write(place["grooves"], png(capture.truth["groove"]))
    write(place["truth"], npz(capture.truth))
    write(place["xyz"], npy(capture.xyz))


def write(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that it is there whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    except OSError as err:
        raise ValueError(f"{path}: cannot be written: {err.strerror}") from err
    finally:
        beside.unlink(missing_ok=True)


def png(image: np.ndarray) -> bytes:
    """`image`, (H, W, 3) uint8 or (H, W) uint16, as PNG, packed quickly rather than small."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    """`array` as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(arrays: dict[str, np.ndarray]) -> bytes:
    """`arrays` as the bytes of an .npz file; unlike numpy's, the same at any hour."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            archive.writestr(
                zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)),
                npy(array),
                zipfile.ZIP_DEFLATED,
                1,
            )
    return buffer.getvalue()


def summary(out: Path, stems: list[str]) -> str:
    """How much of the set is valid and how its Z is spread, in one line."""
    count = pixels = total = squares = 0.0
    low, high = np.inf, -np.inf
    for stem in stems:
        z = np.load(paths(out, stem)["xyz"], mmap_mode="r")[..., 2]
        valid = z[np.isfinite(z)].astype(np.float64)
        pixels, count = pixels + z.size, count + valid.size
        total, squares = total + valid.sum(), squares + np.square(valid).sum()
        low, high = min(low, valid.min(initial=np.inf)), max(high, valid.max(initial=-np.inf))
    mean = total / count
    std = np.sqrt(max(squares / count - mean**2, 0.0))
    return (
        f"{len(stems)} pairs, {count / pixels:.1%} valid, z {low:.2f} .. {high:.2f} mm, mean"
        f" {mean:.0f}, std {std:.0f}"
    )


def sheet(out: Path, stems: list[str]) -> np.ndarray:
    """Up to SHEET_PAIRS pairs, spread over the set, as one picture (H, W, 3) uint8: colour and
    depth, two pairs a row.
    """
    chosen = [
        stems[i] for i in np.unique(np.linspace(0, len(stems) - 1, SHEET_PAIRS).round().astype(int))
    ]
    tiles = []
    for stem in chosen:
        rgb, z = (
            Image.open(paths(out, stem)["rgb"]),
            np.load(paths(out, stem)["xyz"], mmap_mode="r")[..., 2],
        )
        size = (SHEET_WIDTH, round(SHEET_WIDTH * z.shape[0] / z.shape[1]))
        depth = Image.fromarray(depth_colors(z)).resize(size, Image.Resampling.BOX)
        tiles.append(
            np.hstack([np.asarray(rgb.resize(size, Image.Resampling.BOX)), np.asarray(depth)])
        )
    if len(tiles) % 2:
        tiles.append(np.zeros_like(tiles[0]))
    return np.vstack([np.hstack(tiles[i : i + 2]) for i in range(0, len(tiles), 2)])


def depth_colors(z: np.ndarray) -> np.ndarray:
    """Depth (H, W) mm as colours (H, W, 3) uint8, each picture over its own range.

    Holes are black.
    """
    valid = np.isfinite(z)
    if not valid.any():
        return np.zeros((*z.shape, 3), np.uint8)
    low, high = np.percentile(z[valid], (1, 97))
    place = np.clip((np.where(valid, z, low) - low) / max(high - low, 1.0), 0, 1) * (len(RAMP) - 1)
    colors = np.stack(
        [np.interp(place, np.arange(len(RAMP)), RAMP[:, c]) for c in range(3)], axis=-1
    )
    return np.where(valid[..., None], colors, 0).astype(np.uint8)


if __name__ == "__main__":
    run_command(main)
