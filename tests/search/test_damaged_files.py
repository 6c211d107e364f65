"""Every reader, given good files damaged in every way that hypothesis thinks of, answers with one
line or with values that hold what was promised: never with another error."""

import pytest
from helpers.damage import damaged_bytes, damaged_json
from helpers.searched_readers import READERS, Scratch
from hypothesis import given, settings


@pytest.fixture(scope="session")
def scratch(tmp_path_factory):
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
