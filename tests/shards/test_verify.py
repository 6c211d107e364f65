"""Damage in a dataset is named, by --verify and by reading."""

import json
import pickle
import re
from io import BytesIO

import numpy as np
import pytest
from helpers.captures import make
from helpers.shards import members

from depthdist.shards.decoding import decode_sample
from depthdist.shards.index import read_index
from depthdist.shards.verify import verify_dataset

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.mark.parametrize("member", ["depth.npy", "mask.npy", "meta.json", "rgb.jpg"])
def test_verify_names_a_flipped_byte(raw, tmp_path, member):
    make(raw, tmp_path, split="none")
    ref = read_index(tmp_path).samples("train")[2]
    content = bytearray(ref.shard.read_bytes())
    content[ref.members[member][0] + ref.members[member][1] // 2] ^= 1
    ref.shard.write_bytes(content)
    problems = verify_dataset(tmp_path)
    assert len(problems) == 2
    assert "sha256" in problems[0]
    assert f"train/shard-000000.tar: 00000002: {member}: crc32" in problems[1]


def damage_header(path):
    content = bytearray(path.read_bytes())
    content[read_index(path.parents[1]).samples("train")[1].members["mask.npy"][0] - 500] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda p: p.unlink(), "the shard is missing"),
        (lambda p: p.write_bytes(p.read_bytes()[:-4000]), "bytes; expected"),
        (
            lambda p: p.write_bytes(p.read_bytes()[:15000]),
            "rgb.jpg: .* bytes; expected|members; expected",
        ),
        (damage_header, "the tar shows|not a tar"),
        (lambda p: p.with_suffix(".json").unlink(), "commit record"),
        (lambda p: p.with_suffix(".json").write_text("[]"), "commit record"),
        (lambda p: p.with_name("shard-000009.tar").write_bytes(b""), "does not belong"),
        (lambda p: p.write_bytes(b""), "0 bytes; expected"),
        (lambda p: p.parents[1].joinpath("index.json").write_text("{"), "not JSON"),
        (lambda p: p.parents[1].joinpath("index.json").unlink(), "has no index.json"),
        (lambda p: edit(p, lambda i: i.update(version=1)), "version is 1; this code reads 2"),
        (lambda p: edit(p, lambda i: i.pop("depth")), "broken"),
        (
            lambda p: edit(p, lambda i: i["shards"][0].update(name="../x/shard-000000.tar")),
            "never writes",
        ),
        (
            lambda p: edit(p, lambda i: i["splits"]["train"].update(count=7)),
            "counts of splits and shards differ",
        ),
        (
            lambda p: edit(p, lambda i: i["depth"].update(size=[40, 30])),
            "cannot be decoded: depth.npy: uint16 .* expected uint16",
        ),
        (
            lambda p: edit(p, lambda i: i.update(size=[42, 28])),
            "cannot be decoded: rgb.jpg: 28x42; expected 42x28",
        ),
    ],
)
def test_verify_names_each_damage(raw, tmp_path, damage, words):
    make(raw, tmp_path, split="none")
    damage(tmp_path / "train/shard-000000.tar")
    assert any(re.search(words, p) for p in verify_dataset(tmp_path)), verify_dataset(tmp_path)


def edit(path, change):
    index = json.loads(path.parents[1].joinpath("index.json").read_text())
    change(index)
    path.parents[1].joinpath("index.json").write_text(json.dumps(index))


def test_read_index_refuses_a_shard_missing_or_cut(raw, tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        read_index(tmp_path / "absent")
    make(raw, tmp_path)
    with pytest.raises(ValueError, match="has no split 'test'; it has train, val"):
        read_index(tmp_path).samples("test")
    path = tmp_path / "val/shard-000000.tar"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="bytes; the index says"):
        read_index(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match="is missing; the index lists it"):
        read_index(tmp_path)


def test_another_process_refuses_data_that_changed_meanwhile(raw, tmp_path):
    make(raw, tmp_path)
    index = read_index(tmp_path)
    sent = pickle.dumps(index)
    assert pickle.loads(sent).samples("train")[0] == index.samples("train")[0]
    assert len(sent) < 300
    edit(tmp_path / "train/shard-000000.tar", lambda i: i.update(created_by="another"))
    with pytest.raises(ValueError, match="the data changed while it was read"):
        pickle.loads(sent)


def test_decode_refuses_pickles_and_unknown_members(raw, tmp_path):
    make(raw, tmp_path)
    index = read_index(tmp_path)
    good, file = members(index.samples("train")[0]), BytesIO()
    np.save(file, np.full((30, 40), None), allow_pickle=True)
    for change, words in (
        ({"depth.npy": file.getvalue()}, r"depth.npy: object .* expected uint16"),
        ({"x.pth": b""}, "expected depth.npy"),
        ({"mask.npy": b"a"}, "magic"),
        ({"rgb.jpg": b"a"}, "rgb.jpg: cannot be decoded"),
    ):
        with pytest.raises(ValueError, match=words):
            decode_sample({**good, **change}, index)
