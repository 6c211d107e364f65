"""Write synthetic scenes to pretrain on: rooms with boxes, ellipsoids, cylinders and tires.

    python tools/make_rooms.py OUT --scenes 3000 --size 336x546 --seed 0

    OUT/room-0-000017.png      (H, W, 3) uint8
    OUT/room-0-000017.npy      (H, W, 3) float32 X, Y, Z in mm: exact depth
    OUT/rooms.json             the settings; a second run continues where one stopped

A scene is complete when its .npy is there, which is written last. See depthdist/synthetic/rooms.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from depthdist.core.command import run_command
from depthdist.core.command_line import parse
from depthdist.core.files import write_atomic
from depthdist.core.settings import as_dict
from depthdist.synthetic.capture_files import (
    npy_bytes,
    png_bytes,
    read_folder_settings,
    render_all,
)
from depthdist.synthetic.rooms.settings import Settings, scene_stem
from depthdist.synthetic.settings import OutputSettings


def main(argv: list[str] | None = None) -> None:
    """Render what is missing in OUT."""
    settings, output = parse(
        "Write synthetic scenes to pretrain on.", Settings, OutputSettings, argv=argv
    )
    prepare_folder(output.out, settings)
    missing = [
        i
        for i in range(settings.scenes)
        if not (output.out / f"{scene_stem(settings, i)}.npy").exists()
    ]
    render_all(partial(render_files, settings, output.out), missing, output.workers, unit="scene")
    print(f"{settings.scenes} scenes, {len(missing)} made: {output.out}")


def prepare_folder(out: Path, settings: Settings) -> None:
    """Make OUT and note the settings in OUT/rooms.json; a larger number of scenes extends a set.

    Raise ValueError where OUT holds scenes of other settings, or something else.
    """
    record = out / "rooms.json"
    wanted = as_dict(settings)
    found = read_folder_settings(record)
    if found is not None and {**found, "scenes": 0} != {**wanted, "scenes": 0}:
        raise ValueError(
            f"{record}: made with other settings ({found}); give those, or another folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(record, json.dumps(wanted, indent=1).encode())


def render_files(settings: Settings, out: Path, index: int) -> None:
    """Render scene number `index` and write its files."""
    from depthdist.synthetic.rooms.render import render  # numba: not needed for --help

    scene = render(settings, index)
    write_atomic(out / f"{scene.stem}.png", png_bytes(scene.rgb))
    write_atomic(out / f"{scene.stem}.npy", npy_bytes(scene.xyz))


if __name__ == "__main__":
    run_command(main)
