"""The list of finished images in the folder of results, done.jsonl.

Its first line holds the settings and a hash of settings and weights; then each finished image has a
line with the names of its files.
"""

from __future__ import annotations

import hashlib
import json
import os
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from torch import nn

from depthdist.captures.found_files import RESULTS_LIST
from depthdist.core.files import parse_json
from depthdist.core.settings import as_dict, to_json_value
from depthdist.inference.image_sources import ImageSource
from depthdist.inference.settings import PredictSettings
from depthdist.models.adapter_record import AdapterRecord
from depthdist.models.completion import Completion
from depthdist.models.depth_model import DepthModel
from depthdist.models.refiner import Refiner

PLAIN = Refiner()
# a folder may have been begun before there were these: without them it counts as the same
NEWER = ("unit", "fill", "denoise", "refuse")
NOT_IN_RESULTS = ("run", "inputs", "out", "batch", "again")  # settings that results do not show


def read_done_log(
    settings: PredictSettings,
    model: DepthModel,
    record: AdapterRecord,
    refiner: Refiner = PLAIN,
    completion: Completion | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the last line of each finished image in --out by its name; start the list if new.

    ValueError if the results there come from other settings or weights.
    """
    path = settings.out / RESULTS_LIST
    values = {n: v for n, v in as_dict(settings).items() if n not in NOT_IN_RESULTS}
    for name in NEWER:
        if not values[name]:
            del values[name]
    networks: list[nn.Module] = [model]
    if refiner.detail:
        networks.append(refiner.detail.network)
    if completion and (settings.fill or settings.needs_sigma):
        networks.append(completion.network)
    made_with = hash_inputs(values, networks, record)
    lines = path.read_bytes().splitlines() if path.exists() and not settings.again else []
    if not lines:
        head = {"made_with": made_with, "run": settings.run, **values}
        path.write_text(json.dumps(head, default=str) + "\n", encoding="utf-8")
        return {}
    try:
        first, *rest = (parse_json(line) for line in lines if line.endswith(b"}"))
        done = {line["name"]: line for line in map(_checked, rest)}
        made_with_before = first["made_with"]
        run_before = first["run"]
    except (KeyError, TypeError, ValueError) as err:
        raise ValueError(
            f"{path}: not a list of finished images ({err}); give another folder, or --again"
        ) from None
    if made_with_before != made_with:
        raise ValueError(
            f"--out {settings.out}: holds predictions of {run_before} with other settings; give"
            " another folder, or --again to replace them"
        )
    if not lines[-1].endswith(b"}"):  # cut off: that image is not finished
        path.write_bytes(b"\n".join(lines[:-1]) + b"\n")
    return done


def _checked(line: dict[str, Any]) -> dict[str, Any]:
    """Return the line of an image, raise an error if it is none that `append_done` writes."""
    words = [line["name"], line["version"], line["origin"], *line["files"]]
    if not isinstance(line["files"], list) or not all(isinstance(word, str) for word in words):
        raise TypeError("the line of an image holds something else than names")
    return line


def hash_inputs(values: dict[str, Any], networks: list[nn.Module], record: AdapterRecord) -> str:
    """Return 16 hex digits that identify settings, adapter record and weights."""
    weights = hashlib.sha256()
    for name, tensor in chain.from_iterable(sorted(one.state_dict().items()) for one in networks):
        weights.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    content = [values, to_json_value(record), weights.hexdigest()]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[
        :16
    ]


def is_done(out: Path, source: ImageSource, line: dict[str, Any] | None) -> bool:
    """Return whether `line` of the list is of the image as it is now and its files still exist."""
    return (
        line is not None
        and line["version"] == source.version
        and all(os.path.exists(out / file) for file in line["files"])  # False for odd names too
    )


def append_done(log: TextIO, source: ImageSource, files: list[str]) -> None:
    """Write the line of a finished image and flush it."""
    line = {
        "name": source.name,
        "version": source.version,
        "origin": source.origin,
        "files": files,
    }
    log.write(json.dumps(line) + "\n")
    log.flush()
