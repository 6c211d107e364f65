"""The end of sharding: records are added up one at a time."""

import tracemalloc

import pytest

from depthdist.core.files import parse_json
from depthdist.shards.build import _add_records
from depthdist.shards.record_sums import RecordSums
from tools.benchmarks.plan import SHARD_SAMPLES
from tools.benchmarks.scale_records import made_up_jobs, write_records

FEW, MANY = 5, 25  # shards


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with the records of shards, and their jobs."""
    out = tmp_path_factory.mktemp("records")
    write_records(out, MANY * SHARD_SAMPLES, 1)
    return out, made_up_jobs(out, MANY * SHARD_SAMPLES)


def peak_bytes(function, *given):
    """What a call of `function` takes at most, its result included."""
    tracemalloc.start()
    try:
        function(*given)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_grows_by_little_of_each_record(written):
    out, jobs = written
    peaks = {}
    for count in (FEW, MANY):
        with RecordSums(out) as sums:
            peaks[count] = peak_bytes(_add_records, sums, out, jobs[:count], [])
            assert len(sums.rows()) == len(sums.stems) == count * SHARD_SAMPLES
    record = (out / ".build" / jobs[0].name).with_suffix(".json").read_bytes()
    one = peak_bytes(parse_json, record)
    added = (peaks[MANY] - peaks[FEW]) / (MANY - FEW)
    assert added < 0.3 * one, f"{added:.0f} bytes stay of a record of {one}"


def test_fingerprints_are_read_from_the_disk_as_they_were_added(written):
    out, jobs = written
    with RecordSums(out) as sums:
        merged = _add_records(sums, out, jobs, [])
        prints = sums.prints("train")
        assert len(prints) == sum(merged[n].num_samples for n in merged if n.startswith("train"))
        whole, number = prints[:], len(prints) - 3
        assert (prints[number : number + 2] == whole[number : number + 2]).all()
        assert (prints[number - 2 : 2 * number] == whole[number - 2 :]).all()
        assert whole["grey"].std() > 1 and not any(one.is_published for one in merged.values())
