"""The dataset's format: plain tools read it, our reader checks it, verify catches any damage; and how it is made."""

import hashlib
import itertools
import json
import os
import pickle
import re
import tarfile
from collections import Counter
from io import BytesIO

import numpy as np
import pytest
from captures import capture, write_capture, write_raw
from PIL import Image

from depthdist.camera import fit_intrinsics
from depthdist.shards import pool
from depthdist.config import SettingsError, Size, parse, sentences
from depthdist.pairs import resize_rgb
from depthdist.shards.plan import ShardSettings, plan, split
from depthdist.shards.build import shard, statistics
from depthdist.shards.codec import decode_label, decode_sample, nearest, quantise
from depthdist.shards.groups import choose, read_groups
from depthdist.shards.index import read_index
from depthdist.shards.verify import verify
from depthdist.shards.writer import BIN, merge_stats, write_shard

SMALL = {"size": Size(28, 42), "workers": 1}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """No worker processes here: starting them costs a second a test; the command's tests use them."""
    monkeypatch.setattr("depthdist.shards.build.write_all", lambda jobs, *how: [write_shard(job) for job in jobs])


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_raw(tmp_path_factory.mktemp("raw"), 6)


def make(raw, out, **settings):
    return shard(ShardSettings(raw=str(raw), out=str(out), **{**SMALL, **settings}))


def members(ref):
    content = ref.shard.read_bytes()
    return {m: content[offset : offset + size] for m, (offset, size, _) in ref.members.items()}


@pytest.mark.parametrize("rgb", ["jpeg", "png", "raw"])
def test_a_sample_comes_back_within_half_a_step(raw, tmp_path, rgb):
    make(raw, tmp_path, rgb=rgb, subsampling="444", quality=100)
    index = read_index(tmp_path)
    assert index.step_mm == 4000 / 65535 and (index.size, index.depth_size) == ((28, 42), (30, 40))
    refs = [*index.samples("train"), *index.samples("val")]
    assert sorted(r.key for r in refs) == [f"{i:08d}" for i in range(6)]
    for ref in refs:
        picture, xyz = capture(int(ref.key))
        found = decode_sample(members(ref), index)
        valid = np.isfinite(xyz[:, :, 2])
        np.testing.assert_array_equal(found["mask"], valid)
        assert (found["depth"][~valid] == 0).all() and found["depth"].dtype == np.uint16
        assert np.abs(found["depth"] * index.step_mm - xyz[:, :, 2])[valid].max() <= index.raw["depth"]["max_error_mm"]
        assert np.abs(found["rgb"].astype(int) - resize_rgb(picture, (28, 42))).max() <= (12 if rgb == "jpeg" else 0)
        assert found["meta"]["stem"] == ref.stem
        assert found["meta"]["rgb"]["sha256"] == hashlib.sha256((raw / found["meta"]["rgb"]["path"]).read_bytes()).hexdigest()
        fitted = found["meta"]["intrinsics"]
        assert fitted["fx"] == pytest.approx(50, abs=1e-3) and fitted["fy"] == pytest.approx(60, abs=1e-3) and fitted["max_residual_px"] < 1e-3
        assert fitted["cx"] == pytest.approx(21, abs=1e-3) and fitted["cy"] == pytest.approx(14, abs=1e-3)


def test_plain_tarfile_reads_a_shard(raw, tmp_path):
    make(raw, tmp_path, split="none")
    with tarfile.open(tmp_path / "train/shard-000000.tar") as tar:
        found = tar.getmembers()
        assert [m.name for m in found[:4]] == [f"00000000.{m}" for m in ("depth.npy", "mask.npy", "meta.json", "rgb.jpg")]
        assert {(m.mtime, m.uid, m.gid, m.mode) for m in found} == {(0, 0, 0, 0o444)}
        depth = np.load(BytesIO(tar.extractfile(found[0]).read()))
        assert depth.dtype == np.uint16 and Image.open(tar.extractfile(found[3])).size == (42, 28)


def test_plain_webdataset_reads_a_shard(raw, tmp_path):
    wds = pytest.importorskip("webdataset")
    make(raw, tmp_path, split="none")
    path = str(tmp_path / "train/shard-000000.tar")
    samples = list(wds.WebDataset(path, shardshuffle=False).decode("rgb8"))
    assert len(samples) == 6 and samples[0]["rgb.jpg"].shape == (28, 42, 3) and samples[0]["depth.npy"].dtype == np.uint16
    assert samples[5]["meta.json"]["stem"].startswith("21-12-03-10-05")


def test_statistics_are_those_of_all_pixels_in_float64(raw, tmp_path):
    stats = make(raw, tmp_path, split="none", shard_mb=0.01)["splits"]["train"]["stats"]
    z = np.concatenate([c[np.isfinite(c)] for c in (capture(i)[1][:, :, 2].astype(np.float64) for i in range(6))])
    stored = np.rint(z / (4000 / 65535)) * (4000 / 65535)  # the bounds are of what a reader gets: none lies outside them
    assert (stats["min_mm"], stats["max_mm"], stats["valid_fraction"]) == (stored.min(), stored.max(), z.size / 7200)
    assert stats["mean_mm"] == pytest.approx(z.mean(), abs=0.005) and stats["std_mm"] == pytest.approx(z.std(), abs=0.005)
    expected = np.bincount((np.rint(z / (4000 / 65535)) // BIN).astype(int), minlength=1024)
    assert stats["histogram"]["counts"] == expected.tolist()


def test_statistics_merge_the_same_however_they_are_cut():
    parts = [{"valid": n, "sum": n * n, "sum_of_squares": n**4, "pixels": 9, "min_mm": 9.0 - n, "max_mm": 1.0 * n, "histogram": [n, 1]} for n in (2, 3, 5)]
    whole = merge_stats(parts)
    assert merge_stats([merge_stats(parts[:1]), merge_stats(parts[1:])]) == whole == merge_stats(parts[::-1])
    assert whole["histogram"] == [10, 3] and (whole["min_mm"], whole["max_mm"]) == (4.0, 5.0)
    assert statistics({**whole, "valid": 2, "sum": 4, "sum_of_squares": 10}, 0.5)["std_mm"] == 0.5  # of 1 and 3, in steps of 0.5


def test_depth_is_valid_between_near_and_far_only():
    z = np.array([[np.nan, np.inf, -5, 0, 0.01], [100, 100.5, 4000, 4000.5, 2000]], np.float32)
    value, counts = quantise(z, 100, 4000)
    np.testing.assert_array_equal(value > 0, [[0, 0, 0, 0, 0], [0, 1, 1, 0, 1]])
    assert value[1, 2] == 65535 and (counts["measured"], counts["nearer"], counts["farther"]) == (6, 2, 1)


def test_out_of_range_pixels_are_counted(raw, tmp_path):
    index = make(raw, tmp_path, near=1020, far=1150, split="none")
    z = np.stack([capture(i)[1][:, :, 2] for i in range(6)])
    assert index["out_of_range_pixels"] == ((z <= 1020) | (z > 1150)).sum() > 0
    assert index["measured"]["farther"] == (z > 1150).sum() and index["measured"]["measured_max_mm"] == np.nanmax(z)


def test_nearest_takes_the_pixel_of_the_nearest_centre():
    image = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(nearest(image, (3, 4)), image)
    np.testing.assert_array_equal(nearest(image, (6, 8)), image.repeat(2, 0).repeat(2, 1))
    assert nearest(image, (1, 1)) == 6


def test_intrinsics_of_a_single_column_are_unknown():
    assert fit_intrinsics(capture()[1][:, :1]) is None and fit_intrinsics(np.full((4, 4, 3), np.nan, np.float32)) is None


def test_58_pairs_split_into_46_and_12_by_seed():
    session = [0] * 58
    sides = [split(session, ShardSettings(seed=seed)) for seed in (42, 42, 43)]
    assert [sum(s) for s in sides] == [12, 12, 12] and sides[0] == sides[1] != sides[2]


@pytest.mark.parametrize("seed", range(5))
def test_no_session_stands_on_both_sides(seed):
    session = np.random.default_rng(seed).permutation([0] * 30 + [1] * 7 + [2] * 11 + [3] * 5 + [4] * 5).tolist()
    val = split(session, ShardSettings(split="session", seed=seed))
    assert not {n for n, v in zip(session, val) if v} & {n for n, v in zip(session, val) if not v}
    assert sum(val) == 12  # 5 + 7


def test_a_split_that_cannot_be_made_says_so():
    for session, how, words in (([0, 0, 0], "session", "one session"), ([0], "random", "cannot be split")):
        with pytest.raises(ValueError, match=words):
            split(session, ShardSettings(split=how))


def test_sessions_come_from_capture_times(tmp_path):
    index = make(write_raw(tmp_path / "raw", 6, minutes=30), tmp_path / "out", split="session", val=0.34)
    assert {name: s["count"] for name, s in index["splits"].items()} == {"train": 4, "val": 2} and "4 sessions in train, 2 in val" in index["note"]
    refs = read_index(tmp_path / "out").samples("train")
    assert all(decode_sample(members(r), read_index(tmp_path / "out"))["meta"]["session"] == int(r.key) for r in refs)


def test_one_size_a_dataset_unless_depth_is_resized(tmp_path):
    write_raw(tmp_path / "raw", 3)
    write_capture(tmp_path / "raw/odd.png", tmp_path / "raw/odd.npy", size=(20, 20))
    index = make(tmp_path / "raw", tmp_path / "a", split="none")
    assert index["splits"]["train"]["count"] == 3 and "xyz is 20x20; expected 30x40 as the other 3" in index["rejected"][0]["reason"]
    index = make(tmp_path / "raw", tmp_path / "b", split="none", depth_size="train")
    assert index["splits"]["train"]["count"] == 4 and index["depth"]["size"] == [28, 42] and verify(tmp_path / "b") == []


def test_a_second_run_writes_nothing_and_a_touched_file_only_its_shard(raw, tmp_path):
    raw = write_raw(tmp_path / "raw", 6)
    out = tmp_path / "out"
    first = make(raw, out, shard_mb=0.015, split="none")
    assert first["written"] > 2 and first["changed"]
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.rglob("*") if p.is_file() and p.name != ".lock"}
    again = make(raw, out, shard_mb=0.015, split="none")
    assert again["written"] == 0 and not again["changed"]
    assert before == {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in before}
    stem = "21-12-03-10-00-00_Zivid_acquisition"
    write_capture(raw / f"images/{stem}_color.png", raw / f"depth/{stem}_rawDepth.npy", 77)
    assert make(raw, out, shard_mb=0.015, split="none")["written"] == 1 and verify(out) == []


def test_other_settings_replace_the_dataset(raw, tmp_path):
    make(raw, tmp_path, shard_mb=0.015)
    (tmp_path / "train/mine.txt").write_text("a person's own file stays")
    make(raw, tmp_path, far=2000, split="none")
    found = sorted(re.sub("-[0-9a-f]{16}", "", p.name) for p in tmp_path.rglob("*") if p.is_file())
    assert found == [".lock", "index.json", "mine.txt", "names.txt", "rejects.jsonl", "samples.npy", "shard-000000.json", "shard-000000.tar"]
    assert read_index(tmp_path).far_mm == 2000 and [p for p in verify(tmp_path) if "mine.txt" not in p] == []


def test_a_run_that_breaks_leaves_the_old_dataset_and_goes_on_later(raw, tmp_path, monkeypatch):
    make(raw, tmp_path, shard_mb=0.015, split="none")
    old = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def break_after_two(jobs, *how):
        for job in jobs[:2]:
            write_shard(job)
        raise ValueError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr("depthdist.shards.build.write_all", break_after_two)
        with pytest.raises(ValueError, match="power cut"):
            make(raw, tmp_path, shard_mb=0.015, split="none", far=2000)
    assert all(p.read_bytes() == content for p, content in old.items()) and verify(tmp_path) == []
    index = make(raw, tmp_path, shard_mb=0.015, split="none", far=2000)
    assert index["written"] == index["splits"]["train"]["shards"] - 2 and verify(tmp_path) == [] and not (tmp_path / ".build").exists()


def test_a_run_killed_at_any_step_of_publishing_is_never_a_wrong_dataset(raw, tmp_path, monkeypatch):
    make(raw, tmp_path, shard_mb=0.015, split="none")
    real = os.replace
    for stop in range(30):
        calls = iter(range(stop + 1))

        def replace(a, b):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            real(a, b)

        with monkeypatch.context() as patch:
            patch.setattr("os.replace", replace)
            try:
                make(raw, tmp_path, shard_mb=0.015, split="none", far=2000 + stop)
                break
            except KeyboardInterrupt:
                problems = verify(tmp_path)
                assert problems == [] or "no index.json; the sharding did not finish" in problems[0]
    else:
        pytest.fail("never ran through")
    assert stop > 8 and verify(tmp_path) == [] and read_index(tmp_path).far_mm == 2000 + stop


def test_a_full_disk_while_publishing_leaves_the_old_dataset(raw, tmp_path, monkeypatch):
    make(raw, tmp_path, split="none")

    def full(path, content):
        raise ValueError(f"{path}: cannot be written: No space left on device")

    monkeypatch.setattr("depthdist.shards.build.write_whole", full)
    with pytest.raises(ValueError, match="No space left"):
        make(raw, tmp_path, split="none", far=2000)
    assert verify(tmp_path) == [] and read_index(tmp_path).far_mm == 4000


def test_an_index_that_is_not_ours_is_never_overwritten(raw, tmp_path):
    (tmp_path / "index.json").write_text('{"schema": "of somebody else"}')
    with pytest.raises(ValueError, match="was not written by tools/shard.py"):
        make(raw, tmp_path)
    with pytest.raises(ValueError, match="is RAW as well"):
        make(raw, raw)


@pytest.mark.parametrize("member", ["depth.npy", "mask.npy", "meta.json", "rgb.jpg"])
def test_verify_names_a_flipped_byte(raw, tmp_path, member):
    make(raw, tmp_path, split="none")
    ref = read_index(tmp_path).samples("train")[2]
    content = bytearray(ref.shard.read_bytes())
    content[ref.members[member][0] + ref.members[member][1] // 2] ^= 1
    ref.shard.write_bytes(content)
    problems = verify(tmp_path)
    assert len(problems) == 2 and "sha256" in problems[0] and f"train/shard-000000.tar: 00000002: {member}: crc32" in problems[1]


def damage_header(path):
    content = bytearray(path.read_bytes())
    content[read_index(path.parents[1]).samples("train")[1].members["mask.npy"][0] - 500] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage, words", [
    (lambda p: p.unlink(), "the shard is missing"), (lambda p: p.write_bytes(p.read_bytes()[:-4000]), "bytes; expected"),
    (lambda p: p.write_bytes(p.read_bytes()[:15000]), "rgb.jpg: .* bytes; expected|members; expected"), (damage_header, "the tar shows|not a tar"),
    (lambda p: p.with_suffix(".json").unlink(), "commit record"), (lambda p: p.with_suffix(".json").write_text("[]"), "commit record"),
    (lambda p: p.with_name("shard-000009.tar").write_bytes(b""), "does not belong"), (lambda p: p.write_bytes(b""), "0 bytes; expected"),
    (lambda p: p.parents[1].joinpath("index.json").write_text("{"), "not JSON"), (lambda p: p.parents[1].joinpath("index.json").unlink(), "has no index.json"),
    (lambda p: edit(p, lambda i: i.update(version=1)), "version is 1; this code reads 2"), (lambda p: edit(p, lambda i: i.pop("depth")), "broken"),
    (lambda p: edit(p, lambda i: i["shards"][0].update(name="../x/shard-000000.tar")), "never writes"),
    (lambda p: edit(p, lambda i: i["splits"]["train"].update(count=7)), "counts of splits and shards differ"),
    (lambda p: edit(p, lambda i: i["depth"].update(size=[40, 30])), "cannot be decoded: depth.npy: uint16 .* expected uint16"),
    (lambda p: edit(p, lambda i: i.update(size=[42, 28])), "cannot be decoded: rgb.jpg: 28x42; expected 42x28"),
])  # fmt: skip
def test_verify_names_each_damage(raw, tmp_path, damage, words):
    make(raw, tmp_path, split="none")
    damage(tmp_path / "train/shard-000000.tar")
    assert any(re.search(words, p) for p in verify(tmp_path)), verify(tmp_path)


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
    assert pickle.loads(sent).samples("train")[0] == index.samples("train")[0] and len(sent) < 300
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


def test_a_plan_depends_on_sizes_and_never_on_workers(raw, tmp_path):
    plans = [plan(ShardSettings(raw=str(raw), out=str(tmp_path), **{**SMALL, "workers": w, "shard_mb": 0.02})) for w in (1, 7)]
    assert plans[0] == plans[1] and Counter(len(j.items) for j in plans[0].jobs)[0] == 0
    assert pool.num_workers(0, 1) == 1 and pool.num_workers(7, 3) == 3


def test_settings_that_make_no_sense_are_all_reported():
    with pytest.raises(SettingsError) as caught:
        parse("", ShardSettings, argv=["raw", "--size", "750x1260", "--far", "0", "--val", "1.5", "--workers", "-1"])
    text = str(caught.value)
    for words in ("OUT is missing", "nearest are height 742 or 756, width 1260", "--far is 0.0", "--val is 1.5", "--workers is -1"):
        assert words in text


@pytest.mark.parametrize("depth_size", ["camera", "train"])
def test_a_groove_label_is_in_the_sample_and_a_new_one_makes_its_shard_again(tmp_path, depth_size):
    from depthdist.dataset import DataSettings, open_dataset

    raw, out = write_raw(tmp_path / "raw", 4), tmp_path / "out"
    make(raw, out, split="none", depth_size=depth_size)
    label = np.zeros((30, 40), np.uint16)
    label[3:20, 4:9], label[3:20, 20:30] = 7, 400
    Image.fromarray(label).save(raw / "images/21-12-03-10-02-00_Zivid_acquisition_grooves.png")
    assert make(raw, out, split="none", depth_size=depth_size)["changed"]
    dataset = open_dataset(DataSettings(data=(str(out),)))
    assert ["grooves" in dataset.meta("train", i) for i in range(4)] == [False, False, True, False]
    meta = dataset.meta("train", 2)
    assert np.array_equal(decode_label(meta["grooves"]), nearest(label, dataset.depth_size))
    assert meta["grooves_file"]["path"].endswith("_grooves.png") and len(meta["grooves_file"]["sha256"]) == 64
    assert verify(out) == []


def test_a_label_of_another_size_rejects_its_capture(tmp_path):
    raw = write_raw(tmp_path / "raw", 3)
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(raw / "images/21-12-03-10-01-00_Zivid_acquisition_grooves.png")
    index = make(raw, tmp_path / "out", split="none")
    assert read_index(tmp_path / "out").num_samples == 2 and "5x5; expected 30x40" in str(index["rejected"])


# ------------------------------------------------------------------------------------------------------- near-twins


def test_validation_pictures_with_a_twin_in_train_are_in_the_index_the_worst_first(tmp_path):
    raw, groups = write_raw(tmp_path / "raw", 6), tmp_path / "groups.csv"
    for i, seed in enumerate((2, 3)):  # b0 is capture 2, b1 nearly capture 3, b2 of its own
        write_capture(raw / f"b{i}.png", raw / f"b{i}.npy", seed)
    picture = np.asarray(Image.open(raw / "b1.png")).astype(int)
    Image.fromarray((picture // 2 + 40).astype(np.uint8)).save(raw / "b1.png")
    write_capture(raw / "b2.png", raw / "b2.npy", 90)
    groups.write_text("".join(f"{stem},{side}\n" for stem, side in [*((f"b{i}", "val") for i in range(3)), *((stem_of(i), "train") for i in range(6))]))
    index = make(raw, tmp_path / "out", split="file", groups=str(groups), shard_mb=0.015)
    found = read_index(tmp_path / "out").raw["near_duplicates"]
    assert found == index["near_duplicates"] and (found["val_with_twin"], found["exact"]) == (2, 1)
    assert found["worst"][0] == ["b0", stem_of(2), 1.0] and found["worst"][1][:2] == ["b1", stem_of(3)] and 0.95 < found["worst"][1][2] < 1
    assert verify(tmp_path / "out") == []


def test_records_without_fingerprints_leave_twins_out_of_the_index_and_are_not_made_again(raw, tmp_path):
    make(raw, tmp_path)
    path = tmp_path / "val/shard-000000.json"
    record = json.loads(path.read_bytes())
    assert len(record.pop("fingerprints")) == record["count"]
    path.write_text(json.dumps(record))
    index = make(raw, tmp_path)
    assert "near_duplicates" not in index and index["written"] == 0 and verify(tmp_path) == []
    assert "near_duplicates" not in make(raw, tmp_path / "b", split="none"), "there is nothing to compare with"


# ------------------------------------------------------------------------------------------------------- groups


def stem_of(i, minutes=1):
    return f"21-12-03-{10 + i * minutes // 60:02d}-{i * minutes % 60:02d}-00_Zivid_acquisition"


def groups_file(path, names, tab=False):
    """Captures 0, 1, ... are of these groups."""
    path.write_text("".join(f"{stem_of(i)}{chr(9) if tab else ','}{name}\n" for i, name in enumerate(names)))
    return str(path)


def side_of(out):
    index = read_index(out)
    return {ref.stem: split for split in index.raw["splits"] for ref in index.samples(split)}


@pytest.mark.parametrize("seed", range(4))
def test_captures_of_one_group_stay_on_one_side_and_skipped_ones_away(tmp_path, seed):
    names = ["a", "b", "skip", "a", "c", "b", "train", "c", "val", "c"]
    raw, out = write_raw(tmp_path / "raw", len(names)), tmp_path / "out"
    index = make(raw, out, split="file", groups=groups_file(tmp_path / "g.tsv", names, tab=True), seed=seed, val=0.3)
    sides = side_of(out)
    assert sides.keys() == {stem_of(i) for i in range(10) if i != 2} and sides[stem_of(6)] == "train" and sides[stem_of(8)] == "val"
    assert all(sides[stem_of(i)] == sides[stem_of(j)] for i, j in ((0, 3), (1, 5), (4, 7), (4, 9)))
    assert index["splits"]["val"]["count"] == 3, "0.3 of 9: val and either a or b"
    assert index["groups"] == {name: sides[stem_of(names.index(name))] for name in "abc"}
    assert "3 groups in train, 2 in val; 1 captures skipped" in index["note"] and verify(out) == []
    assert not make(raw, out, split="file", groups=groups_file(tmp_path / "g.csv", names), seed=seed, val=0.3)["changed"], "another name, the same content"


@pytest.mark.parametrize("seed", range(20))
def test_validation_gets_as_near_to_its_share_as_whole_groups_allow(tmp_path, seed):
    rng = np.random.default_rng(seed)
    groups = [f"g{i}" for i in rng.integers(0, 6, 25)]
    sides, there = {"g0": True, "g1": False} if seed % 2 else {}, Counter({True: 3, False: 5} if seed % 3 else {})
    found = choose(tmp_path, groups, sides, there, 0.3, seed)
    assert set(found) == set(groups) and all(found[g] == sides[g] for g in sides if g in found)
    free = sorted(set(groups) - sides.keys())

    def off(chosen):
        return abs(there[True] + sum(chosen[g] for g in groups) - int(0.3 * (25 + there.total()) + 0.5))

    def whole(chosen):
        return {chosen[g] for g in groups} | set(there) == {True, False}

    every = [{**sides, **dict(zip(free, picks))} for picks in itertools.product((True, False), repeat=len(free))]
    assert off({**sides, **found}) == min(off(chosen) for chosen in every if whole(chosen)) and whole({**sides, **found})
    assert choose(tmp_path, groups[::-1], sides, there, 0.3, seed) == found, "the order of captures does not matter"


def test_header_comments_blank_lines_quotes_and_a_byte_order_mark_are_read(tmp_path):
    path = tmp_path / "g.csv"
    path.write_bytes(b"\xef\xbb\xbf# who\r\n\r\nStem, Group\r\n a/x , one \r\n# between\r\n\"a/y,2\",two words\r\nz\tskip\r\n")
    assert read_groups(path, ["a/x", "a/y,2", "b/z"]) == {"a/x": "one", "a/y,2": "two words", "b/z": "skip"}
    path.write_text("stem,here\n")
    assert read_groups(path, ["stem"]) == {"stem": "here"}, "a capture of that name is no header"


def test_the_three_fixed_names_mean_the_same_in_capitals(tmp_path):
    raw, out, names = write_raw(tmp_path / "raw", 6), tmp_path / "out", ["Train", "VAL", "Skip", "A", "a", "TRAIN"]
    index = make(raw, out, split="file", groups=groups_file(tmp_path / "g", names), val=0.4)
    sides = side_of(out)
    assert [sides.get(stem_of(i)) for i in (0, 1, 2, 5)] == ["train", "val", None, "train"]
    assert set(index["groups"]) == {"A", "a"} and sides[stem_of(3)] != sides[stem_of(4)], "other names are as they are written"
    assert "in capitals or not" in sentences(ShardSettings)["groups"]


@pytest.mark.parametrize("text, words", [
    ("a/x,g\na/y\nb/x,g\n", ["line 2: found 1 field (a/y); expected two, stem,group"]),
    ("a/x,g,h\na/y,g\nb/x,g\n", ["line 1: found 3 fields (a/x, g, h)"]),
    ("a/x,\na/y,g\nb/x,g\n", ["line 1: found 2 fields (a/x, ); expected two"]),
    ("a/x,g\na/y,g\nb/x,g\nw,g\n", ["line 4: w is no capture; expected a stem such as a/x"]),
    ("a/x,g\ny,g\nb/x,g\nx,g\n", ["line 4: x could be a/x or b/x; expected its folder with it"]),
    ("a/x,g\ny,g\nb/x,g\na/y,g\n", ["line 4: a/y is on line 2 already"]),
    ("# nothing\n", ["3 of 3 captures have no line (a/x, a/y, b/x); expected one each"]),
    ("a/y,g\nq,g\n", ["line 2: q is no capture", "2 of 3 captures have no line (a/x, b/x)"]),
])  # fmt: skip
def test_each_problem_of_a_groups_file_is_one_line_that_says_where(tmp_path, text, words):
    path = tmp_path / "g.csv"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_groups(path, ["a/x", "a/y", "b/x"])
    lines = [line for line in str(caught.value).split("\n") if "have no line" not in line or any("have no line" in w for w in words)]
    assert [w in line and line.startswith(f"{path}: ") for w, line in zip(words, lines, strict=True)] == [True] * len(words), lines


def test_many_problems_are_five_lines_and_their_number(tmp_path):
    (tmp_path / "g").write_text("".join(f"no{i},g\n" for i in range(30)))
    with pytest.raises(ValueError) as caught:
        read_groups(tmp_path / "g", [f"s{i}" for i in range(9)])
    assert len(str(caught.value).split("\n")) == 6 and str(caught.value).endswith("26 more problems")
    with pytest.raises(ValueError, match=r"9 of 9 captures have no line \(s0, s1, s2, ...\)"):
        (tmp_path / "g").write_text("")
        read_groups(tmp_path / "g", [f"s{i}" for i in range(9)])


@pytest.mark.parametrize("names, words", [
    (["a"] * 4, "val would be empty: found 1 group that can go to either side, 0 captures fixed to train and 0 to val"),
    (["val", "skip", "val", "val"], "train would be empty: found 0 groups"), (["train"] * 4, "val would be empty"),
    (["skip"] * 4, "all 4 captures are of the group skip"),
])  # fmt: skip
def test_a_side_that_would_be_empty_is_refused_before_any_work(tmp_path, names, words):
    raw = write_raw(tmp_path / "raw", 4)
    with pytest.raises(ValueError, match=words):
        make(raw, tmp_path / "out", split="file", groups=groups_file(tmp_path / "g", names))
    assert not (tmp_path / "out").exists()


def test_one_group_alone_goes_to_the_side_that_has_none(tmp_path):
    raw = write_raw(tmp_path / "raw", 4)
    make(raw, tmp_path / "out", split="file", groups=groups_file(tmp_path / "g", ["train", "a", "a", "a"]))
    assert [side_of(tmp_path / "out")[stem_of(i)] for i in range(4)] == ["train", "val", "val", "val"]


def test_a_plan_reacts_to_what_the_groups_file_says(raw, tmp_path):
    def planned(names):
        return plan(ShardSettings(raw=str(raw), out=str(tmp_path), split="file", groups=groups_file(tmp_path / "g", names), **SMALL))

    first = planned(["train"] * 5 + ["val"])
    assert planned(["train"] * 5 + ["val"]).hash == first.hash
    moved = planned(["train"] * 4 + ["val", "val"])
    assert moved.hash != first.hash and not {job.hash for job in moved.jobs} & {job.hash for job in first.jobs}
    renamed = planned(["train"] * 5 + ["b"])
    assert renamed.hash != first.hash and [job.hash for job in renamed.jobs] == [job.hash for job in first.jobs], "the same shards"


def test_moving_a_group_makes_the_dataset_again(tmp_path):
    raw, out = write_raw(tmp_path / "raw", 6), tmp_path / "out"
    for names in (["train"] * 4 + ["val"] * 2, ["val"] * 2 + ["train"] * 4):
        assert make(raw, out, split="file", groups=groups_file(tmp_path / "g", names))["changed"]
        assert [side_of(out)[stem_of(i)] for i in range(6)] == names and verify(out) == []


def test_appended_captures_join_the_side_of_their_group(tmp_path):
    raw, out, old = write_raw(tmp_path / "raw", 6), tmp_path / "out", ["a", "a", "a", "b", "b", "train"]
    make(raw, out, split="file", groups=groups_file(tmp_path / "g", old), val=0.4)
    before = side_of(out)
    assert before[stem_of(3)] == "val" and before[stem_of(0)] == "train"
    write_raw(raw, 13)
    new = ["b", "b", "b", "a", "c", "skip", "val"]  # by their numbers alone, a and c would be for validation
    (tmp_path / "new").write_text("".join(f"{stem_of(6 + i)},{name}\n" for i, name in enumerate(new)))  # the old captures need no line
    index = make(raw, out, split="file", groups=str(tmp_path / "new"), val=0.4, append=True)
    after = side_of(out)
    assert {stem: after[stem] for stem in before} == before and len(after) == 12
    assert [after[stem_of(i)] for i in (6, 7, 8, 9, 10, 12)] == ["val", "val", "val", "train", "train", "val"]
    assert index["groups"] == {"a": "train", "b": "val", "c": "train"} and verify(out) == []
    again = make(raw, out, split="file", groups=groups_file(tmp_path / "g", old + new), val=0.4, append=True)
    assert not again["changed"], "all captures may have a line"


@pytest.mark.parametrize("old, words", [
    ("skip", "is in the dataset's val already; --append cannot skip it"), ("train", "is in the dataset's val already, and its group train is for train"),
    ("a", "is in the dataset's val already, and its group a is for train"),
])  # fmt: skip
def test_append_never_moves_what_is_written(tmp_path, old, words):
    raw, out, names = write_raw(tmp_path / "raw", 4), tmp_path / "out", ["a", "a", "a", "b"]
    make(raw, out, split="file", groups=groups_file(tmp_path / "g", names))
    write_raw(raw, 5)
    with pytest.raises(ValueError, match=words):
        make(raw, out, split="file", groups=groups_file(tmp_path / "g", [*names[:3], old, "c"]), append=True)
    with pytest.raises(ValueError, match="--split was file, is random"):
        make(raw, out, append=True)


def test_groups_and_split_file_need_each_other():
    for words, expected in (
        (["raw", "out", "--split", "file"], "--groups is missing: expected --groups FILE"),
        (["raw", "out", "--groups", "g.csv"], "--groups is g.csv and --split is random: expected --split file"),
        (["--index", "d", "--split", "file", "--groups", "g"], "--split is file with --index: expected random, session or none"),
    ):
        with pytest.raises(SettingsError, match=expected) as caught:
            parse("", ShardSettings, argv=words)
        assert "\n" not in str(caught.value)
