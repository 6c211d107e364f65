"""Damaged tars of others: each is one line, and the good samples are there."""

import re
import tarfile

import numpy as np
import pytest
from helpers.external_tars import fault, index, npy, png, rejects, streamed, write

from depthdist.shards.index import read_index
from depthdist.shards.verify import verify_dataset


def headers(tar):
    with tarfile.open(tar) as file:
        return {m.name: m.offset for m in file}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda b, at: b[: at + 150] + bytes([b[at + 150] ^ 1]) + b[at + 151 :], "no tar header"),
        (lambda b, at: b[:at], "cut off"),
        (lambda b, at: b[: at - 100], "000001.pth should reach to byte 25,600: the tar is cut off"),
        (lambda b, at: b[: at + 200], "no tar header"),
        (lambda b, at: b[:at] + bytes(1024) + b[at + 1024 :], "1,024 zeros and then more data"),
        (lambda b, at: b[:at] + bytes(10240) + b[:at], "two tars in one file"),
        (lambda b, at: b[:at] + bytes(512), "without the zeros that end a tar"),
    ],
)
def test_a_damaged_tar_is_one_line_with_shard_byte_and_the_sample_before(tmp_path, damage, words):
    tar = write(tmp_path) / "shard-000000.tar"
    at = headers(tar)["000002.depth.npy"]
    tar.write_bytes(damage(tar.read_bytes(), at))
    text = fault(tmp_path)
    found = re.match(
        rf"{re.escape(str(tar))}: damaged at byte ([\d,]+) of {tar.stat().st_size:,}, after"
        r" 000001\.\w+: ",
        text,
    )
    assert (
        found
        and at - 2048 <= int(found[1].replace(",", "")) <= at
        and re.search(words, text)
        and "\n" not in text
    )


def test_every_damaged_tar_has_its_line(tmp_path):
    for tar in write(tmp_path, shards=(2, 2, 2)).glob("*.tar"):
        if "1" not in tar.name:
            tar.write_bytes(tar.read_bytes()[:5120])
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "zip.tar").write_bytes(b"PK\x03\x04" * 500)
    lines = fault(tmp_path).splitlines()
    assert [re.search(r"([\w-]+)\.tar: damaged at byte", line)[1] for line in lines] == [
        "empty",
        "shard-000000",
        "shard-000002",
        "zip",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: {"jpg": m["jpg"]}, "has no depth.npy and no json"),
        (lambda m: {"depth.npy": m["depth.npy"], "json": b"{}"}, "has no jpg"),
        (lambda m: {**m, "jpg": m["jpg"][:900]}, "jpg: cannot be decoded"),
        (
            lambda m: {**m, "jpg": m["jpg"][:500] + bytes(300) + m["jpg"][800:]},
            "jpg: cannot be decoded",
        ),
        (lambda m: {**m, "jpg": png(np.zeros((5, 5), np.uint8))}, "jpg: cannot be decoded"),
        (lambda m: {**m, "depth.npy": m["depth.npy"][:-1]}, "do not fit uint16"),
        (
            lambda m: {**m, "depth.npy": npy(np.full((30, 40), None), allow_pickle=True)},
            "depth.npy: object",
        ),
        (
            lambda m: {**m, "depth.npy": npy(np.ones((30, 40), np.float32))},
            "float32 .* expected uint16",
        ),
        (
            lambda m: {**m, "depth.npy": npy(np.ones((2, 3, 30, 40), np.uint16))},
            r"expected uint16 \(H, W\)",
        ),
        (
            lambda m: {**m, "depth.npy": npy(np.zeros((30, 40), np.uint16))},
            "no valid pixel: Z is nowhere measured",
        ),
        (
            lambda m: {**m, "depth.npy": npy(np.full((30, 40), 9000, np.uint16))},
            "no valid pixel: Z is 9000.0 .. 9000.0 mm, expected 0 < Z <= 4000 mm",
        ),
        (lambda m: {**m, "depth.npy": b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 5000}, "not a .npy"),
        (
            lambda m: {**m, "depth.npy": m["depth.npy"].replace(b"(30, 40)", b"(-3, -4)")},
            "do not fit uint16",
        ),
        (lambda m: {**m, "json": b"{"}, "json: not JSON"),
    ],
)
def test_a_sample_that_cannot_be_used_is_listed_and_the_others_are_there(tmp_path, change, words):
    write(tmp_path, change=lambda i, members: change(members) if i == 5 else members)
    ((shard_name, key, why),) = rejects(tmp_path)
    assert (shard_name, key) == ("shard-000001.tar", "000005") and re.search(words, why), why


@pytest.mark.parametrize("bad", ["../{:06d}", "/{:06d}", "a/../{:06d}", "a\x1b{:06d}"])
def test_names_that_lead_out_or_cannot_be_printed_are_rejected(tmp_path, bad):
    write(tmp_path, key=lambda i: (bad if i == 5 else "{:06d}").format(i))
    ((_, key, why),) = rejects(tmp_path)
    assert key == bad.format(5) and re.search("leads out|cannot be printed", why)


def test_halves_are_never_paired_across_samples_and_shards(tmp_path):
    """One sample lies half at the end of the first tar and half at the start of the second.

    One key stands twice.
    """
    halves = {3: ("jpg", "json"), 4: ("depth.npy",)}
    write(
        tmp_path,
        change=lambda i, m: {n: m[n] for n in halves.get(i, m)},
        key=lambda i: {4: "000003", 6: "000005"}.get(i, f"{i:06d}"),
    )
    with tarfile.open(tmp_path / "shard-000001.tar") as tar:
        assert (
            len(tar.getmembers()) == 9
        )  # webdataset's writer put the two samples 000005 side by side
    found = [(shard_name, key, why) for shard_name, key, why in rejects_of(tmp_path)]
    assert found == [
        ("shard-000000.tar", "000003", "has no depth.npy"),
        ("shard-000001.tar", "000003", "has no json and no jpg"),
        ("shard-000001.tar", "000005", "a member stands there twice"),
    ]


def rejects_of(folder):
    return [(r["shard"], r["key"], r["why"]) for r in index(folder, split="none")["rejected"]]


def test_a_key_that_comes_again_in_its_shard_is_rejected(tmp_path):
    write(tmp_path, key=lambda i: f"{0 if i == 2 else i:06d}")
    assert rejects(tmp_path) == [
        (
            "shard-000000.tar",
            "000000",
            "the key was used before in this shard; members of one sample must stand together",
        )
    ]


def test_damage_after_indexing_is_found_when_read_and_by_verify(tmp_path):
    tar = write(tmp_path) / "shard-000000.tar"
    index(tmp_path, split="none")
    content = bytearray(tar.read_bytes())
    content[read_index(tmp_path).samples("train")[2].members["depth.npy"][0] + 700] ^= 1
    tar.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"shard-000000.tar: sample 000002: member depth.npy at byte .* CRC-32"
    ):
        streamed(tmp_path, "train")
    assert [
        re.search("sha256|000002: depth.npy: crc32", p)[0] for p in verify_dataset(tmp_path)
    ] == [
        "sha256",
        "000002: depth.npy: crc32",
    ]
