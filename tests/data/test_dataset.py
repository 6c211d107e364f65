"""The data of a run: what may be opened, what mixed data is as a whole, and one line for everything
that is wrong."""

import json
import pickle
import shutil

import fsspec
import numpy as np
import pytest
from helpers.captures import capture, write_capture
from helpers.runs import make_shards

from depthdist.core.settings import Size
from depthdist.data.dataset import DataSettings, ReadSettings, open_dataset


def make(folder, first=0, count=4, **settings):
    """Shards of `count` captures from seed `first` on; their stems are of the folder's name."""
    for i in range(count):
        name = f"{folder.name}{i}"
        write_capture(
            folder / f"raw/images/{name}_color.png",
            folder / f"raw/depth/{name}_rawDepth.npy",
            first + i,
        )
    return make_shards(folder, **{"split": "none", "rgb": "jpeg", **settings})


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """One of 4 training samples in 2 shards.

    One of 6 with another depth step, 4 for training and 2 for validation, each a shard.
    """
    folder = tmp_path_factory.mktemp("data")
    return make(folder / "a", shard_mb=0.02), make(
        folder / "b", 100, 6, far=2500.0, split="random", val=0.33, shard_mb=0.001
    )


def opened(*places, **settings):
    return open_dataset(DataSettings(data=tuple(map(str, places)), **settings))


def refusal(*places, **settings):
    with pytest.raises(ValueError) as caught:
        opened(*places, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ----------------------------------------------------------------------------------- several as one


def test_samples_are_counted_through_all_parts_that_have_the_split(places):
    dataset = opened(*places)
    assert (dataset.count("train"), dataset.count("val")) == (8, 2)
    found = [dataset.find("train", i) for i in range(8)]
    assert [index.step_mm for index, _ in found] == [4000 / 65535] * 4 + [2500 / 65535] * 4
    assert [ref.stem for _, ref in found[:4]] == ["a0", "a1", "a2", "a3"] and {
        ref.stem[0] for _, ref in found[4:]
    } == {"b"}
    assert dataset.find("val", 1)[0].step_mm == 2500 / 65535
    with pytest.raises(IndexError):
        dataset.find("train", 8)
    with pytest.raises(ValueError, match=r"no split 'test'; it has train"):
        dataset.count("test")


def test_it_names_its_places_and_the_splits_of_all_parts(places):
    dataset = opened(*places)
    assert dataset.places == [str(place) for place in places]
    assert dataset.splits == ["train", "val"] and opened(places[0]).splits == ["train"]


def test_a_full_image_is_the_capture_that_the_sample_was_made_of(places, tmp_path):
    dataset = opened(*places)
    raw = places[0].parent / "raw"
    assert np.array_equal(dataset.full_image("train", 1, raw), capture(1)[0])
    with pytest.raises(ValueError, match=r"--raw .*: it has no images/a1_color.png"):
        dataset.full_image("train", 1, tmp_path)
    assert dataset.groove_label("train", 1) is None


def test_statistics_are_those_of_all_parts_pixels_in_float64(places):
    dataset = opened(*places)
    for split, parts in (("train", [0, 1]), ("val", [1])):
        steps = [dataset.parts[part].step_mm for part in parts]
        seeds = [
            [int(ref.stem[1:]) + 100 * part for ref in dataset.parts[part].samples(split)]
            for part in parts
        ]
        z = [capture(seed)[1][:, :, 2].astype(np.float64) for own in seeds for seed in own]
        stored = np.concatenate(
            [
                np.rint(v[np.isfinite(v)] / s) * s
                for v, s in zip(z, np.repeat(steps, [len(own) for own in seeds]))
            ]
        )
        stats = dataset.stats(split)
        assert (stats["min_mm"], stats["max_mm"], stats["valid_pixels"]) == (
            stored.min(),
            stored.max(),
            stored.size,
        )
        assert stats["mean_mm"] == pytest.approx(stored.mean(), rel=1e-9) and stats[
            "std_mm"
        ] == pytest.approx(stored.std(), rel=1e-9)


def test_shards_of_two_parts_are_never_taken_for_one_another(places):
    order = opened(*places, shuffle_shards=1).order(0)
    assert order.block == 1 and order.shards.tolist() == [0, 0, 1, 1, 2, 3, 4, 5]
    for epoch in range(5):
        place = order.epoch(epoch).argsort()
        assert abs(place[0] - place[1]) == abs(place[2] - place[3]) == 1


def test_a_weight_without_training_samples_is_nobody_elses(places, tmp_path):
    only_val = retold(
        places[0],
        tmp_path / "val",
        lambda raw: raw["splits"].update(val=raw["splits"].pop("train")),
    )
    order = opened(only_val, places[1], weights=(3.0, 2.0)).order(0)
    assert sorted(order.epoch(0).tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]


def retold(place, copy, change):
    """A copy of a dataset whose index.json is another."""
    shutil.copytree(place, copy)
    raw = json.loads((copy / "index.json").read_text())
    change(raw)
    (copy / "index.json").write_text(json.dumps(raw))
    return copy


def test_the_sha256_names_all_that_decides_which_sample_comes_when(places, tmp_path):
    shutil.copytree(places[0], tmp_path / "elsewhere")
    same = {
        opened(places[0]).sha256,
        opened(tmp_path / "elsewhere").sha256,
        opened(places[0], weights=(1.0,)).sha256,
    }
    assert same == {opened(places[0]).parts[0].sha256}
    others = [
        opened(*places),
        opened(*places[::-1]),
        opened(*places, weights=(1.0, 0.5)),
        opened(places[0], weights=(2.0,)),
        opened(*places, shuffle_shards=2),
    ]
    assert len(same | {dataset.sha256 for dataset in others}) == 6
    assert opened(*places).sha256 == opened(*places, weights=(1.0, 1.0)).sha256


def test_a_dataset_goes_to_another_process_without_its_table(places):
    dataset = opened(*places, weights=(1.0, 0.5), shuffle_shards=1)
    content = pickle.dumps(dataset)
    again = pickle.loads(content)
    assert len(content) < 1000 and again.sha256 == dataset.sha256
    assert [again.find("train", i)[1] for i in range(8)] == [
        dataset.find("train", i)[1] for i in range(8)
    ]


# ------------------------------------------------------------------------------------ where it lies


def test_a_file_url_and_a_relative_path_are_folders(places, monkeypatch):
    monkeypatch.chdir(places[0].parent)
    for place in (f"file://{places[0]}", "shards", "./shards/", "../a/shards"):
        dataset = opened(place)
        assert (
            not dataset.remote
            and dataset.find("train", 0)[1].shard.read_bytes()
            and not DataSettings(data=(place,)).problems()
        )


def test_the_same_data_twice_is_refused(places):
    text = refusal(places[0], f"file://{places[0]}")
    assert "the same data twice; --weights 2 shows it twice" in text


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"size": Size(42, 42)}, "size is 42x42, that of "),
        ({"depth_size": "train"}, "depth size is 28x42, that of "),
    ],
)
def test_what_is_mixed_must_have_one_size(places, tmp_path, settings, told):
    other = make(tmp_path / "c", 50, 1, **settings)
    text = refusal(places[0], other)
    assert text.startswith(f"{other}: {told}{places[0]} ") and "shard again with --" in text


def test_a_cache_that_cannot_hold_what_is_shuffled_is_refused(places, tmp_path):
    remote = put(places[0])
    shard = max(part["bytes"] for part in opened(places[0]).parts[0].shards)
    how = {"cache": tmp_path / "cache", "cache_gb": 2.5 * shard / 1e9}
    assert opened(remote, **how).remote and opened(places[0], **how, shuffle_shards=7)
    how["cache_gb"] = 1.5 * shard / 1e9
    text = refusal(remote, **how)
    assert text.startswith(f"{remote}: ") and all(
        part in text for part in ("shuffled over all shards", "--cache-gb", "--shuffle-shards")
    )
    assert "two times 1 shards" in refusal(remote, **how, shuffle_shards=1)


def put(place):
    """The dataset in fsspec's memory, as a URL."""
    system = fsspec.filesystem("memory")
    if system.exists("/tires"):  # into a folder that is there it would be put one deeper
        system.rm("/tires", recursive=True)
    system.put(str(place), "/tires", recursive=True)
    return "memory://tires"


# ----------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("url", ["", "file://"])
def test_a_missing_dataset_names_both_commands_that_make_one(tmp_path, url):
    (line,) = DataSettings(data=(f"{url}{tmp_path}/tires",)).problems()
    assert (
        f"`python -m depthdist.synthetic {tmp_path}/tires_raw`" in line
        and f"`depthdist shard {tmp_path}/tires_raw {tmp_path}/tires`" in line
    )
    assert line.startswith(f"--data {tmp_path}/tires: no such folder") and "\n" not in line


def test_another_size_than_the_shards_is_a_problem_that_names_both(places):
    data = (str(places[0]),)
    assert (
        DataSettings(data=data).problems()
        == DataSettings(data=data, size=Size(28, 42)).problems()
        == []
    )
    (line,) = DataSettings(data=data, size=Size(756, 1260)).problems()
    assert "--size is 756x1260" in line and "28x42" in line and "leave it out" in line


def test_all_that_is_wrong_is_listed(places, tmp_path):
    wrong = {
        "threads": -1,
        "processes": -1,
        "max_damaged": -1,
        "stall": 0.0,
        "cache_gb": 0.0,
        "shuffle_shards": -1,
        "weights": (1.0, -2.0),
    }
    for data in ((str(places[0]),), (str(tmp_path / "none"),)):
        found = DataSettings(data=data, size=Size(14, 14), **wrong).problems()
        flags = [
            "--threads",
            "--processes",
            "--max-damaged",
            "--stall",
            "--cache-gb",
            "--shuffle-shards",
            "--weights",
            "--weights",
        ]
        assert [line.split()[0] for line in found] == [
            *flags,
            "--size" if len(data[0]) == len(str(places[0])) else "--data",
        ]
        assert "expected one for each" in found[6] and "-2: expected > 0" in found[7]


@pytest.mark.parametrize("weight", [0.0, float("inf"), float("nan")])
def test_a_weight_must_be_a_number_above_0(places, weight):
    (line,) = DataSettings(data=(str(places[0]),), weights=(weight,)).problems()
    assert line == f"--weights has {weight:g}: expected > 0"


def test_no_data_is_a_problem():
    assert DataSettings(data=()).problems() == [
        "--data is empty; expected a folder of captures, or one that depthdist shard wrote"
    ]


def test_data_without_training_samples_is_a_problem_among_the_others(places, tmp_path):
    place = retold(
        places[0],
        tmp_path / "val",
        lambda raw: raw["splits"].update(val=raw["splits"].pop("train")),
    )
    found = DataSettings(data=(str(place),), threads=-1).problems()
    assert len(found) == 2 and f"--data {place}: has no split 'train'; it has val" in found[1]


def test_a_broken_dataset_is_one_line_without_advice_to_make_another(places, tmp_path):
    place = tmp_path / "tires"
    shutil.copytree(places[0], place)
    opened(place).find("train", 0)[1].shard.unlink()
    (line,) = DataSettings(data=(str(place),)).problems()
    assert "the shard of 2 samples is missing" in line and "make_tires" not in line
    assert not DataSettings(data=(str(place),), damaged="quarantine").problems(), (
        "it is what quarantine is for"
    )


@pytest.mark.parametrize(
    ("given", "cores", "ranks", "expected"),
    [(0, 2, 1, 2), (0, 16, 1, 4), (0, 16, 8, 2), (0, 2, 8, 1), (3, 2, 8, 3)],
)
def test_threads_are_one_a_core_of_the_rank_and_4_at_most(
    monkeypatch, given, cores, ranks, expected
):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert ReadSettings(threads=given).num_threads == expected


@pytest.mark.parametrize("data", [("",), ("", ""), ("RAW", " ")])
def test_an_empty_place_is_not_the_folder_that_we_are_in(data):
    expected = "--data has an empty place: expected folders of captures or of shards"
    assert DataSettings(data=data).problems() == [expected]
