"""An image is the same in other shards, and whoever stands in two splits is named."""

import shutil

import numpy as np
import pytest
from helpers.captures import make, stem_of, write_raw
from helpers.commands import command
from helpers.external_tars import index, plain, write

from depthdist.core.settings import Size
from depthdist.data.dataset import DataSettings, open_dataset
from depthdist.shards.image_hashes import describe_shared_of, image_hashes, shared_images
from depthdist.shards.index import read_index

pytestmark = pytest.mark.usefixtures("in_this_process")


def hashes(out):
    """Of all images of the dataset, in the order of their stems."""
    made = read_index(out)
    stems = [ref.stem for split in made.raw["splits"] for ref in made.samples(split)]
    rows = np.concatenate([image_hashes(made, split) for split in made.raw["splits"]])
    return rows[np.argsort(stems)]


def groups_file(path, names):
    """Captures 0, 1, ... are of these groups."""
    path.write_text("".join(f"{stem_of(i)},{name}\n" for i, name in enumerate(names)))
    return str(path)


def copy_file(raw, kind, source, target):
    """Give one capture the picture or the point map of another."""
    names = {"picture": "images/{}_color.png", "point map": "depth/{}_rawDepth.npy"}
    name = str(raw / names[kind])
    shutil.copy(name.format(stem_of(source)), name.format(stem_of(target)))


@pytest.mark.parametrize(
    "other", [{"seed": 7}, {"split": "none"}, {"size": Size(14, 28)}, {"rgb": "png", "shard_mb": 1}]
)
def test_an_image_is_recognised_in_shards_that_were_made_in_another_way(tmp_path, other):
    raw = write_raw(tmp_path / "raw", 5)
    make(raw, tmp_path / "a")
    make(raw, tmp_path / "b", **other)
    a, b = hashes(tmp_path / "a"), hashes(tmp_path / "b")
    assert np.array_equal([shared_images(a, b[i : i + 1]) for i in range(5)], np.eye(5, dtype=bool))


def test_without_meta_json_bytes_in_the_tar_tell_images_apart(tmp_path):
    raw = write_raw(tmp_path / "raw", 5)
    make(raw, tmp_path / "a")
    make(raw, tmp_path / "b", seed=7)
    a, b = hashes(tmp_path / "a"), hashes(tmp_path / "b")
    a[:, :2] = 0
    assert np.array_equal([shared_images(a, b[i : i + 1]) for i in range(5)], np.eye(5, dtype=bool))


@pytest.mark.parametrize("kind", ["picture", "point map"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_a_file_that_stands_in_two_splits_is_named(tmp_path, kind, split):
    raw, out = write_raw(tmp_path / "raw", 6), tmp_path / "out"
    copy_file(raw, kind, 1, 4)
    names = ["train", "train", "train", "train", split, {"val": "test", "test": "val"}[split]]
    make(raw, out, split="file", groups=groups_file(tmp_path / "g", names))
    (line,) = describe_shared_of(read_index(out))
    assert line.startswith(
        f"1 of 1 images of {split} are in train as well (the same picture or point map):"
        f" {stem_of(4)} = {stem_of(1)}: "
    )


def test_splits_without_a_common_file_have_no_warning(tmp_path):
    raw, out = write_raw(tmp_path / "raw", 6), tmp_path / "out"
    copy_file(raw, "picture", 0, 1)  # both are in train
    names = ["train", "train", "train", "val", "test", "test"]
    make(raw, out, split="file", groups=groups_file(tmp_path / "g", names))
    assert describe_shared_of(read_index(out)) == []


def test_sharding_and_verifying_print_a_warning_for_images_in_two_splits(tmp_path):
    raw, out = write_raw(tmp_path / "raw", 8), tmp_path / "out"
    for target in (5, 6, 7):
        copy_file(raw, "picture", 0, target)
    names = ["train"] * 5 + ["val", "test", "test"]
    words = ["--split", "file", "--groups", groups_file(tmp_path / "g", names)]
    made = command("tools/shard.py", raw, out, "--size", "28x42", "--workers", 1, *words)
    seen = [line for line in made.out.splitlines() if " as well (the same picture" in line]
    assert [line.split("(")[0] for line in seen] == [
        "WARNING   1 of 1 images of val are in train as well ",
        "WARNING   2 of 2 images of test are in train as well ",
        "WARNING   2 of 2 images of test are in val as well ",
    ]
    verified = command("tools/shard.py", "--verify", out).out.splitlines()
    assert [line for line in verified if line.startswith("WARNING")] == seen


def test_a_split_of_another_dataset_may_hold_an_image_too(tmp_path):
    """As with --data A,B."""
    from depthdist.runs.seen_images import hashes_of

    raw = write_raw(tmp_path / "raw", 5)
    make(raw, tmp_path / "a", seed=1)
    make(raw, tmp_path / "b", seed=2)
    data = (str(tmp_path / "a"), str(tmp_path / "b"))
    mixed = open_dataset(DataSettings(data=data))
    val = {ref.stem for ref in read_index(tmp_path / "a").samples("val")}
    shared = shared_images(hashes_of(mixed, "val"), hashes_of(mixed, "train"))
    assert val != {ref.stem for ref in read_index(tmp_path / "b").samples("val")}
    assert shared.tolist() == [True, True]


def test_a_damaged_meta_json_leaves_the_bytes_to_tell(tmp_path):
    raw, out = write_raw(tmp_path / "raw", 4), tmp_path / "out"
    make(raw, out, split="none")
    shard = read_index(out).shard_path(0)
    shard.write_bytes(shard.read_bytes().replace(b'"sha256"', b'"sha25?"'))
    found = image_hashes(read_index(out), "train")
    assert (found[:, :2] == 0).all() and (found[:, 2:] != 0).all()


def test_tars_of_others_are_told_apart_by_their_bytes(tmp_path):
    for name, samples in (("train", (0, 1, 2)), ("test", (3, 1))):
        write(tmp_path / name, lambda i, samples=samples: plain(samples[i]), (len(samples),))
    index(tmp_path)
    (line,) = describe_shared_of(read_index(tmp_path))
    assert line.startswith("1 of 2 images of test are in train as well ")
    assert "000001 = 000001: " in line
