"""Every reader of files that people bring along, with good files to damage: what hypothesis
(tests/search/test_damaged_files.py) and the fuzzer (tests/search/fuzz.py) try."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from depthdist.captures.layouts import CapturePair
from depthdist.captures.readers import open_rgb, read_label, read_size, read_xyz
from depthdist.core.command_line import parse
from depthdist.core.errors import BadFile
from depthdist.data.augmentation import AugmentSettings
from depthdist.data.dataset import DataSettings, open_dataset
from depthdist.geometry.camera import pixel_rays
from depthdist.losses.settings import LossSettings
from depthdist.models.adapter_record import read_record
from depthdist.models.settings import LoraSettings, ModelSettings
from depthdist.runs.run_folder import earlier_starts, open_run
from depthdist.runs.state_files import MANIFEST, TENSORS, VALUES
from depthdist.shards.decoding import read_sample
from depthdist.shards.encoding import encode_label
from depthdist.shards.index import read_index
from depthdist.shards.previous_output import read_previous_output
from depthdist.shards.sample_arrays import empty_arrays
from depthdist.shards.settings import ShardSettings
from depthdist.shards.splits import read_groups
from depthdist.shards.verify import verify_dataset
from depthdist.training.settings import TrainSettings
from helpers.captures import capture
from helpers.commands import command
from helpers.external_tars import index, npy, png, write
from helpers.runs import make_model, make_shards, train

PILLOW_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM", "GIF")


class Reader(NamedTuple):
    """A reader of one kind of file.

    seeds   good files, given a `Scratch`
    read    reads a damaged one; raises `error`, which commands show as one line, or is content
    is_json whether the file is JSON (a line of it, or all)
    slow    whether one call takes more than 50 ms
    """

    seeds: Callable[["Scratch"], list[bytes]]
    read: Callable[["Scratch", bytes], object]
    error: tuple[type[Exception], ...] | type[Exception] = (ValueError, OSError)
    is_json: bool = False
    slow: bool = False


@dataclass(frozen=True)
class Scratch:
    """A folder with good files of every kind, of which a reader damages its own."""

    folder: Path

    @property
    def shards(self) -> Path:
        """Shards of 9 captures."""
        return _once(self.folder / "data", lambda to: make_shards(to, 9)) / "shards"

    @property
    def tars(self) -> Path:
        """Tars of others, with an index."""
        return _once(self.folder / "tars", lambda to: index(write(to), split="none"))

    @property
    def run(self) -> Path:
        """A run of one epoch, with its evaluation."""
        model = _once(self.folder / "model", make_model)
        run = self.folder / "run"
        if not run.exists():
            assert train(self.shards, run, "--epochs", 1, "--model", model).code == 0
            assert command("launch/evaluate.py", "--run", run).code == 0
        return run

    def model(self) -> Any:
        """The run's network and its record."""
        return _load(self.run / "best")

    def fresh(self, name: str) -> Path:
        """An empty folder."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / name).mkdir()
        return self.folder / name

    def copy(self, source: Path, name: str) -> Path:
        """A copy of a folder whose files are links to those of `source`."""
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        return shutil.copytree(source, target, copy_function=os.link)


def _once(folder: Path, make: Callable[[Path], object]) -> Path:
    if not folder.exists():
        make(folder)
    return folder


@cache
def _load(folder: Path) -> Any:
    from depthdist.models.adapter import load_adapter

    return load_adapter(folder)


def replace(path: Path, content: bytes) -> None:
    """Replace a file, which may be a link to another one's content."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


# ------------------------------------------------------------------------------------------- raw


def point_maps(_: Scratch) -> list[bytes]:
    xyz = capture(1, (4, 5))[1]
    return [
        npy(xyz),
        npy(xyz.astype(">f8")),
        npy(np.asfortranarray(xyz)),
        npy(xyz[:, :, 2]),
        npy(xyz.astype(np.float16)),
        npy(np.array([{"a": 1}], object), allow_pickle=True),
    ]


def read_point_map(scratch: Scratch, content: bytes) -> None:
    path = scratch.folder / "map.npy"
    path.write_bytes(content)
    image = scratch.folder / "map.png"
    if not image.exists():
        Image.fromarray(capture(1, (4, 5))[0]).save(image)
    try:
        size = read_size(CapturePair("map", image, path))
    except BadFile:
        size = None
    try:
        from_bytes = read_xyz(path, content)
    except BadFile as err:
        from_bytes = None
        message = str(err)
        assert "\n" not in message, message
    try:
        xyz = read_xyz(path)
    except BadFile:
        assert from_bytes is None, "the file is refused, its bytes are not"
        return
    assert from_bytes is not None, "the bytes are refused, the file is not"
    assert np.array_equal(xyz, from_bytes, equal_nan=True)
    assert xyz.ndim == 3 and xyz.shape[2] == 3 and xyz.dtype == np.float32
    z = xyz[:, :, 2]
    assert ((z > 0) & (z < np.inf)).any(), "no valid pixel"
    assert size in (None, xyz.shape[:2])


def images(_: Scratch) -> list[bytes]:
    from io import BytesIO

    rgb = capture(1, (6, 5))[0]
    found = []
    for kind in PILLOW_FORMATS:
        file = BytesIO()
        Image.fromarray(rgb).save(file, kind)
        found.append(file.getvalue())
    exif = Image.Exif()
    exif[0x0112] = 6
    for how in ({"format": "JPEG", "exif": exif}, {"format": "TIFF", "compression": "tiff_lzw"}):
        file = BytesIO()
        Image.fromarray(rgb).save(file, **how)
        found.append(file.getvalue())
    found.append(png(rgb[:, :, 0].astype(np.uint16) << 8))
    return found


def read_image(_: Scratch, content: bytes) -> None:
    for upright in (False, True):
        try:
            image = open_rgb("a.png", upright, content)
        except BadFile as err:
            assert "\n" not in str(err)
        else:
            assert image.mode == "RGB"
            assert np.array(image).shape == (image.height, image.width, 3)


def labels(_: Scratch) -> list[bytes]:
    label = np.zeros((6, 5), np.uint16)
    label[2:4] = 300
    return [png(label), png(label.astype(np.uint8)), png(capture(1, (6, 5))[0])]


def read_one_label(_: Scratch, content: bytes) -> None:
    label = read_label(Path("a_grooves.png"), (6, 5), content)
    assert label.shape == (6, 5) and label.dtype == np.uint16


def groups_files(_: Scratch) -> list[bytes]:
    return [b"stem,group\na,train\nb,crate 1\n# why\nc,skip\n", b"a\tx\nb\ty\nc\tx\n"]


def read_groups_file(scratch: Scratch, content: bytes) -> None:
    path = scratch.folder / "groups.csv"
    path.write_bytes(content)
    groups = read_groups(path, ["a", "b", "c"])
    assert groups.keys() == {"a", "b", "c"} and all(groups.values())


# ---------------------------------------------------------------------------------------- shards


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


# -------------------------------------------------------------------------------------- settings


def configs(scratch: Scratch) -> list[bytes]:
    data = [str(scratch.shards), str(scratch.tars)]
    words = {"data": data, "lr": 1e-4, "epochs": 3, "recipe": "near", "run": "r", "flip": 0.5}
    return [
        json.dumps({**words, "size": "28x42", "weights": [1.0, 0.5]}).encode(),
        json.dumps({"settings": words}).encode(),
    ]


def read_config(scratch: Scratch, content: bytes) -> None:
    path = scratch.folder / "config.json"
    path.write_bytes(content)
    groups = (DataSettings, AugmentSettings, ModelSettings, LoraSettings, LossSettings)
    parse(
        "x",
        *groups,
        TrainSettings,
        argv=["--config", str(path)],
        presets=("recipe", {"near": {"lr": 3e-4}, "document": {}}),
    )


# --------------------------------------------------------------------------------- adapters, runs


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


READERS = {
    "point map": Reader(point_maps, read_point_map, BadFile),
    "image": Reader(images, read_image, BadFile),
    "groove label": Reader(labels, read_one_label, BadFile),
    "groups": Reader(groups_files, read_groups_file),
    "index": Reader(indexes, read_own_index, is_json=True, slow=True),
    "external index": Reader(external_indexes, read_external_index, is_json=True, slow=True),
    "table": Reader(tables, read_table),
    "names": Reader(names_files, read_names),
    "own tar": Reader(own_tars, read_own_tar),
    "external tar": Reader(external_tars, read_external_tar, slow=True),
    "meta": Reader(metas, read_meta, is_json=True, slow=True),
    "commit record": Reader(records, read_commit_record, is_json=True),
    "rejects": Reader(reject_lists, read_reject_list, is_json=True),
    "config": Reader(configs, read_config, is_json=True),
    "adapter record": Reader(adapter_records, read_adapter_record, is_json=True),
    "adapter weights": Reader(adapter_weights, read_adapter_weights, slow=True),
    "adapter config": Reader(adapter_configs, read_adapter_config, is_json=True, slow=True),
    "run record": Reader(run_records, read_run_record, is_json=True),
    "evaluation": Reader(evaluations, read_evaluation, is_json=True),
    "log": Reader(run_logs, read_run_log, is_json=True),
    "done list": Reader(done_logs, read_done, is_json=True),
    "state manifest": Reader(manifests, read_manifest, is_json=True),
    "state values": Reader(state_values, read_state_values, is_json=True),
    "state tensors": Reader(state_tensors, read_state_tensors),
}
