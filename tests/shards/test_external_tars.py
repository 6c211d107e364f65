"""Tars of others, indexed in place: right values out of plain webdatasets, every damage named, and
not a byte of a tar changed."""

import hashlib
import json
import os
import pickle
import re
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import webdataset
from helpers.captures import SHARD, capture, write_raw
from PIL import Image

from depthdist.core.settings import Size
from depthdist.data.dataset import DataSettings, ReadSettings, open_dataset
from depthdist.data.loader import Loader
from depthdist.data.sample_order import TrainPlan
from depthdist.shards.build import build_shards
from depthdist.shards.external_tars import index_in_place
from depthdist.shards.index import read_index
from depthdist.shards.settings import ShardSettings
from depthdist.shards.verify import verify_dataset
from depthdist.shards.writer import write_shard

NET = Size(28, 42)


def npy(array, **how):
    file = BytesIO()
    np.save(file, array, **how)
    return file.getvalue()


def png(array):
    file = BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def jpg(rgb):
    return simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), 95, colorspace="RGB")


def picture(i, size=NET):
    return np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8) // 4 + 8 * i


def z_mm(i):
    """(30, 40) float64, NaN in some pixels."""
    return capture(i)[1][:, :, 2].astype(np.float64)


def whole_mm(i):
    """(30, 40) uint16 mm, 0 in some pixels."""
    return np.nan_to_num(z_mm(i)).astype(np.uint16)


def plain(i):
    """jpg + uint16 npy, with members that nobody needs."""
    return {
        "jpg": jpg(picture(i)),
        "depth.npy": npy(whole_mm(i)),
        "json": json.dumps({"id": i}).encode(),
        "pth": b"\x80never loaded",
    }


def points(i):
    """png of another size + X, Y, Z in mm."""
    return {"rgb.png": png(picture(i, (60, 80))), "xyz.npy": npy(capture(i)[1])}


def quarters(i):
    """jpg + depth.png in quarters of a mm + mask.png, the left 5 columns masked."""
    mask = np.full((30, 40), 255, np.uint8)
    mask[:, :5] = 0
    return {
        "color.jpg": jpg(picture(i)),
        "depth.png": png((np.nan_to_num(z_mm(i)) * 4).astype(np.uint16)),
        "mask.png": png(mask),
    }


def metres(i):
    """jpg + float64 metres, (H, W, 1), in Fortran's order."""
    return {
        "image.jpeg": jpg(picture(i)),
        "npy": npy(np.asfortranarray(z_mm(i)[:, :, None] / 1000)),
    }


def expected_mm(make, i):
    """float64 mm, 0 where invalid, from the formula alone."""
    z = np.nan_to_num(z_mm(i))
    if make is quarters:
        z = np.floor(z * 4) / 4
        z[:, :5] = 0
    return np.floor(z) if make is plain else z


def write(
    folder, make=plain, shards=(4, 3), change=lambda i, members: members, key="{:06d}".format
):
    """Tars with that many samples each, as webdataset's own writer writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for n, count in enumerate(shards):
        with webdataset.TarWriter(str(folder / f"shard-{n:06d}.tar"), encoder=False) as tar:
            for i in range(first, first + count):
                tar.write({"__key__": key(i), **change(i, make(i))})
        first += count
    return folder


def index(folder, **settings):
    return index_in_place(
        ShardSettings(**{"index": str(folder), "size": NET, "val": 0.3, **settings}), workers=2
    )


def streamed(folder, split):
    """Every sample of a split through the loader, by key: rgb, depth_mm, mask."""
    dataset = open_dataset(DataSettings(data=(str(folder),)))
    batches = [
        packed.to("cpu")
        for packed in Loader(dataset, ReadSettings(threads=1)).evaluate(
            split, micro_batch=2, rank=0, world=1
        )
    ]
    return {
        b.stems[i]: (b.rgb[i].numpy(), b.depth_mm[i].numpy(), b.mask[i].numpy())
        for b in batches
        for i in range(len(b.stems))
        if b.weight[i]
    }


def stem_to_number(stem):
    return int(re.search(r"\d+", stem.split("/")[-1])[0])


VARIANTS = [(plain, {}), (points, {}), (quarters, {"unit": 0.25}), (metres, {"unit": 1000.0})]


@pytest.mark.parametrize(("make", "settings"), VARIANTS)
def test_a_plain_webdataset_streams_with_the_right_values(tmp_path, make, settings):
    made = index(write(tmp_path / "d", make), **settings)
    assert (
        not made["rejected"]
        and made["splits"]["train"]["count"] == 5
        and made["splits"]["val"]["count"] == 2
    )
    assert verify_dataset(tmp_path / "d") == []
    samples = {**streamed(tmp_path / "d", "train"), **streamed(tmp_path / "d", "val")}
    assert sorted(map(stem_to_number, samples)) == list(range(7))
    for stem, (rgb, depth_mm, mask) in samples.items():
        wanted = expected_mm(make, stem_to_number(stem))
        np.testing.assert_array_equal(mask, wanted > 0)
        assert (depth_mm[~mask] == 0).all()
        assert (
            np.abs(depth_mm - wanted)[mask].max() <= made["depth"]["max_error_mm"] + 3e-4
        )  # float32 has 2**-12 mm at 2 m
        members = make(stem_to_number(stem))
        image = Image.open(BytesIO(members[made["rgb"]["member"]]))
        if image.size != (42, 28):
            image = image.resize((42, 28), Image.Resampling.BICUBIC)
        assert np.abs(rgb.astype(int) - np.asarray(image)).max() <= (
            0 if make is points else 3
        )  # two JPEG decoders


@pytest.mark.parametrize(("make", "settings"), VARIANTS)
def test_statistics_are_those_of_the_split_in_float64(tmp_path, make, settings):
    made = index(write(tmp_path, make), **settings)
    for split in ("train", "val"):
        stems = [ref.stem for ref in read_index(tmp_path).samples(split)]
        z = np.stack([expected_mm(make, stem_to_number(stem)) for stem in stems])
        stats, valid = made["splits"][split]["stats"], z[z > 0]
        assert (
            stats["valid_pixels"] == valid.size and stats["valid_fraction"] == valid.size / z.size
        )
        assert stats["mean_mm"] == pytest.approx(valid.mean(), abs=0.01) and stats[
            "std_mm"
        ] == pytest.approx(valid.std(), abs=0.01)
        assert stats["min_mm"] == pytest.approx(valid.min(), abs=0.05) and stats[
            "max_mm"
        ] == pytest.approx(valid.max(), abs=0.05)
        assert sum(stats["histogram"]["counts"]) == valid.size
        assert stats["percentiles_mm"]["50"] == pytest.approx(
            np.median(valid), abs=stats["histogram"]["bin_mm"]
        )


def test_training_shows_every_sample_once_an_epoch(tmp_path):
    index(write(tmp_path), split="none")
    loader = Loader(open_dataset(DataSettings(data=(str(tmp_path),))), ReadSettings(threads=2))
    batches = [
        packed.to("cpu") for packed in loader.train(TrainPlan(7, 2, 1, 1), seed=0, rank=0, epochs=2)
    ]
    seen = [sample for b in batches for sample, weight in zip(b.samples, b.weight) if weight]
    assert sorted(seen) == sorted([*range(7)] * 2) and seen[:7] != seen[7:]


def test_webdataset_reads_the_same_keys_in_the_same_order_and_no_tar_is_touched(tmp_path):
    folder = write(tmp_path, key="21/a.b/{:06d}".format)
    tars = sorted(folder.glob("*.tar"))
    before = [(t.read_bytes(), t.stat().st_mtime_ns) for t in tars]
    index(folder, split="none")
    assert [(t.read_bytes(), t.stat().st_mtime_ns) for t in tars] == before
    theirs = [
        sample["__key__"]
        for sample in webdataset.WebDataset([str(t) for t in tars], shardshuffle=False)
    ]
    refs = read_index(folder).samples("train")
    assert [ref.stem for ref in refs] == theirs and len(theirs) == 7
    for ref in refs:
        content = Path(ref.shard).read_bytes()
        with tarfile.open(ref.shard) as tar:
            for name, (offset, size, _) in ref.members.items():
                assert (
                    content[offset : offset + size] == tar.extractfile(f"{ref.stem}.{name}").read()
                )


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_folders_and_members_about_the_tar_change_nothing(tmp_path, form):
    key = "x" * 200 + " ä/{:04d}"
    with tarfile.open(
        tmp_path / "a.tar",
        "w",
        format=form,
        pax_headers={"comment": "all"} if form == tarfile.PAX_FORMAT else None,
    ) as tar:
        for i in range(3):
            for name, content in [("__meta__/about.txt", b"")] * (i == 1) + [
                (f"./{key.format(i)}.{m}", c) for m, c in plain(i).items()
            ]:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, BytesIO(content))
            folder = tarfile.TarInfo("x")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
    assert not index(tmp_path, split="none")["rejected"] and verify_dataset(tmp_path) == []
    assert list(streamed(tmp_path, "train")) == [f"./{key.format(i)}" for i in range(3)]
    assert list(streamed(tmp_path, "train")) == [
        s["__key__"] for s in webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)
    ]


def test_a_key_in_two_shards_is_two_samples(tmp_path):
    write(tmp_path, key=lambda i: f"{i % 4:06d}")
    index(tmp_path, split="none")
    refs = read_index(tmp_path).samples("train")
    assert [(r.key, r.stem) for r in refs][:5] == [
        (f"{i:06d}" + ("@0" if i < 3 else ""), f"{i:06d}") for i in range(4)
    ] + [("000000@1", "000000")]
    assert verify_dataset(tmp_path) == [] and len({r.key for r in refs}) == 7


# ------------------------------------------------------------------------------------------- damage


def fault(folder, **settings):
    with pytest.raises(ValueError) as caught:
        index(folder, **settings)
    assert not (folder / "index.json").exists() and not list(folder.glob("*.npy"))
    return str(caught.value)


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


def rejects(folder, **settings):
    """(key, why) of what was left out, once the rest is there and right."""
    made = index(folder, split="none", **settings)
    listed = [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]
    assert (
        listed == made["rejected"]
        and made["rejects"] == len(listed)
        and verify_dataset(folder) == []
    )
    assert len(streamed(folder, "train")) == made["splits"]["train"]["count"] == 7 - len(listed)
    return [(r["shard"], r["key"], r["why"]) for r in listed]


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


# ----------------------------------------------------------------------------------------- deciding


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_metres_are_noticed(tmp_path, dtype):
    write(
        tmp_path,
        lambda i: {"jpg": jpg(picture(i)), "depth.npy": npy((z_mm(i) / 1000).astype(dtype))},
    )
    assert re.search(
        r"depth.npy looks like metres: the median is 1.\d+; .* --unit 1000", fault(tmp_path)
    )
    assert index(tmp_path, unit=1000.0)["splits"]["train"]["stats"]["mean_mm"] == pytest.approx(
        1110, abs=40
    )


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (
            lambda i: {
                "left.jpg": jpg(picture(i)),
                "right.jpg": jpg(picture(i)),
                "depth.npy": npy(whole_mm(i)),
            },
            r"left.jpg \(JPEG 28x42\), right.jpg .* the image",
        ),
        (
            lambda i: {
                "rgb.jpg": jpg(picture(i)),
                "color.png": png(picture(i)),
                "depth.npy": npy(whole_mm(i)),
            },
            r"color.png .*, rgb.jpg .* the image",
        ),
        (
            lambda i: {"jpg": jpg(picture(i)), "a.npy": npy(whole_mm(i)), "b.npy": npy(z_mm(i))},
            r"a.npy \(uint16 \(30, 40\)\), b.npy \(float64 .* the depth",
        ),
        (
            lambda i: {
                "jpg": jpg(picture(i)),
                "depth.npy": npy(whole_mm(i)),
                "depth.png": png(whole_mm(i)),
            },
            r"depth.npy .*, depth.png \(PNG 30x40, mode I;16\) can all be the depth",
        ),
        (
            lambda i: {"jpg": jpg(picture(i))},
            r"no depth among its members: jpg \(JPEG 28x42\); expected uint16 or float",
        ),
        (
            lambda i: {"jpg": jpg(picture(i)), "depth.png": png(whole_mm(i).astype(np.uint8))},
            r"no depth .* depth.png \(PNG 30x40, mode L\)",
        ),
        (
            lambda i: {"txt": b"", "tiff": b""},
            r"no image among its members: tiff \(not looked at\), txt",
        ),
        (
            lambda i: {"depth.npy": npy(whole_mm(i)), "pth": b""},
            r"no image among .* pth \(not looked at\)",
        ),
        (
            lambda i: {
                "jpg": jpg(picture(i)),
                "depth.npy": npy(np.full((3, 4), None), allow_pickle=True),
            },
            "pickled Python objects, never loaded",
        ),
    ],
)
def test_what_cannot_be_told_is_one_line_that_lists_the_candidates(tmp_path, members, words):
    text = fault(write(tmp_path, members))
    assert re.search(words, text) and "\n" not in text and "shard-000000.tar: 000000: " in text, (
        text
    )


@pytest.mark.parametrize(
    "more", ["preview.jpg", "depth_vis.jpg", "seg.npy", "xyz.npy", "left.depth.npy"]
)
def test_a_name_that_says_it_wins(tmp_path, more):
    made = index(
        write(
            tmp_path,
            change=lambda i, m: {
                **m,
                more: jpg(picture(9)) if more.endswith("jpg") else npy(whole_mm(9)),
            },
        )
    )
    assert (made["depth"]["member"], made["rgb"]["member"]) == ("depth.npy", "jpg")
    assert made["notes"][-1] == "not used, never loaded: " + ", ".join(sorted([more, "pth"]))


class Bomb:
    def __reduce__(self):
        return os.abort, ()


def test_pickles_are_never_loaded(tmp_path):
    bomb = pickle.dumps(Bomb())
    made = index(
        write(
            tmp_path,
            change=lambda i, m: {
                **m,
                "pth": bomb,
                "pkl": bomb,
                "extra.npy": npy(np.array([Bomb()]), allow_pickle=True),
            },
        )
    )
    assert (
        "never loaded: extra.npy, pkl, pth" in made["notes"][-1] and verify_dataset(tmp_path) == []
    )


def test_masks_of_npy_count_where_they_are_not_zero_and_must_have_the_depths_size(tmp_path):
    mask = np.arange(1200).reshape(30, 40) % 3 == 0
    write(tmp_path, change=lambda i, m: {**m, "mask.npy": npy(mask if i != 5 else mask.T)})
    assert rejects(tmp_path)[0][1:] == (
        "000005",
        "mask.npy: bool (40, 30); expected 8 bits (30, 40), as the depth",
    )
    for stem, (_, _, found) in streamed(tmp_path, "train").items():
        np.testing.assert_array_equal(found, mask & (expected_mm(plain, int(stem)) > 0))


def test_depths_of_two_sizes_need_a_size(tmp_path):
    write(
        tmp_path,
        change=lambda i, m: (
            {**m, "depth.npy": npy(np.full((15, 20), 700 + i, np.uint16))} if i == 5 else m
        ),
    )
    assert (
        "shard-000001.tar: 000005: depth is 15x20, that of the first sample 30x40; a dataset has"
        " one size: take --depth-size train" in fault(tmp_path)
    )
    made = index(tmp_path, split="none", depth_size="train")
    assert (
        made["depth"]["size"] == [28, 42]
        and made["depth"]["resize"]
        and verify_dataset(tmp_path) == []
    )
    found = streamed(tmp_path, "train")
    assert np.abs(found["000005"][1] - 705).max() <= made["depth"]["max_error_mm"]
    rows, columns = (
        ((np.arange(28) + 0.5) * 30 / 28).astype(int),
        ((np.arange(42) + 0.5) * 40 / 42).astype(int),
    )
    assert (
        np.abs(found["000001"][1] - whole_mm(1)[np.ix_(rows, columns)]).max()
        <= made["depth"]["max_error_mm"] + 1e-3
    )


def test_pictures_of_several_sizes_are_resized_and_it_is_said(tmp_path):
    made = index(
        write(
            tmp_path, change=lambda i, m: {**m, "jpg": jpg(picture(i, (60, 80)))} if i == 5 else m
        ),
        split="none",
    )
    assert made["rgb"]["resize"] and any(
        "decoded at 2 sizes and resized to 28x42" in note for note in made["notes"]
    )
    found = streamed(tmp_path, "train")["000005"][0]
    wanted = Image.fromarray(
        simplejpeg.decode_jpeg(jpg(picture(5, (60, 80))), colorspace="RGB")
    ).resize((42, 28), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(found, np.asarray(wanted))


# ------------------------------------------------------------------------------------- splits, runs


@pytest.mark.parametrize("val", ["val", "validation"])
def test_folders_decide_the_split(tmp_path, val):
    write(tmp_path / "train", shards=(2, 1))
    write(tmp_path / val, shards=(2,))
    write(tmp_path / "test", shards=(1,))
    write(tmp_path / "train/.hidden", shards=(1,))
    (tmp_path / "up").symlink_to(tmp_path)
    made = index(tmp_path, split="session")
    assert [(s["name"], s["count"]) for s in made["shards"]] == [
        ("train/shard-000000.tar", 2),
        ("train/shard-000001.tar", 1),
        (f"{val}/shard-000000.tar", 2),
    ]
    assert {name: (s["count"], s["shards"]) for name, s in made["splits"].items()} == {
        "train": (3, 2),
        "val": (2, 1),
    }
    assert (
        made["notes"][0] == f"split by the folders train, {val}; 1 other tars are left out"
        and verify_dataset(tmp_path) == []
    )
    assert list(streamed(tmp_path, "val")) == ["000000", "000001"]


def test_samples_of_one_shard_may_be_on_both_sides(tmp_path):
    made = index(write(tmp_path, shards=(7,)))
    assert {name: (s["count"], s["shards"]) for name, s in made["splits"].items()} == {
        "train": (5, 1),
        "val": (2, 1),
    }
    assert made["shards"][0]["count"] == 7 and verify_dataset(tmp_path) == []
    assert index(tmp_path, seed=7)["splits"]["val"]["count"] == 2
    both = [set(streamed(tmp_path, split)) for split in ("train", "val")]
    assert len(both[0] | both[1]) == 7 and not both[0] & both[1]


def test_sessions_stay_on_one_side(tmp_path):
    write(tmp_path, key=lambda i: f"21-12-03-{10 + 3 * (i > 4)}-{i:02d}-00")
    index(tmp_path, split="session")
    assert [ref.stem[9:11] for ref in read_index(tmp_path).samples("val")] == ["13", "13"]


def files(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_running_it_again_gives_the_same_bytes_and_leaves_nothing_old(tmp_path):
    write(
        tmp_path,
        points,
        change=lambda i, m: (
            {"rgb.png": m["rgb.png"]} if i == 3 else {**m, "rgb.png": b"no png"} if i == 4 else m
        ),
    )
    assert len(index(tmp_path)["rejected"]) == 2
    before = files(tmp_path)
    index_in_place(ShardSettings(index=str(tmp_path), size=NET, val=0.3), workers=1)
    assert files(tmp_path) == before and len(before) == 2 + 4
    index(tmp_path, seed=9)
    assert len(files(tmp_path)) == 6 and verify_dataset(tmp_path) == []


def test_what_others_or_we_wrote_is_not_overwritten(tmp_path, monkeypatch):
    folder = write(tmp_path / "theirs")
    for content in (b'{"shardlist": []}', b"[]", b"not json"):
        (folder / "index.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"index\.json: was not written by tools/shard.py"):
            index(folder)
        assert (folder / "index.json").read_bytes() == content
    monkeypatch.setattr(
        "depthdist.shards.build.write_shards", lambda jobs, *how: [write_shard(job) for job in jobs]
    )
    build_shards(
        ShardSettings(raw=str(write_raw(tmp_path / "raw", 3)), out=str(tmp_path / "ours"), size=NET)
    )
    before = (tmp_path / "ours/index.json").read_bytes()
    with pytest.raises(ValueError, match=r"belongs to shards that tools/shard\.py wrote"):
        index(tmp_path / "ours")
    assert (tmp_path / "ours/index.json").read_bytes() == before
    (tmp_path / "ours/index.json").unlink()  # lost: its packed masks betray it
    with pytest.raises(ValueError, match=r"mask.npy: uint8 \(30, 5\); expected 8 bits \(30, 40\)"):
        index(tmp_path / "ours")


def test_folders_without_tars_are_one_line(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no .tar files; a.tar.gz is compressed"):
        index(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        index(tmp_path / "nowhere")


def run(*words):
    return subprocess.run([*SHARD, *map(str, words)], capture_output=True, text=True, timeout=60)


def test_the_command_indexes_and_verifies(tmp_path):
    folder = write(tmp_path, points)
    made = run("--index", folder, "--size", "28x42")
    assert made.returncode == 0, made.stderr
    rows = [line.split()[:3] for line in made.stdout.splitlines()]
    assert ["train", "6", "2"] in rows and ["val", "1", "1"] in rows
    for words in (
        "rgb rgb.png, depth xyz.npy; a unit of xyz.npy (float32) is 1 mm",
        "decoded at 60x80 and resized to 28x42 in each epoch",
        "0 rejected",
        f"--verify {folder}",
    ):
        assert words in made.stdout
    checked = run("--verify", folder)
    assert checked.returncode == 0 and "all right: 2 shards, 7 samples" in checked.stdout


def test_the_command_ends_in_one_line_and_code_2(tmp_path):
    folder = write(tmp_path, change=lambda i, m: {"jpg": m["jpg"]} if i == 3 else m)
    made = run("--index", folder, "--size", "28x42")
    assert (
        made.returncode == 2
        and "rejected  shard-000000.tar: 000003: has no depth.npy and no json" in made.stdout
    )
    assert made.stderr.splitlines()[-1].endswith(
        f"1 bad samples, --max-rejects is 0; the dataset in {folder} is whole without them"
    )
    assert (
        verify_dataset(folder) == []
        and run("--index", folder, "--size", "28x42", "--max-rejects", 1).returncode == 0
    )
    tar = folder / "shard-000001.tar"
    tar.write_bytes(tar.read_bytes()[:4096])
    broken = run("--index", folder)
    (line,) = broken.stderr.splitlines()
    assert (
        broken.returncode == 2
        and line.startswith(f"shard.py: error: {tar}: damaged at byte")
        and "Traceback" not in broken.stderr
    )
