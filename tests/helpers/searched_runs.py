"""Readers under search of what a run keeps: adapters, records, logs, states."""

import json
from pathlib import Path

import numpy as np

from depthdist.models.adapter_record import read_record
from depthdist.runs.run_folder import earlier_starts, open_run
from depthdist.runs.state_files import MANIFEST, TENSORS, VALUES
from helpers.scratch import Scratch, replace


def adapter_records(scratch: Scratch) -> list[bytes]:
    return [(scratch.run / "best/depthdist.json").read_bytes()]


def read_adapter_record(scratch: Scratch, content: bytes) -> None:
    folder = scratch.copy(scratch.run / "best", "adapter_record")
    replace(folder / "depthdist.json", content)
    record = read_record(folder)
    assert 0 < record.near_mm < record.far_mm
    assert min(record.size) > 0 and max(record.size) < 1e5, record.size
    assert np.isfinite([*record.mean, *record.std]).all()


def adapter_weights(scratch: Scratch) -> list[bytes]:
    return [(scratch.run / "best/adapter_model.safetensors").read_bytes()]


def read_adapter_weights(scratch: Scratch, content: bytes) -> None:
    _load_adapter(scratch, "adapter_model.safetensors", content)


def adapter_configs(scratch: Scratch) -> list[bytes]:
    return [(scratch.run / "best/adapter_config.json").read_bytes()]


def read_adapter_config(scratch: Scratch, content: bytes) -> None:
    _load_adapter(scratch, "adapter_config.json", content)


def _load_adapter(scratch: Scratch, name: str, content: bytes) -> None:
    from depthdist.models.adapter import load_adapter

    folder = scratch.copy(scratch.run / "best", "adapter")
    replace(folder / name, content)
    load_adapter(folder)


def run_records(scratch: Scratch) -> list[bytes]:
    return [(scratch.run / "run.json").read_bytes()]


def read_run_record(scratch: Scratch, content: bytes) -> None:
    from depthdist.inference.export import describe_data
    from depthdist.training.run_facts import is_scored

    folder = scratch.copy(scratch.run, "run_record")
    replace(folder / "run.json", content)
    earlier_starts(folder)
    run = open_run(folder)
    run.mean_mm  # noqa: B018  (it reads)
    is_scored(folder, 1)
    describe_data(run.record)


def evaluations(scratch: Scratch) -> list[bytes]:
    return [(scratch.run / "evaluation.json").read_bytes()]


def read_evaluation(scratch: Scratch, content: bytes) -> None:
    from depthdist.inference.export import read_own_evaluation
    from depthdist.reports.evaluated_run import read_evaluated_run

    folder = scratch.copy(scratch.run, "evaluation")
    replace(folder / "evaluation.json", content)
    read_own_evaluation(folder, read_record(folder / "best"))
    read_evaluated_run(folder, "x")


def run_logs(scratch: Scratch) -> list[bytes]:
    return [(scratch.run / "metrics.jsonl").read_bytes()[-3000:]]


def read_run_log(scratch: Scratch, content: bytes) -> None:
    from depthdist.reports.evaluated_run import read_evaluated_run

    folder = scratch.copy(scratch.run, "log")
    replace(folder / "metrics.jsonl", content)
    read_evaluated_run(folder, "x")


def done_logs(scratch: Scratch) -> list[bytes]:
    folder = scratch.fresh("done")
    read_done(scratch, None)
    head = (folder / "done.jsonl").read_bytes()
    line = {"name": "a", "version": "1-2", "origin": "a.png", "files": ["a_depth.npy"]}
    return [head + json.dumps(line).encode() + b"\n"]


def read_done(scratch: Scratch, content: bytes | None) -> None:
    from depthdist.inference.done_log import is_done, read_done_log
    from depthdist.inference.image_sources import ImageSource
    from depthdist.inference.settings import PredictSettings

    folder = scratch.fresh("done")
    if content is not None:
        (folder / "done.jsonl").write_bytes(content)
    done = read_done_log(PredictSettings(run="r", inputs=["a"], out=folder), *scratch.model())
    for name, line in done.items():
        assert isinstance(name, str)
        is_done(folder, ImageSource(name, "a.png", "1-2", lambda: None), line)


def states(scratch: Scratch) -> Path:
    return next((scratch.run / "last").glob("step-*"))


def manifests(scratch: Scratch) -> list[bytes]:
    return [(states(scratch) / MANIFEST).read_bytes()]


def read_manifest(scratch: Scratch, content: bytes) -> None:
    _load_state(scratch, MANIFEST, content)


def state_values(scratch: Scratch) -> list[bytes]:
    return [(states(scratch) / VALUES).read_bytes()]


def read_state_values(scratch: Scratch, content: bytes) -> None:
    _load_state(scratch, VALUES, content)


def state_tensors(scratch: Scratch) -> list[bytes]:
    return [(states(scratch) / TENSORS).read_bytes()]


def read_state_tensors(scratch: Scratch, content: bytes) -> None:
    _load_state(scratch, TENSORS, content)


def _load_state(scratch: Scratch, name: str, content: bytes) -> None:
    """Read a state with another file, which its manifest vouches for."""
    import hashlib

    from depthdist.runs.training_state import load_state

    folder = scratch.copy(scratch.run / "last", "last")
    (state, *_) = folder.glob("step-*")
    replace(state / name, content)
    if name != MANIFEST:
        manifest = json.loads((state / MANIFEST).read_bytes())
        sha256 = hashlib.sha256(content).hexdigest()
        manifest["files"][name] = {"bytes": len(content), "sha256": sha256}
        replace(state / MANIFEST, json.dumps(manifest).encode())
    found = load_state(folder, lambda line: None)
    assert found is not None and isinstance(found[1], dict)
