"""Runs whose second stages are trained: 8 captures of 72 x 98 pixels, an adapter at 28 x 42."""

import signal
from unittest import mock

from helpers.captures import write_capture
from helpers.commands import command
from helpers.runs import deepspeed_json, make_shards

CAMERA = (72, 98)


def write_captures(folder, count, size=CAMERA):
    for i in range(count):
        write_capture(folder / f"images/{i}_color.png", folder / f"depth/{i}_rawDepth.npy", i, size)
    return folder


def make_place(folder):
    """Write raw/, shards/ of it with images at the camera's size, and a configuration."""
    write_captures(folder / "raw", 8)
    make_shards(folder, rgb_size="camera")
    deepspeed_json(folder / "batch2.json", train_batch_size=2)
    return folder


def words(place, run, *others, data="shards"):
    where = ["--data", place / data, "--run", run, "--deepspeed", place / "batch2.json"]
    settings = ["--model", "tiny", "--pictures", 0, "--lr", 1e-3, "--epochs", 1]
    return ["launch/train.py", *where, *settings, *others]


def train(place, run, *others, **how):
    return command(*words(place, run, *others, **how))


def stop_at(owner, name, count, which="SIGTERM"):
    """Patch a function so that the signal arrives while it is called for that time."""
    real, calls = getattr(owner, name), iter(range(1, 1000))

    def signalled(*arguments, **named):
        if next(calls) == count:
            signal.raise_signal(getattr(signal, which))
        return real(*arguments, **named)

    return mock.patch.object(owner, name, signalled)
