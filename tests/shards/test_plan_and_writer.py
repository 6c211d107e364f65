"""The dataset's format: plain tools read it, our reader checks it, verify catches any damage.

And how it is made.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
from collections import Counter
from io import BytesIO

import numpy as np
import pytest
from helpers.captures import ROOT, SMALL, capture, make, stem_of, write_capture, write_raw
from helpers.shards import members
from PIL import Image

from depthdist.core.command_line import parse
from depthdist.core.environment import count_workers
from depthdist.core.errors import SettingsError
from depthdist.data.dataset import DataSettings, open_dataset
from depthdist.geometry.camera import fit_intrinsics
from depthdist.geometry.image_resizing import resize_rgb
from depthdist.shards.decoding import decode_label, decode_sample
from depthdist.shards.encoding import quantize, resize_nearest
from depthdist.shards.index import read_index
from depthdist.shards.plan import make_plan
from depthdist.shards.settings import ShardSettings
from depthdist.shards.splits import split
from depthdist.shards.statistics import BIN, merge_stats, statistics
from depthdist.shards.verify import verify_dataset
from depthdist.shards.writer import write_shard

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.mark.parametrize("rgb", ["jpeg", "png", "raw"])
def test_a_sample_comes_back_within_half_a_step(raw, tmp_path, rgb):
    make(raw, tmp_path, rgb=rgb, subsampling="444", quality=100)
    index = read_index(tmp_path)
    assert index.step_mm == 4000 / 65535
    assert (index.size, index.depth_size) == ((28, 42), (30, 40))
    refs = [*index.samples("train"), *index.samples("val")]
    assert sorted(r.key for r in refs) == [f"{i:08d}" for i in range(6)]
    for ref in refs:
        image, xyz = capture(int(ref.key))
        found = decode_sample(members(ref), index)
        valid = np.isfinite(xyz[:, :, 2])
        np.testing.assert_array_equal(found["mask"], valid)
        assert (found["depth"][~valid] == 0).all()
        assert found["depth"].dtype == np.uint16
        assert (
            np.abs(found["depth"] * index.step_mm - xyz[:, :, 2])[valid].max()
            <= index.raw["depth"]["max_error_mm"]
        )
        assert np.abs(found["rgb"].astype(int) - resize_rgb(image, (28, 42))).max() <= (
            12 if rgb == "jpeg" else 0
        )
        assert found["meta"]["stem"] == ref.stem
        assert (
            found["meta"]["rgb"]["sha256"]
            == hashlib.sha256((raw / found["meta"]["rgb"]["path"]).read_bytes()).hexdigest()
        )
        fitted = found["meta"]["intrinsics"]
        assert fitted["fx"] == pytest.approx(50, abs=1e-3)
        assert fitted["fy"] == pytest.approx(60, abs=1e-3)
        assert fitted["max_residual_px"] < 1e-3
        assert fitted["cx"] == pytest.approx(21, abs=1e-3)
        assert fitted["cy"] == pytest.approx(14, abs=1e-3)


def test_plain_tarfile_reads_a_shard(raw, tmp_path):
    make(raw, tmp_path, split="none")
    with tarfile.open(tmp_path / "train/shard-000000.tar") as tar:
        found = tar.getmembers()
        assert [m.name for m in found[:4]] == [
            f"00000000.{m}" for m in ("depth.npy", "mask.npy", "meta.json", "rgb.jpg")
        ]
        assert {(m.mtime, m.uid, m.gid, m.mode) for m in found} == {(0, 0, 0, 0o444)}
        depth = np.load(BytesIO(tar.extractfile(found[0]).read()))
        assert depth.dtype == np.uint16
        assert Image.open(tar.extractfile(found[3])).size == (42, 28)


def test_plain_webdataset_reads_a_shard(raw, tmp_path):
    wds = pytest.importorskip("webdataset")
    make(raw, tmp_path, split="none")
    path = str(tmp_path / "train/shard-000000.tar")
    samples = list(wds.WebDataset(path, shardshuffle=False).decode("rgb8"))
    assert len(samples) == 6
    assert samples[0]["rgb.jpg"].shape == (28, 42, 3)
    assert samples[0]["depth.npy"].dtype == np.uint16
    assert samples[5]["meta.json"]["stem"].startswith("21-12-03-10-05")


def test_statistics_are_those_of_all_pixels_in_float64(raw, tmp_path):
    stats = make(raw, tmp_path, split="none", shard_mb=0.01)["splits"]["train"]["stats"]
    z = np.concatenate(
        [c[np.isfinite(c)] for c in (capture(i)[1][:, :, 2].astype(np.float64) for i in range(6))]
    )
    stored = np.rint(z / (4000 / 65535)) * (
        4000 / 65535
    )  # the bounds are of what a reader gets: none lies outside them
    assert (stats["min_mm"], stats["max_mm"], stats["valid_fraction"]) == (
        stored.min(),
        stored.max(),
        z.size / 7200,
    )
    assert stats["mean_mm"] == pytest.approx(z.mean(), abs=0.005)
    assert stats["std_mm"] == pytest.approx(z.std(), abs=0.005)
    expected = np.bincount((np.rint(z / (4000 / 65535)) // BIN).astype(int), minlength=1024)
    assert stats["histogram"]["counts"] == expected.tolist()


def test_statistics_merge_the_same_however_they_are_cut():
    parts = [
        {
            "valid": n,
            "sum": n * n,
            "sum_of_squares": n**4,
            "pixels": 9,
            "min_mm": 9.0 - n,
            "max_mm": 1.0 * n,
            "histogram": [n, 1],
        }
        for n in (2, 3, 5)
    ]
    whole = merge_stats(parts)
    assert (
        merge_stats([merge_stats(parts[:1]), merge_stats(parts[1:])])
        == whole
        == merge_stats(parts[::-1])
    )
    assert whole["histogram"] == [10, 3]
    assert (whole["min_mm"], whole["max_mm"]) == (4.0, 5.0)
    assert (
        statistics({**whole, "valid": 2, "sum": 4, "sum_of_squares": 10}, 0.5)["std_mm"] == 0.5
    )  # of 1 and 3, in steps of 0.5


def test_depth_is_valid_between_near_and_far_only():
    z = np.array([[np.nan, np.inf, -5, 0, 0.01], [100, 100.5, 4000, 4000.5, 2000]], np.float32)
    value, counts = quantize(z, 100, 4000)
    np.testing.assert_array_equal(value > 0, [[0, 0, 0, 0, 0], [0, 1, 1, 0, 1]])
    assert value[1, 2] == 65535
    assert (counts["measured"], counts["nearer"], counts["farther"]) == (
        6,
        2,
        1,
    )


def test_out_of_range_pixels_are_counted(raw, tmp_path):
    index = make(raw, tmp_path, near=1020, far=1150, split="none")
    z = np.stack([capture(i)[1][:, :, 2] for i in range(6)])
    assert index["out_of_range_pixels"] == ((z <= 1020) | (z > 1150)).sum() > 0
    assert index["measured"]["farther"] == (z > 1150).sum()
    assert index["measured"]["measured_max_mm"] == np.nanmax(z)


def test_processes_that_write_and_decode_import_neither_torch_nor_numba_at_their_start():
    code = "import sys, depthdist.shards.decoding, depthdist.shards.writer; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "numba"} & set(done.stdout.split())


def test_nearest_takes_the_pixel_of_the_nearest_centre():
    image = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(resize_nearest(image, (3, 4)), image)
    np.testing.assert_array_equal(resize_nearest(image, (6, 8)), image.repeat(2, 0).repeat(2, 1))
    assert resize_nearest(image, (1, 1)) == 6


def test_intrinsics_of_a_single_column_are_unknown():
    assert fit_intrinsics(capture()[1][:, :1]) is None
    assert fit_intrinsics(np.full((4, 4, 3), np.nan, np.float32)) is None


def test_58_pairs_split_into_46_and_12_by_seed():
    session = [0] * 58
    sides = [split(session, ShardSettings(seed=seed)) for seed in (42, 42, 43)]
    assert [s.count("val") for s in sides] == [12, 12, 12]
    assert sides[0] == sides[1] != sides[2]


@pytest.mark.parametrize("seed", range(5))
def test_no_session_stands_on_both_sides(seed):
    session = (
        np.random.default_rng(seed)
        .permutation([0] * 30 + [1] * 7 + [2] * 11 + [3] * 5 + [4] * 5)
        .tolist()
    )
    sides = split(session, ShardSettings(split="session", seed=seed))
    of_session = {number: {s for n, s in zip(session, sides) if n == number} for number in session}
    assert all(len(found) == 1 for found in of_session.values())
    assert sides.count("val") == 12  # 5 + 7


def test_a_split_that_cannot_be_made_says_so():
    for session, how, words in (
        ([0, 0, 0], "session", "one session"),
        ([0], "random", "cannot be split"),
    ):
        with pytest.raises(ValueError, match=words):
            split(session, ShardSettings(split=how))


def test_sessions_come_from_capture_times(tmp_path):
    index = make(
        write_raw(tmp_path / "raw", 6, minutes=30), tmp_path / "out", split="session", val=0.34
    )
    assert {name: s["count"] for name, s in index["splits"].items()} == {
        "train": 4,
        "val": 2,
    }
    assert "4 sessions in train, 2 in val" in index["note"]
    refs = read_index(tmp_path / "out").samples("train")
    assert all(
        decode_sample(members(r), read_index(tmp_path / "out"))["meta"]["session"] == int(r.key)
        for r in refs
    )


def test_one_size_a_dataset_unless_depth_is_resized(tmp_path):
    write_raw(tmp_path / "raw", 3)
    write_capture(tmp_path / "raw/odd.png", tmp_path / "raw/odd.npy", size=(20, 20))
    index = make(tmp_path / "raw", tmp_path / "a", split="none")
    assert index["splits"]["train"]["count"] == 3
    assert "xyz is 20x20; expected 30x40 as the other 3" in index["rejected"][0]["reason"]
    index = make(tmp_path / "raw", tmp_path / "b", split="none", depth_size="train")
    assert index["splits"]["train"]["count"] == 4
    assert index["depth"]["size"] == [28, 42]
    assert verify_dataset(tmp_path / "b") == []


def test_a_second_run_writes_nothing_and_a_touched_file_only_its_shard(raw, tmp_path):
    raw = write_raw(tmp_path / "raw", 6)
    out = tmp_path / "out"
    first = make(raw, out, shard_mb=0.015, split="none")
    assert first["written"] > 2
    assert first["changed"]
    before = {
        p: (p.read_bytes(), p.stat().st_mtime_ns)
        for p in out.rglob("*")
        if p.is_file() and p.name != ".lock"
    }
    again = make(raw, out, shard_mb=0.015, split="none")
    assert again["written"] == 0
    assert not again["changed"]
    assert before == {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in before}
    stem = "21-12-03-10-00-00_Zivid_acquisition"
    write_capture(raw / f"images/{stem}_color.png", raw / f"depth/{stem}_rawDepth.npy", 77)
    assert make(raw, out, shard_mb=0.015, split="none")["written"] == 1
    assert verify_dataset(out) == []


def test_other_settings_replace_the_dataset(raw, tmp_path):
    make(raw, tmp_path, shard_mb=0.015)
    (tmp_path / "train/mine.txt").write_text("a person's own file stays")
    make(raw, tmp_path, far=2000, split="none")
    found = sorted(re.sub("-[0-9a-f]{16}", "", p.name) for p in tmp_path.rglob("*") if p.is_file())
    assert found == [
        ".lock",
        "index.json",
        "mine.txt",
        "names.txt",
        "rejects.jsonl",
        "samples.npy",
        "shard-000000.json",
        "shard-000000.tar",
    ]
    assert read_index(tmp_path).far_mm == 2000
    assert [p for p in verify_dataset(tmp_path) if "mine.txt" not in p] == []


def test_a_run_that_breaks_leaves_the_old_dataset_and_goes_on_later(raw, tmp_path, monkeypatch):
    make(raw, tmp_path, shard_mb=0.015, split="none")
    old = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def break_after_two(jobs, *how):
        for job in jobs[:2]:
            write_shard(job)
        raise ValueError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr("depthdist.shards.build.write_shards", break_after_two)
        with pytest.raises(ValueError, match="power cut"):
            make(raw, tmp_path, shard_mb=0.015, split="none", far=2000)
    assert all(p.read_bytes() == content for p, content in old.items())
    assert verify_dataset(tmp_path) == []
    index = make(raw, tmp_path, shard_mb=0.015, split="none", far=2000)
    assert index["written"] == index["splits"]["train"]["shards"] - 2
    assert verify_dataset(tmp_path) == []
    assert not (tmp_path / ".build").exists()


def test_a_run_killed_at_any_step_of_publishing_is_never_a_wrong_dataset(
    raw, tmp_path, monkeypatch
):
    make(raw, tmp_path, shard_mb=0.015, split="none")
    real = os.replace
    for stop in range(30):
        calls = iter(range(stop + 1))

        def replace(a, b, calls=calls):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            real(a, b)

        with monkeypatch.context() as patch:
            patch.setattr("os.replace", replace)
            try:
                make(raw, tmp_path, shard_mb=0.015, split="none", far=2000 + stop)
                break
            except KeyboardInterrupt:
                problems = verify_dataset(tmp_path)
                assert problems == [] or "no index.json; the sharding did not finish" in problems[0]
    else:
        pytest.fail("never ran through")
    assert stop > 8
    assert verify_dataset(tmp_path) == []
    assert read_index(tmp_path).far_mm == 2000 + stop


def test_a_full_disk_while_publishing_leaves_the_old_dataset(raw, tmp_path, monkeypatch):
    make(raw, tmp_path, split="none")

    def full(path, content):
        raise ValueError(f"{path}: cannot be written: No space left on device")

    monkeypatch.setattr("depthdist.shards.build.write_atomic", full)
    with pytest.raises(ValueError, match="No space left"):
        make(raw, tmp_path, split="none", far=2000)
    assert verify_dataset(tmp_path) == []
    assert read_index(tmp_path).far_mm == 4000


def test_an_index_that_is_not_ours_is_never_overwritten(raw, tmp_path):
    (tmp_path / "index.json").write_text('{"schema": "of another tool"}')
    with pytest.raises(ValueError, match="was not written by depthdist shard"):
        make(raw, tmp_path)
    with pytest.raises(ValueError, match="is RAW as well"):
        make(raw, raw)


def test_a_plan_depends_on_sizes_and_never_on_workers(raw, tmp_path):
    plans = [
        make_plan(
            ShardSettings(
                raw=str(raw), out=str(tmp_path), **{**SMALL, "workers": w, "shard_mb": 0.02}
            )
        )
        for w in (1, 7)
    ]
    assert plans[0] == plans[1]
    assert Counter(len(j.items) for j in plans[0].jobs)[0] == 0
    assert count_workers(0, 1) == 1
    assert count_workers(7, 3) == 3


def test_settings_that_make_no_sense_are_all_reported():
    with pytest.raises(SettingsError) as caught:
        parse(
            "",
            ShardSettings,
            argv=["raw", "--size", "750x1260", "--far", "0", "--val", "1.5", "--workers", "-1"],
        )
    text = str(caught.value)
    for words in (
        "OUT is missing",
        "nearest are height 742 or 756, width 1260",
        "--far is 0.0",
        "--val is 1.5",
        "--workers is -1",
    ):
        assert words in text


@pytest.mark.parametrize("depth_size", ["camera", "train"])
def test_a_groove_label_is_in_the_sample_and_a_new_one_makes_its_shard_again(tmp_path, depth_size):

    raw, out = write_raw(tmp_path / "raw", 4), tmp_path / "out"
    make(raw, out, split="none", depth_size=depth_size)
    label = np.zeros((30, 40), np.uint16)
    label[3:20, 4:9], label[3:20, 20:30] = 7, 400
    Image.fromarray(label).save(raw / "images/21-12-03-10-02-00_Zivid_acquisition_grooves.png")
    assert make(raw, out, split="none", depth_size=depth_size)["changed"]
    dataset = open_dataset(DataSettings(data=(str(out),)))
    assert ["grooves" in dataset.meta("train", i) for i in range(4)] == [False, False, True, False]
    meta = dataset.meta("train", 2)
    assert np.array_equal(decode_label(meta["grooves"]), resize_nearest(label, dataset.depth_size))
    assert meta["grooves_file"]["path"].endswith("_grooves.png")
    assert len(meta["grooves_file"]["sha256"]) == 64
    assert verify_dataset(out) == []


def test_a_label_of_another_size_rejects_its_capture(tmp_path):
    raw = write_raw(tmp_path / "raw", 3)
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(
        raw / "images/21-12-03-10-01-00_Zivid_acquisition_grooves.png"
    )
    index = make(raw, tmp_path / "out", split="none")
    assert read_index(tmp_path / "out").num_samples == 2
    assert "5x5; expected 30x40" in str(index["rejected"])


# --------------------------------------------------------------------------------------- near-twins


def test_validation_images_with_a_near_duplicate_in_train_are_in_the_index_worst_first(tmp_path):
    raw, groups = write_raw(tmp_path / "raw", 6), tmp_path / "groups.csv"
    for i, seed in enumerate((2, 3)):  # b0 is capture 2, b1 nearly capture 3, b2 of its own
        write_capture(raw / f"b{i}.png", raw / f"b{i}.npy", seed)
    image = np.asarray(Image.open(raw / "b1.png")).astype(int)
    Image.fromarray((image // 2 + 40).astype(np.uint8)).save(raw / "b1.png")
    write_capture(raw / "b2.png", raw / "b2.npy", 90)
    groups.write_text(
        "".join(
            f"{stem},{side}\n"
            for stem, side in [
                *((f"b{i}", "val") for i in range(3)),
                *((stem_of(i), "train") for i in range(6)),
            ]
        )
    )
    index = make(raw, tmp_path / "out", split="file", groups=str(groups), shard_mb=0.015)
    found = read_index(tmp_path / "out").raw["near_duplicates"]
    assert found == index["near_duplicates"]
    assert (found["val_with_twin"], found["exact"]) == (2, 1)
    assert found["worst"][0] == ["b0", stem_of(2), 1.0]
    assert found["worst"][1][:2] == ["b1", stem_of(3)]
    assert 0.95 < found["worst"][1][2] < 1
    assert verify_dataset(tmp_path / "out") == []


def test_records_without_fingerprints_leave_near_duplicates_out_of_the_index_and_are_not_made_again(
    raw, tmp_path
):
    make(raw, tmp_path)
    path = tmp_path / "val/shard-000000.json"
    record = json.loads(path.read_bytes())
    assert len(record.pop("fingerprints")) == record["count"]
    path.write_text(json.dumps(record))
    index = make(raw, tmp_path)
    assert "near_duplicates" not in index
    assert index["written"] == 0
    assert verify_dataset(tmp_path) == []
    assert "near_duplicates" not in make(raw, tmp_path / "b", split="none"), (
        "there is nothing to compare with"
    )
