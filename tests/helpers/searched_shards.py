"""Readers under search of shards, ours and those of others: index, table, tars, records."""

import json
import os
from pathlib import Path

import numpy as np

from depthdist.data.dataset import DataSettings, open_dataset
from depthdist.geometry.camera import pixel_rays
from depthdist.shards.decoding import read_sample
from depthdist.shards.encoding import encode_label
from depthdist.shards.index import read_index
from depthdist.shards.previous_output import read_previous_output
from depthdist.shards.sample_arrays import empty_arrays
from depthdist.shards.settings import ShardSettings
from depthdist.shards.verify import verify_dataset
from helpers.external_tars import index, write
from helpers.scratch import Scratch, replace


def read_all(folder: Path) -> None:
    """Read every sample of a dataset, raise ValueError at the first that cannot be."""
    dataset = open_dataset(DataSettings(data=(str(folder),)))
    part = dataset.parts[0]
    for split in part.raw["splits"]:
        stats = dataset.stats(split)
        assert stats["min_mm"] <= stats["max_mm"], stats
        for number in range(dataset.count(split)):
            _, ref = dataset.find(split, number)
            fd = os.open(ref.shard, os.O_RDONLY)
            try:
                read_sample(fd, ref, part, empty_arrays(part))
            finally:
                os.close(fd)
            pixel_rays(dataset.meta(split, number), part.depth_size)
            dataset.groove_label(split, number)


def indexes(scratch: Scratch) -> list[bytes]:
    return [(scratch.shards / "index.json").read_bytes()]


def read_index_of(folder: Path, content: bytes) -> None:
    replace(folder / "index.json", content)
    found = verify_dataset(folder)
    assert all(isinstance(line, str) for line in found)
    read_all(folder)


def read_own_index(scratch: Scratch, content: bytes) -> None:
    folder = scratch.copy(scratch.shards, "index")
    read_index_of(folder, content)
    _append(folder)


def external_indexes(scratch: Scratch) -> list[bytes]:
    return [(scratch.tars / "index.json").read_bytes()]


def read_external_index(scratch: Scratch, content: bytes) -> None:
    read_index_of(scratch.copy(scratch.tars, "external"), content)


def _part(folder: Path, name: str) -> Path:
    return folder / json.loads((folder / "index.json").read_bytes())[name]["name"]


def _with_part(scratch: Scratch, name: str, content: bytes) -> Path:
    """Shards with another table or names, whose length the index knows."""
    folder = scratch.copy(scratch.shards, name)
    replace(_part(folder, name), content)
    raw = json.loads((folder / "index.json").read_bytes())
    raw[name]["bytes"] = len(content)
    replace(folder / "index.json", json.dumps(raw).encode())
    return folder


def tables(scratch: Scratch) -> list[bytes]:
    return [_part(scratch.shards, "table").read_bytes()]


def read_table(scratch: Scratch, content: bytes) -> None:
    folder = _with_part(scratch, "table", content)
    verify_dataset(folder)
    index = read_index(folder)
    index.samples("train").rows  # noqa: B018  (it reads)
    read_all(folder)


def names_files(scratch: Scratch) -> list[bytes]:
    return [_part(scratch.shards, "names").read_bytes()]


def read_names(scratch: Scratch, content: bytes) -> None:
    folder = _with_part(scratch, "names", content)
    verify_dataset(folder)
    read_all(folder)


def own_tars(scratch: Scratch) -> list[bytes]:
    return [next(scratch.shards.glob("train/*.tar")).read_bytes()]


def read_own_tar(scratch: Scratch, content: bytes) -> None:
    folder = scratch.copy(scratch.shards, "own_tar")
    replace(next(folder.glob("train/*.tar")), content)
    found = verify_dataset(folder)
    assert found or content in own_tars(scratch), "damage was not found"
    read_all(folder)


def external_tars(scratch: Scratch) -> list[bytes]:
    return [path.read_bytes() for path in sorted(scratch.tars.glob("*.tar"))]


def read_external_tar(scratch: Scratch, content: bytes) -> None:
    folder = scratch.fresh("external_tar")
    (folder / "a.tar").write_bytes(content)
    made = index(folder, split="none")
    assert made["splits"]["train"]["count"] > 0
    assert verify_dataset(folder) == []
    read_all(folder)


def metas(_: Scratch) -> list[bytes]:
    label = encode_label(np.zeros((30, 40), np.uint16))
    intrinsics = {
        "model": "pinhole",
        "fx": 50.0,
        "fy": 60.0,
        "cx": 21.0,
        "cy": 14.0,
        "pixel_centre": 0.5,
        "max_residual_px": 0.0,
    }
    meta = {"size": [30, 40], "intrinsics": intrinsics, "grooves": label}
    return [json.dumps(meta).encode()]


def read_meta(scratch: Scratch, content: bytes) -> None:
    from helpers.external_tars import plain

    folder = scratch.fresh("meta")
    write(folder, lambda i: {**plain(i), "json": content}, shards=(1,))
    index(folder, split="none")
    read_all(folder)


def records(scratch: Scratch) -> list[bytes]:
    return [next(scratch.shards.glob("train/*.json")).read_bytes()]


def read_commit_record(scratch: Scratch, content: bytes) -> None:
    folder = scratch.copy(scratch.shards, "record")
    replace(next(folder.glob("train/*.json")), content)
    verify_dataset(folder)
    _append(folder)


def _append(folder: Path) -> None:
    """Read what --append reads, with the settings that the shards were made with."""
    raw = json.loads((folder / "index.json").read_bytes())
    from depthdist.core.settings import from_dict

    names = {name: value for name, value in raw["settings"].items()}
    fields = ShardSettings.__dataclass_fields__
    given = {name: value for name, value in names.items() if name in fields}
    read_previous_output(
        from_dict(ShardSettings, {**given, "raw": "in", "out": str(folder), "append": True})
    )


def reject_lists(_: Scratch) -> list[bytes]:
    return [b'{"path": "a.png", "reason": "a picture without its point cloud"}\n' * 2]


def read_reject_list(scratch: Scratch, content: bytes) -> None:
    from depthdist.reports.capture_reading import find_captures

    folder = scratch.copy(scratch.shards, "rejects")
    replace(folder / "rejects.jsonl", content)
    for rejection in find_captures(folder).rejections:
        assert isinstance(rejection.path, str) and isinstance(rejection.reason, str)
    _append(folder)
