"""An index of shards gives the samples of a split as a sequence."""

import pytest
from helpers.captures import write_capture
from helpers.runs import make_shards

from depthdist.shards.index import read_index


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """The 4 training samples of a small dataset."""
    folder = tmp_path_factory.mktemp("shards")
    for seed in range(4):
        write_capture(
            folder / f"raw/images/x{seed}_color.png",
            folder / f"raw/depth/x{seed}_rawDepth.npy",
            seed,
        )
    return read_index(make_shards(folder, split="none", rgb="jpeg")).samples("train")


def test_a_sample_is_found_by_its_place(samples):
    refs = list(samples)
    assert [samples.index(ref) for ref in refs] == [0, 1, 2, 3]
    assert samples.index(refs[2], 1, 3) == 2
    with pytest.raises(ValueError):
        samples.index(refs[0], 1)


def test_a_sample_is_counted_once_and_another_splits_never(samples):
    assert [samples.count(ref) for ref in samples] == [1, 1, 1, 1]
    assert samples.count(samples[0]._replace(key="other")) == 0


def test_slices_and_negative_places_are_those_of_a_list(samples):
    refs = list(samples)
    assert samples[1:3] == refs[1:3]
    assert samples[::-2] == refs[::-2]
    assert [samples[-1], samples[-4]] == [refs[-1], refs[-4]]
    assert refs[3] in samples
    for place in (4, -5):
        with pytest.raises(IndexError):
            samples[place]
