"""--split file: a file of groups says which captures stay together and which side they are on."""

import itertools
from collections import Counter

import numpy as np
import pytest
from helpers.captures import SMALL, make, stem_of, write_raw

from depthdist.core.command_line import parse
from depthdist.core.errors import SettingsError
from depthdist.core.settings import field_help
from depthdist.shards.index import read_index
from depthdist.shards.plan import make_plan
from depthdist.shards.settings import ShardSettings
from depthdist.shards.splits import choose_groups, read_groups
from depthdist.shards.verify import verify_dataset

pytestmark = pytest.mark.usefixtures("in_this_process")


def groups_file(path, names, tab=False):
    """Captures 0, 1, ... are of these groups."""
    path.write_text(
        "".join(f"{stem_of(i)}{chr(9) if tab else ','}{name}\n" for i, name in enumerate(names))
    )
    return str(path)


def side_of(out):
    index = read_index(out)
    return {ref.stem: split for split in index.raw["splits"] for ref in index.samples(split)}


@pytest.mark.parametrize("seed", range(4))
def test_captures_of_one_group_stay_on_one_side_and_skipped_ones_away(tmp_path, seed):
    names = ["a", "b", "skip", "a", "c", "b", "train", "c", "val", "c"]
    raw, out = write_raw(tmp_path / "raw", len(names)), tmp_path / "out"
    index = make(
        raw,
        out,
        split="file",
        groups=groups_file(tmp_path / "g.tsv", names, tab=True),
        seed=seed,
        val=0.3,
    )
    sides = side_of(out)
    assert sides.keys() == {stem_of(i) for i in range(10) if i != 2}
    assert sides[stem_of(6)] == "train"
    assert sides[stem_of(8)] == "val"
    assert all(sides[stem_of(i)] == sides[stem_of(j)] for i, j in ((0, 3), (1, 5), (4, 7), (4, 9)))
    assert index["splits"]["val"]["count"] == 3, "0.3 of 9: val and either a or b"
    assert index["groups"] == {name: sides[stem_of(names.index(name))] for name in "abc"}
    assert "3 groups in train, 2 in val; 1 captures skipped" in index["note"]
    assert verify_dataset(out) == []
    assert not make(
        raw, out, split="file", groups=groups_file(tmp_path / "g.csv", names), seed=seed, val=0.3
    )["changed"], "another name, the same content"


@pytest.mark.parametrize("seed", range(20))
def test_validation_gets_as_near_to_its_share_as_whole_groups_allow(tmp_path, seed):
    rng = np.random.default_rng(seed)
    groups = [f"g{i}" for i in rng.integers(0, 6, 25)]
    sides, there = (
        {"g0": "val", "g1": "train"} if seed % 2 else {},
        Counter({"val": 3, "train": 5} if seed % 3 else {}),
    )
    found = choose_groups(tmp_path, groups, sides, there, 0.3, seed)
    assert set(found) == set(groups)
    assert all(found[g] == sides[g] for g in sides if g in found)
    free = sorted(set(groups) - sides.keys())

    def off(chosen):
        return abs(
            there["val"]
            + sum(chosen[g] == "val" for g in groups)
            - int(0.3 * (25 + there.total()) + 0.5)
        )

    def whole(chosen):
        return {chosen[g] for g in groups} | set(there) == {"train", "val"}

    every = [
        {**sides, **dict(zip(free, picks))}
        for picks in itertools.product(("train", "val"), repeat=len(free))
    ]
    assert off({**sides, **found}) == min(off(chosen) for chosen in every if whole(chosen))
    assert whole({**sides, **found})
    assert choose_groups(tmp_path, groups[::-1], sides, there, 0.3, seed) == found, (
        "the order of captures does not matter"
    )


def test_header_comments_blank_lines_quotes_and_a_byte_order_mark_are_read(tmp_path):
    path = tmp_path / "g.csv"
    path.write_bytes(
        b'\xef\xbb\xbf# who\r\n\r\nStem, Group\r\n a/x , one \r\n# between\r\n"a/y,2",two'
        b" words\r\nz\tskip\r\n"
    )
    assert read_groups(path, ["a/x", "a/y,2", "b/z"]) == {
        "a/x": "one",
        "a/y,2": "two words",
        "b/z": "skip",
    }
    path.write_text("stem,here\n")
    assert read_groups(path, ["stem"]) == {"stem": "here"}, "a capture of that name is no header"


def test_the_three_fixed_names_mean_the_same_in_capitals(tmp_path):
    raw, out, names = (
        write_raw(tmp_path / "raw", 6),
        tmp_path / "out",
        ["Train", "VAL", "Skip", "A", "a", "TRAIN"],
    )
    index = make(raw, out, split="file", groups=groups_file(tmp_path / "g", names), val=0.4)
    sides = side_of(out)
    assert [sides.get(stem_of(i)) for i in (0, 1, 2, 5)] == ["train", "val", None, "train"]
    assert set(index["groups"]) == {"A", "a"} and sides[stem_of(3)] != sides[stem_of(4)], (
        "other names are as they are written"
    )
    assert "in upper or lower case" in field_help(ShardSettings)["groups"]


@pytest.mark.parametrize(
    "text, words",
    [
        ("a/x,g\na/y\nb/x,g\n", ["line 2: found 1 field (a/y); expected two, stem,group"]),
        ("a/x,g,h\na/y,g\nb/x,g\n", ["line 1: found 3 fields (a/x, g, h)"]),
        ("a/x,\na/y,g\nb/x,g\n", ["line 1: found 2 fields (a/x, ); expected two"]),
        ("a/x,g\na/y,g\nb/x,g\nw,g\n", ["line 4: w is no capture; expected a stem such as a/x"]),
        (
            "a/x,g\ny,g\nb/x,g\nx,g\n",
            ["line 4: x could be a/x or b/x; expected its folder with it"],
        ),
        ("a/x,g\ny,g\nb/x,g\na/y,g\n", ["line 4: a/y is on line 2 already"]),
        ("# nothing\n", ["3 of 3 captures have no line (a/x, a/y, b/x); expected one each"]),
        ("a/y,g\nq,g\n", ["line 2: q is no capture", "2 of 3 captures have no line (a/x, b/x)"]),
    ],
)
def test_each_problem_of_a_groups_file_is_one_line_that_says_where(tmp_path, text, words):
    path = tmp_path / "g.csv"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_groups(path, ["a/x", "a/y", "b/x"])
    lines = [
        line
        for line in str(caught.value).split("\n")
        if "have no line" not in line or any("have no line" in w for w in words)
    ]
    assert [
        w in line and line.startswith(f"{path}: ") for w, line in zip(words, lines, strict=True)
    ] == [True] * len(words), lines


def test_many_problems_are_five_lines_and_their_number(tmp_path):
    (tmp_path / "g").write_text("".join(f"no{i},g\n" for i in range(30)))
    with pytest.raises(ValueError) as caught:
        read_groups(tmp_path / "g", [f"s{i}" for i in range(9)])
    assert len(str(caught.value).split("\n")) == 6
    assert str(caught.value).endswith("26 more problems")
    with pytest.raises(ValueError, match=r"9 of 9 captures have no line \(s0, s1, s2, ...\)"):
        (tmp_path / "g").write_text("")
        read_groups(tmp_path / "g", [f"s{i}" for i in range(9)])


@pytest.mark.parametrize(
    "names, words",
    [
        (
            ["a"] * 4,
            "val would be empty: found 1 group that can go to either side, 0 captures fixed to"
            " train and 0 to val",
        ),
        (["val", "skip", "val", "val"], "train would be empty: found 0 groups"),
        (["train"] * 4, "val would be empty"),
        (["skip"] * 4, r"all 4 captures are to be left out \(skip\)"),
    ],
)
def test_a_side_that_would_be_empty_is_refused_before_any_work(tmp_path, names, words):
    raw = write_raw(tmp_path / "raw", 4)
    with pytest.raises(ValueError, match=words):
        make(raw, tmp_path / "out", split="file", groups=groups_file(tmp_path / "g", names))
    assert not (tmp_path / "out").exists()


def test_one_group_alone_goes_to_the_side_that_has_none(tmp_path):
    raw = write_raw(tmp_path / "raw", 4)
    make(
        raw,
        tmp_path / "out",
        split="file",
        groups=groups_file(tmp_path / "g", ["train", "a", "a", "a"]),
    )
    assert [side_of(tmp_path / "out")[stem_of(i)] for i in range(4)] == [
        "train",
        "val",
        "val",
        "val",
    ]


def test_a_plan_reacts_to_what_the_groups_file_says(tmp_path):
    raw = write_raw(tmp_path / "raw", 6)

    def planned(names):
        return make_plan(
            ShardSettings(
                raw=str(raw),
                out=str(tmp_path),
                split="file",
                groups=groups_file(tmp_path / "g", names),
                **SMALL,
            )
        )

    first = planned(["train"] * 5 + ["val"])
    assert planned(["train"] * 5 + ["val"]).hash == first.hash
    moved = planned(["train"] * 4 + ["val", "val"])
    assert moved.hash != first.hash
    assert not {job.hash for job in moved.jobs} & {job.hash for job in first.jobs}
    renamed = planned(["train"] * 5 + ["b"])
    assert renamed.hash != first.hash and [job.hash for job in renamed.jobs] == [
        job.hash for job in first.jobs
    ], "the same shards"


def test_moving_a_group_makes_the_dataset_again(tmp_path):
    raw, out = write_raw(tmp_path / "raw", 6), tmp_path / "out"
    for names in (["train"] * 4 + ["val"] * 2, ["val"] * 2 + ["train"] * 4):
        assert make(raw, out, split="file", groups=groups_file(tmp_path / "g", names))["changed"]
        assert [side_of(out)[stem_of(i)] for i in range(6)] == names
        assert verify_dataset(out) == []


def test_appended_captures_join_the_side_of_their_group(tmp_path):
    raw, out, old = (
        write_raw(tmp_path / "raw", 6),
        tmp_path / "out",
        ["a", "a", "a", "b", "b", "train"],
    )
    make(raw, out, split="file", groups=groups_file(tmp_path / "g", old), val=0.4)
    before = side_of(out)
    assert before[stem_of(3)] == "val"
    assert before[stem_of(0)] == "train"
    write_raw(raw, 13)
    new = [
        "b",
        "b",
        "b",
        "a",
        "c",
        "skip",
        "val",
    ]  # by their numbers alone, a and c would be for validation
    (tmp_path / "new").write_text(
        "".join(f"{stem_of(6 + i)},{name}\n" for i, name in enumerate(new))
    )  # the old captures need no line
    index = make(raw, out, split="file", groups=str(tmp_path / "new"), val=0.4, append=True)
    after = side_of(out)
    assert {stem: after[stem] for stem in before} == before
    assert len(after) == 12
    assert [after[stem_of(i)] for i in (6, 7, 8, 9, 10, 12)] == [
        "val",
        "val",
        "val",
        "train",
        "train",
        "val",
    ]
    assert index["groups"] == {"a": "train", "b": "val", "c": "train"}
    assert verify_dataset(out) == []
    again = make(
        raw, out, split="file", groups=groups_file(tmp_path / "g", old + new), val=0.4, append=True
    )
    assert not again["changed"], "all captures may have a line"


@pytest.mark.parametrize(
    "old, words",
    [
        ("skip", "is in the dataset's val already; --append cannot skip it"),
        ("train", "is in the dataset's val already, and its group train is for train"),
        ("a", "is in the dataset's val already, and its group a is for train"),
    ],
)
def test_append_never_moves_what_is_written(tmp_path, old, words):
    raw, out, names = write_raw(tmp_path / "raw", 4), tmp_path / "out", ["a", "a", "a", "b"]
    make(raw, out, split="file", groups=groups_file(tmp_path / "g", names))
    write_raw(raw, 5)
    with pytest.raises(ValueError, match=words):
        make(
            raw,
            out,
            split="file",
            groups=groups_file(tmp_path / "g", [*names[:3], old, "c"]),
            append=True,
        )
    with pytest.raises(ValueError, match="--split was file, is random"):
        make(raw, out, append=True)


def test_groups_and_split_file_need_each_other():
    for words, expected in (
        (["raw", "out", "--split", "file"], "--groups is missing: expected --groups FILE"),
        (
            ["raw", "out", "--groups", "g.csv"],
            "--groups is g.csv and --split is auto: expected --split file",
        ),
        (
            ["--index", "d", "--split", "file", "--groups", "g"],
            "--split is file with --index: expected random, session or none",
        ),
    ):
        with pytest.raises(SettingsError, match=expected) as caught:
            parse("", ShardSettings, argv=words)
        assert "\n" not in str(caught.value)
