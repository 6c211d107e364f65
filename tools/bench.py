"""Measure what this project is fast at, beside what others would use for it.

    # loaders: webdataset, LitData, MosaicML, Energon, DALI, depthdist; and the raw path
    python tools/bench.py data
    python tools/bench.py plan  # opening and shuffling datasets of up to ten million samples
    python tools/bench.py shard                    # sharding against reading and encoding alone
    python tools/bench.py step  # optimizer steps: transformers' Trainer on raw files, and ours
    # what each way of storing a sample costs, and does to the loss
    python tools/bench.py codecs --run runs/mine

What is made to measure with is kept under data/bench. A machine that others use drifts: only
figures of one run compare, where those that are compared were taken in turn, and CPU time is
steadier than the clock. `WHAT --help` lists the settings.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tools.benchmarks

from depthdist.core.command import run_command
from depthdist.core.settings import did_you_mean, parse

WHAT = {
    "data": "DataBenchSettings",
    "plan": "PlanSettings",
    "shard": "ShardBenchSettings",
    "step": "StepSettings",
    "codecs": "CodecSettings",
}


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in WHAT:
        if argv and argv[0] in ("-h", "--help"):
            print(__doc__.strip())
            return 0
        found, near = (
            (f"{argv[0]!r} cannot be measured", did_you_mean(argv[0], list(WHAT)))
            if argv
            else ("WHAT is missing", "")
        )
        raise ValueError(f"{found}; expected {', '.join(WHAT)}{near}")
    module = import_module(f"tools.benchmarks.{argv[0]}")
    (settings,) = parse(
        module.__doc__.splitlines()[0], getattr(module, WHAT[argv[0]]), argv=argv[1:]
    )
    return getattr(module, argv[0])(settings)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
