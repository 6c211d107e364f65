"""Write built-in scenes to pretrain on: rooms with boxes, balls, cylinders and tires, any lens and
lamp; exact depth.

    python tools/make_rooms.py OUT --scenes 3000 --size 336x546 --seed 0

    OUT/room-0-000017.png      (H, W, 3) uint8
    OUT/room-0-000017.npy      (H, W, 3) float32 X, Y, Z in mm
    OUT/rooms.json             the settings; a second run goes on where one stopped

A pair is complete when its .npy is there, which is written last. See depthdist/synthetic/rooms.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from make_tires import npy, png, write
from tqdm import tqdm

from depthdist.core.command import run_command
from depthdist.core.environment import exit_with_parent
from depthdist.core.settings import Size, as_dict, parse, positional
from depthdist.synthetic.rooms import render as rooms


@dataclass(frozen=True)
class Scenes(rooms.Settings):
    """Scenes"""

    size: Size = Size(*rooms.Settings.size)
    "Height and width of the pictures, pixels."


@dataclass(frozen=True)
class Output:
    """Output"""

    out: Path = positional()
    "The folder to write to."
    workers: int = 0
    "Processes; 0: one for each core there is. The bytes do not depend on it."

    def problems(self) -> list[str]:
        return [f"--workers is {self.workers}; it must be 0 or more"] if self.workers < 0 else []


def main(argv: list[str] | None = None) -> None:
    """Make what is missing in OUT."""
    settings, output = parse("Write built-in scenes to pretrain on.", Scenes, Output, argv=argv)
    claim(output.out, settings)
    missing = [
        i
        for i in range(settings.scenes)
        if not (output.out / f"{rooms.stem(settings, i)}.npy").exists()
    ]
    for _ in tqdm(
        each(settings, output.out, missing, output.workers or len(os.sched_getaffinity(0))),
        total=len(missing),
        unit="scene",
        disable=not missing,
    ):
        pass
    print(f"{settings.scenes} scenes, {len(missing)} made: {output.out}")


def claim(out: Path, settings: rooms.Settings) -> None:
    """Note the settings in OUT/rooms.json, or ValueError where OUT holds something else.

    More scenes of the same kind are welcome.
    """
    wanted, path = as_dict(settings), out / "rooms.json"
    if path.exists():
        try:
            found = dict(json.loads(path.read_text()))
        except (TypeError, ValueError) as err:
            raise ValueError(
                f"{path}: not what this command writes ({err}); give a new or empty folder"
            ) from None
        if {**found, "scenes": 0} != {**wanted, "scenes": 0}:
            raise ValueError(
                f"{path}: made with other settings ({found}); give those, or another folder"
            )
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} holds other files and no rooms.json; give a new or empty folder")
    out.mkdir(parents=True, exist_ok=True)
    write(path, json.dumps(wanted, indent=1).encode())


def each(settings: rooms.Settings, out: Path, indices: list[int], workers: int) -> Iterator[None]:
    """Make the scenes `indices`, in `workers` processes; yields as each is done."""
    if workers == 1 or not indices:
        yield from (make(settings, out, i) for i in indices)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), exit_with_parent) as pool:
        yield from pool.map(partial(make, settings, out), indices, chunksize=4)


def make(settings: rooms.Settings, out: Path, index: int) -> None:
    """Render one scene and write its files."""
    scene = rooms.render(settings, index)
    write(out / f"{scene.stem}.png", png(scene.rgb))
    write(out / f"{scene.stem}.npy", npy(scene.xyz))


if __name__ == "__main__":
    run_command(main)
