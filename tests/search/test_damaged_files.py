"""Every reader, given good files damaged in every way that hypothesis thinks of, answers with one
line or with values that hold what was promised: never with another error.

And what the search has found so far, one input each.
"""

import json

import numpy as np
import pytest
from helpers.damage import DEEP, damaged_bytes, damaged_json
from helpers.scratch import Scratch
from helpers.searched_readers import READERS
from hypothesis import given, settings

from depthdist.captures.readers import read_xyz
from depthdist.core.errors import BadFile


@pytest.fixture(scope="session")
def scratch(tmp_path_factory):
    """Good files of every kind, made once."""
    return Scratch(tmp_path_factory.mktemp("scratch"))


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_one_line_or_still_right(name, scratch):
    reader = READERS[name]
    seeds = reader.seeds(scratch)
    damage = damaged_json if reader.is_json else damaged_bytes

    @given(damage(seeds))
    def search(content):
        try:
            reader.read(scratch, content)
        except reader.error as err:
            assert str(err), "an error without a word"

    if reader.slow:
        search = settings(max_examples=max(1, settings().max_examples // 3))(search)
    search()


@pytest.mark.parametrize("name", READERS)
def test_the_undamaged_file_is_read(name, scratch):
    reader = READERS[name]
    reader.read(scratch, reader.seeds(scratch)[0])


# --------------------------------------------------------------------------------- finds


def seed(scratch, reader):
    return READERS[reader].seeds(scratch)[0]


def refusal(scratch, reader, content):
    with pytest.raises(READERS[reader].error) as caught:
        READERS[reader].read(scratch, content)
    return str(caught.value)


def changed(scratch, reader, path, value):
    """The reader's file with another value at that path of its JSON, or of its first line."""
    first, *rest = (
        seed(scratch, reader).splitlines() if reader in LINES else [seed(scratch, reader)]
    )
    content = place = json.loads(first)
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return b"\n".join([json.dumps(content).encode(), *rest]) + b"\n"


LINES = ("rejects", "done list")


@pytest.mark.parametrize(
    ("reader", "path", "value", "text"),
    [
        ("index", ["settings"], True, "settings is True, expected an object"),
        ("index", ["groups"], [1], "expected an object"),
        ("index", ["mask", "member"], None, "the mask not packed"),
        ("index", ["depth", "step_mm"], float("nan"), "expected a number"),
        ("index", ["size"], [10**6, 10**6], "is not the size of an image"),
        ("index", ["splits", "train", "stats", "min_mm"], -1.0, "min_mm is -1.0"),
        ("index", ["rgb", "codec"], "gif", "codecs are 'gif'"),
        ("index", ["members"], ["rgb.png"] * 4, "members and their kinds disagree"),
        ("external index", ["depth", "unit_mm"], 0, "expected a number > 0"),
        ("commit record", ["samples"], None, "cannot be read (TypeError"),
        ("commit record", ["samples", 0, 0], float("inf"), "a sample is inf"),
        ("commit record", ["bytes"], 1, "it and index.json disagree"),
        ("rejects", ["reason"], 7, "line 1 is not what depthdist shard writes"),
        ("config", ["recipe"], [[]], "recipe"),
        ("adapter record", ["std"], [1.0, float("inf"), 1.0], "expected three numbers > 0"),
        ("adapter record", ["height"], 10**6, "expected multiples of 14"),
        ("evaluation", ["adapter"], 3, "not what depthdist evaluate writes"),
        (
            "evaluation",
            ["rows", "untrained", "rmse_mm"],
            10**309,
            "depthdist evaluate writes (OverflowError",
        ),
        ("run record", ["derived", "data_sha256"], [], None),
        ("run record", ["settings", "lr"], 10**309, "depthdist train writes (OverflowError"),
        ("done list", ["made_with"], None, None),
    ],
)
def test_json_of_odd_values_is_one_line(scratch, reader, path, value, text):
    content = changed(scratch, reader, path, value)
    if text is None:
        try:
            READERS[reader].read(scratch, content)
        except READERS[reader].error as err:
            assert "\n" not in str(err)
        return
    assert text in refusal(scratch, reader, content)


@pytest.mark.parametrize("reader", [name for name, found in READERS.items() if found.is_json])
def test_brackets_nested_too_deep_are_one_line(scratch, reader):
    try:
        READERS[reader].read(scratch, DEEP.encode())
    except READERS[reader].error as err:
        assert all(line.strip() for line in str(err).splitlines())


@pytest.mark.parametrize("content", [b"null", b"[]", b'{"a": 1}'])
@pytest.mark.parametrize("reader", ["index", "commit record", "evaluation", "run record"])
def test_json_of_something_else_is_one_line(scratch, reader, content):
    assert "\n" not in refusal(scratch, reader, content)


def test_a_header_that_is_no_python_is_one_line(scratch, tmp_path):
    """NumPy raises tokenize.TokenError there, which is no ValueError."""
    content = seed(scratch, "point map").replace(b"(4, 5, 3)", b"\xd8\xcb\xd3\xdf\xca\xd3\xdf\xd3)")
    with pytest.raises(BadFile, match="file that can be read"):
        read_xyz(tmp_path / "a.npy", content)


def test_a_row_with_a_name_beyond_the_names_is_one_line(scratch):
    content = bytearray(seed(scratch, "table"))
    rows = np.load(next(scratch.shards.glob("samples-*.npy"))).copy()
    rows["name"][3] = 2**64 - 1
    content[-rows.nbytes :] = rows.tobytes()
    assert "row 3 is no sample" in refusal(scratch, "table", bytes(content))


def test_a_finished_image_with_a_name_longer_than_a_file_can_have_is_predicted_again(scratch):
    head, line = seed(scratch, "done list").splitlines()
    line = json.dumps({**json.loads(line), "files": ["a" * 5000]}).encode()
    READERS["done list"].read(scratch, head + b"\n" + line + b"\n")
