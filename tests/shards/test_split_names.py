"""Words that people write for splits: each is one, or is refused in one line; a test stays one."""

import json
from collections import Counter

import pytest
from helpers.captures import make, stem_of, write_capture, write_raw

from depthdist.shards.index import read_index
from depthdist.shards.split_names import (
    WORDS,
    conflict,
    split_word,
    unclear_word,
    unused_names_warning,
)
from depthdist.shards.splits import choose_groups, read_groups
from depthdist.shards.verify import verify_dataset

pytestmark = pytest.mark.usefixtures("in_this_process")


def groups_file(path, names):
    """Captures 0, 1, ... are of these groups."""
    path.write_text("".join(f"{stem_of(i)},{name}\n" for i, name in enumerate(names)))
    return str(path)


def stems_of(out, split):
    return [ref.stem for ref in read_index(out).samples(split)]


# -------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize("split, word", [(s, word) for s, words in WORDS.items() for word in words])
def test_each_word_means_its_split_in_any_spelling(split, word):
    endings = ["", "s", "set", "-set", "_SET", " split", " Data", "_"]
    spelled = [way(word + end) for end in endings for way in (str.lower, str.upper, str.title)]
    assert {split_word(name) for name in spelled} == {split}


@pytest.mark.parametrize(
    "name", ["monday", "crate 1", "invalid", "latest", "evening", "trainer", "devices", "", "7"]
)
def test_other_names_mean_no_split(name):
    assert (split_word(name), unclear_word(name)) == ("", "")


@pytest.mark.parametrize("name", ["test1", "val_2", "train+val", "trainval", "test set 3"])
def test_a_name_that_may_be_a_split_is_refused(tmp_path, name):
    (tmp_path / "g").write_text(f"a,train\nb,{name}\n")
    with pytest.raises(ValueError, match=r"line 2: the group .* looks like a split") as caught:
        read_groups(tmp_path / "g", ["a", "b"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "names",
    [["val", "eval"], ["dev", "Valid"], ["test", "holdout"], ["eval", "dev"], ["valid", "invalid"]],
)
def test_two_words_of_which_one_may_mean_another_split_are_refused(names):
    assert "expected" in conflict(["train", *names])


@pytest.mark.parametrize("names", [["val", "validation"], ["eval", "test"], ["dev", "holdout"]])
def test_words_that_stand_for_one_split_each_are_not_refused(names):
    assert conflict(["train", *names]) == ""


# --------------------------------------------------------------------------------------- the groups


def test_a_group_named_test_is_the_test_and_no_other_group_goes_there(tmp_path):
    names = ["train", "a", "Test", "b", "val", "TEST", "c", "a"]
    raw, out = write_raw(tmp_path / "raw", len(names)), tmp_path / "out"
    make(raw, out, split="file", groups=groups_file(tmp_path / "g", names))
    assert stems_of(out, "test") == [stem_of(2), stem_of(5)]


def test_a_dataset_with_a_test_is_whole_and_its_rows_are_those_of_their_split(tmp_path):
    names = ["train", "train", "test", "val", "test"]
    raw, out = write_raw(tmp_path / "raw", len(names)), tmp_path / "out"
    make(raw, out, split="file", groups=groups_file(tmp_path / "g", names), shard_mb=0.02)
    assert verify_dataset(out) == []
    index = read_index(out)
    for split in ("train", "val", "test"):
        assert {str(ref.shard).split("/")[-2] for ref in index.samples(split)} == {split}
        assert stems_of(out, split) == [stem_of(i) for i, n in enumerate(names) if n == split]


def test_captures_of_the_test_do_not_count_in_the_share_of_validation(tmp_path):
    groups = ["test"] * 10 + [f"g{i}" for i in range(10)]
    fixed = {name: name for name in ("train", "val", "test")}
    found = choose_groups(tmp_path, groups, fixed, Counter(), 0.2, 0)
    assert Counter(found.values()) == {"train": 8, "val": 2, "test": 1}


def test_train_and_test_alone_make_a_dataset_without_validation_and_say_so(tmp_path):
    names = ["train", "train", "test"]
    raw, out = write_raw(tmp_path / "raw", len(names)), tmp_path / "out"
    index = make(raw, out, split="file", groups=groups_file(tmp_path / "g", names))
    assert list(index["splits"]) == ["test", "train"]
    assert "none for validation: training keeps its last weights" in index["note"]


def test_what_became_of_each_group_is_a_table_of_twelve_lines_at_most(tmp_path):
    names = ["test", "skip", *(f"g{i:02d}" for i in range(13))]
    raw = write_raw(tmp_path / "raw", len(names))
    note = make(raw, tmp_path / "out", split="file", groups=groups_file(tmp_path / "g", names))[
        "note"
    ].splitlines()
    assert len([line for line in note if " -> " in line]) == 12
    assert note[-1] == "  and 3 more groups"


def test_a_longer_name_with_a_splits_word_is_assigned_and_named(tmp_path):
    names = ["train", "val", "test_monday"]
    raw = write_raw(tmp_path / "raw", len(names))
    index = make(raw, tmp_path / "out", split="file", groups=groups_file(tmp_path / "g", names))
    assert "note: test_monday: the name holds a split's word" in index["note"]


# ------------------------------------------------------------------------------------------- append


def test_appended_captures_of_the_test_stay_in_the_test(tmp_path):
    raw, out = write_raw(tmp_path / "raw", 4), tmp_path / "out"
    names = ["train", "val", "test", "train"]
    make(raw, out, split="file", groups=groups_file(tmp_path / "g", names))
    write_raw(raw, 6)
    more = groups_file(tmp_path / "more", [*names, "test", "train"])
    make(raw, out, split="file", groups=more, append=True)
    assert stems_of(out, "test") == [stem_of(2), stem_of(4)]
    assert verify_dataset(out) == []
    with pytest.raises(ValueError, match="is in the dataset's test already"):
        moved = groups_file(tmp_path / "moved", ["train", "val", "train", "train", "test", "train"])
        make(raw, out, split="file", groups=moved, append=True)


def test_an_old_dataset_that_had_a_group_test_in_train_takes_no_more_of_it(tmp_path):
    raw, out = write_raw(tmp_path / "raw", 4), tmp_path / "out"
    make(raw, out, split="file", groups=groups_file(tmp_path / "g", ["a", "a", "val", "train"]))
    index = json.loads((out / "index.json").read_text())
    index["groups"] = {"test": "train"}  # as it was before a test was a split
    (out / "index.json").write_text(json.dumps(index))
    write_raw(raw, 5)
    (tmp_path / "new").write_text(f"{stem_of(4)},test\n")
    with pytest.raises(ValueError, match=r"captures of the group test in train, from before"):
        make(raw, out, split="file", groups=str(tmp_path / "new"), append=True)


def test_making_it_again_without_a_test_leaves_nothing_of_it(tmp_path):
    raw, out = write_raw(tmp_path / "raw", 3), tmp_path / "out"
    make(raw, out, split="file", groups=groups_file(tmp_path / "g", ["train", "val", "test"]))
    make(raw, out, split="file", groups=groups_file(tmp_path / "g", ["train", "val", "skip"]))
    assert not (out / "test").exists()


# ------------------------------------------------------------------------------------------ folders


def by_folders(root, folders):
    for i, folder in enumerate(folders):
        write_capture(root / folder / f"c{i}.png", root / folder / f"c{i}.npy", i)
    return root


def test_split_folder_takes_folders_as_they_are_named(tmp_path):
    raw = by_folders(tmp_path / "raw", ["train/a", "Training", "valid", "test/b", "skip", "test"])
    make(raw, tmp_path / "out", split="folder")
    assert [stems_of(tmp_path / "out", split) for split in ("train", "val", "test")] == [
        ["Training/c1", "train/a/c0"],
        ["valid/c2"],
        ["test/b/c3", "test/c5"],
    ]


@pytest.mark.parametrize(
    "folders, words",
    [
        (["train", "val", "monday"], r"1 of 3 captures lie in no folder of a split \(monday/c2\)"),
        (["train", "val/test"], "val/test/c1 lies in val and test; expected one split"),
        (["train", "val", "dev"], "dev and val could both mean val"),
    ],
)
def test_folders_that_do_not_say_the_split_are_refused_in_one_line(tmp_path, folders, words):
    with pytest.raises(ValueError, match=words) as caught:
        make(by_folders(tmp_path / "raw", folders), tmp_path / "out", split="folder")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("split", ["random", "none"])
def test_folders_named_like_splits_are_said_not_to_be_used(tmp_path, split):
    raw = by_folders(tmp_path / "raw", ["train"] * 3 + ["test"] * 3)
    note = make(raw, tmp_path / "out", split=split)["note"]
    assert note.startswith("WARNING   names that look like splits were not used (test, train)")
    assert "--split folder takes folders as they are named" in note


@pytest.mark.parametrize(
    "paths",
    [
        ["training/a", "training/b"],
        ["test_01", "test_02", "x"],
        ["images/a", "latest/b"],
        ["a", "b"],
    ],
)
def test_names_that_are_no_split_are_not_warned_of(paths):
    assert unused_names_warning(paths, ["train", "val", "train"], "") == ""


def test_files_that_begin_with_several_splits_words_are_said_not_to_be_used():
    warning = unused_names_warning(["train_1", "test_1", "test_2"], ["train", "train", "val"], "")
    assert "1 of test are in train, 1 of test are in val" in warning
