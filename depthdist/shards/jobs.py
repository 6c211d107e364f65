"""The job of one shard: which captures, and the hash of all that its bytes depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from depthdist.captures.read_options import NO_OPTIONS
from depthdist.shards import SCHEMA, VERSION
from depthdist.shards.format import Encoding, Item, Job, as_json
from depthdist.shards.headers import Header
from depthdist.shards.settings import ShardSettings


def make_job(
    name: str,
    items: list[Item],
    headers: Mapping[str, Header],
    settings: ShardSettings,
    encoding: Encoding,
) -> Job:
    """Return the job of one shard; its hash covers name, size and time of each file."""
    root = Path(settings.raw)
    inputs: list[list[Any]] = []
    for item in items:
        if item.pair.unit_mm is not None:
            inputs.append([item.key, item.pair.unit_mm])
        status = headers[item.pair.stem].status
        for file, num_bytes, changed_ns in zip(item.pair.names, status[::2], status[1::2]):
            inputs.append([item.key, item.session, item.pair.stem, file, num_bytes, changed_ns])
    options = settings.read_options
    given = [options] if options != NO_OPTIONS else []  # hashes of older datasets stay
    content = [SCHEMA, VERSION, name, encoding, inputs, *given]
    return Job(
        name=name,
        items=items,
        hash=hashlib.sha256(as_json(content)).hexdigest(),
        root=root,
        folder=Path(settings.out) / ".build",
        encoding=encoding,
        options=options,
    )
