"""Tars of others, indexed in place: right values out of plain webdatasets, every damage named, and
not a byte of a tar changed."""

import hashlib
import re
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import webdataset
from helpers.captures import SHARD, capture, write_raw
from helpers.external_tars import (
    NET,
    expected_mm,
    index,
    metres,
    npy,
    picture,
    plain,
    png,
    quarters,
    streamed,
    write,
)
from PIL import Image

from depthdist.data.dataset import DataSettings, ReadSettings, open_dataset
from depthdist.data.loader import Loader
from depthdist.data.sample_order import TrainPlan
from depthdist.shards.build import build_shards
from depthdist.shards.external_tars import index_in_place
from depthdist.shards.index import read_index
from depthdist.shards.settings import ShardSettings
from depthdist.shards.verify import verify_dataset
from depthdist.shards.writer import write_shard


def points(i):
    """png of another size + X, Y, Z in mm."""
    return {"rgb.png": png(picture(i, (60, 80))), "xyz.npy": npy(capture(i)[1])}


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


# ------------------------------------------------------------------------------------- splits, runs


@pytest.mark.parametrize("val", ["val", "validation", "Valid"])
def test_folders_decide_the_split(tmp_path, val):
    write(tmp_path / "train", shards=(2, 1))
    write(tmp_path / val, shards=(2,))
    write(tmp_path / "more", shards=(1,))
    write(tmp_path / "train/.hidden", shards=(1,))
    (tmp_path / "up").symlink_to(tmp_path)
    made = index(tmp_path, split="session")
    assert sorted((s["name"], s["count"]) for s in made["shards"]) == [
        *([("Valid/shard-000000.tar", 2)] if val == "Valid" else []),
        ("train/shard-000000.tar", 2),
        ("train/shard-000001.tar", 1),
        *([(f"{val}/shard-000000.tar", 2)] if val != "Valid" else []),
    ]
    assert {name: (s["count"], s["shards"]) for name, s in made["splits"].items()} == {
        "train": (3, 2),
        "val": (2, 1),
    }
    assert (
        made["notes"][0]
        == f"split by the folders train, {val}{' (val)' * (val != 'val')}; 1 other tars are left"
        " out"
        and verify_dataset(tmp_path) == []
    )
    assert list(streamed(tmp_path, "val")) == ["000000", "000001"]


def test_a_folder_of_tars_named_holdout_is_the_test(tmp_path):
    for name, count in (("train", 3), ("dev", 1), ("Hold-out", 2), ("skip", 1)):
        write(tmp_path / name, shards=(count,))
    made = index(tmp_path)
    assert {name: s["count"] for name, s in made["splits"].items()} == {
        "train": 3,
        "val": 1,
        "test": 2,
    }
    assert made["notes"][0] == (
        "split by the folders train, dev (val), Hold-out (test), skip; 1 other tars are left out"
    )
    stems = [ref.stem for ref in read_index(tmp_path).samples("test")]
    assert stems == ["000000", "000001"]


def test_names_of_tars_decide_the_split_where_folders_do_not(tmp_path):
    for name, count in (("train", 4), ("test", 2)):
        write(tmp_path / name, shards=(count,))
        (tmp_path / name / "shard-000000.tar").rename(tmp_path / f"{name}-000000.tar")
    made = index(tmp_path)
    assert {name: s["count"] for name, s in made["splits"].items()} == {"train": 4, "test": 2}
    assert made["notes"][0] == "split by the names train, test"


def test_two_words_that_may_mean_one_split_are_refused_in_one_line(tmp_path):
    for name in ("train", "val", "eval"):
        write(tmp_path / name, shards=(1,))
    with pytest.raises(ValueError, match="eval and val could both mean val") as caught:
        index(tmp_path)
    assert "\n" not in str(caught.value)


def test_keys_in_folders_of_splits_are_said_not_to_be_used(tmp_path):
    write(tmp_path, shards=(7,), key=lambda i: f"{'test' if i > 4 else 'train'}/{i:06d}")
    note = index(tmp_path, seed=1)["note"]
    assert note.startswith("WARNING   names that look like splits were not used (test, train): ")


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
        with pytest.raises(ValueError, match=r"index\.json: was not written by depthdist shard"):
            index(folder)
        assert (folder / "index.json").read_bytes() == content
    monkeypatch.setattr(
        "depthdist.shards.build.write_shards", lambda jobs, *how: [write_shard(job) for job in jobs]
    )
    build_shards(
        ShardSettings(raw=str(write_raw(tmp_path / "raw", 3)), out=str(tmp_path / "ours"), size=NET)
    )
    before = (tmp_path / "ours/index.json").read_bytes()
    with pytest.raises(ValueError, match="belongs to shards that depthdist shard wrote"):
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
