"""What a run has seen is on record, with what its base had seen."""

import json

import numpy as np
import pytest
from helpers.captures import make, write_raw

from depthdist.data.dataset import DataSettings, open_dataset
from depthdist.runs.run_folder import Run
from depthdist.runs.seen_images import (
    SeenImages,
    hashes_of,
    images_of,
    read_seen,
    seen_file,
    write_seen,
)

pytestmark = pytest.mark.usefixtures("in_this_process")


def images(*numbers):
    return np.array([[n, n + 100, n + 200, n + 300] for n in numbers], np.uint64).reshape(-1, 4)


def run_in(folder, dataset=None, **derived):
    """A run's folder with its run.json."""
    folder.mkdir()
    facts = {"data": [dataset.parts[0].place], "data_sha256": dataset.sha256} if dataset else {}
    record = {"settings": {}, "derived": {**facts, **derived}, "deepspeed_config": {}}
    (folder / "run.json").write_text(json.dumps(record))
    return Run(folder, record)


def dataset_in(folder, **settings):
    make(write_raw(folder / "raw", 5), folder / "shards", **settings)
    return open_dataset(DataSettings(data=(str(folder / "shards"),)))


def test_what_is_written_is_read_once_for_each_image(tmp_path):
    data, run = dataset_in(tmp_path), run_in(tmp_path / "run")
    write_seen(run.folder, SeenImages(images(1, 2, 1), images(3)), base=tmp_path / "none")
    seen = read_seen(run, data)
    assert (seen.train[:, 0].tolist(), seen.val[:, 0].tolist()) == ([1, 2], [3])


@pytest.mark.parametrize("base", ["run", "run/best", "export/model"])
def test_a_run_that_goes_on_from_another_has_seen_its_images_too(tmp_path, base):
    data = dataset_in(tmp_path)
    first, second = run_in(tmp_path / "run"), run_in(tmp_path / "second")
    for folder in ("run/best", "export/model"):
        (tmp_path / folder).mkdir(parents=True)
    write_seen(first.folder, SeenImages(images(1), images(2)), base=tmp_path / "none")
    (tmp_path / "export/model/seen.npy").write_bytes((first.folder / "seen.npy").read_bytes())
    write_seen(second.folder, SeenImages(images(3), images(4)), base=tmp_path / base)
    seen = read_seen(second, data)
    assert (seen.train[:, 0].tolist(), seen.val[:, 0].tolist()) == ([1, 3], [2, 4])


def test_a_record_beside_a_model_that_is_of_no_run_is_not_its_own(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "seen.npy").write_bytes(b"")
    assert seen_file(tmp_path / "model") is None


@pytest.mark.parametrize("content", [None, b"", b"\x93NUMPY damaged"])
def test_without_a_record_unchanged_data_tell(tmp_path, content):
    data = dataset_in(tmp_path)
    run = run_in(tmp_path / "run", data)
    if content is not None:
        (run.folder / "seen.npy").write_bytes(content)
    for found, expected in zip(read_seen(run, data), images_of(data)):
        assert np.array_equal(found, expected)


def test_without_a_record_the_same_data_tell_at_another_place(tmp_path):
    data = dataset_in(tmp_path)
    run = run_in(tmp_path / "run", data, data=["/nowhere"])
    assert np.array_equal(read_seen(run, data).train, hashes_of(data, "train"))


@pytest.mark.parametrize("derived", [{"data": ["/nowhere"]}, {"data_sha256": "0" * 64}, {}])
def test_without_a_record_changed_data_tell_nothing(tmp_path, derived):
    data, scored = dataset_in(tmp_path / "a"), dataset_in(tmp_path / "b", seed=7)
    run = run_in(tmp_path / "run", data, **derived)
    assert (read_seen(run, scored) is None) == bool(derived)
