"""The process of one way to train: it takes an optimizer step whenever it is asked to.

Run by `tools/bench.py step`, from the repository's root:

    python -m tools.benchmarks.step_process ours '{"model": "data/bench/untrained-small",
        "shards": "data/mine", ...}'

`ordinary` is trainer_path.py, `ours` is depthdist_path.py. Both begin with the loss of the first
samples without dropout, which shows that they compute the same.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module

from tools.benchmarks.turns import Job, Turns

PATHS = {"ordinary": "trainer_path", "ours": "depthdist_path"}

if __name__ == "__main__":
    train = import_module(f"tools.benchmarks.{PATHS[sys.argv[1]]}").train
    train(Job(**json.loads(sys.argv[2])), Turns())
