"""Measure what this project is fast at, beside what others would use for it.

    # loaders: webdataset, LitData, MosaicML, Energon, DALI, depthdist; and the raw files
    python tools/bench.py data
    # opening and shuffling datasets of up to ten million samples
    python tools/bench.py plan
    # sharding against reading and encoding alone
    python tools/bench.py shard
    # optimizer steps: transformers' Trainer on raw files, and ours
    python tools/bench.py step
    # what each way of storing a sample costs, and does to the loss
    python tools/bench.py codecs --run runs/mine
    # and what it costs the contrast of relief in images at the camera's size, and in mm
    python tools/bench.py relief --raw data/held_out --run runs/mine
    # the detail stage: seconds an image, and a training step
    python tools/bench.py detail
    # a million captures on 64 ranks: start, memory, exchanges, on made-up indexes
    python tools/bench.py scale

What is made to measure with is kept under data/bench. The speed of a shared machine varies: compare
only figures of one run, whose measurements take turns; CPU time varies less than the clock.
`WHAT --help` lists the settings.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

if not __package__:  # run as a script: see tools/__init__.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from depthdist.core.command import run_command
from depthdist.core.command_line import parse
from depthdist.core.settings import did_you_mean

BENCHMARKS = {
    "data": ("DataBenchSettings", "compare_loaders"),
    "plan": ("PlanSettings", "measure_planning"),
    "shard": ("ShardBenchSettings", "measure_sharding"),
    "step": ("StepSettings", "compare_steps"),
    "codecs": ("CodecSettings", "compare_codecs"),
    "relief": ("ReliefSettings", "measure_relief"),
    "detail": ("DetailBenchSettings", "measure_detail"),
    "scale": ("ScaleSettings", "measure_scale"),
}
"""The settings and the function in the module of that name."""


def main(argv: list[str]) -> int:
    """Run the benchmark that the first word names."""
    assert __doc__
    if argv and argv[0] in ("-h", "--help"):
        print(__doc__.strip())
        return 0
    if not argv:
        raise ValueError(f"WHAT is missing; expected {', '.join(BENCHMARKS)}")
    name = argv[0]
    if name not in BENCHMARKS:
        raise ValueError(
            f"{name!r} cannot be measured; expected"
            f" {', '.join(BENCHMARKS)}{did_you_mean(name, list(BENCHMARKS))}"
        )
    module = import_module(f"tools.benchmarks.{name}")
    settings_class, function = (getattr(module, attribute) for attribute in BENCHMARKS[name])
    assert module.__doc__
    (settings,) = parse(module.__doc__.splitlines()[0], settings_class, argv=argv[1:])
    return int(function(settings))


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
