"""A dataset that was made before is known again: a plan's hash is that of older versions."""

import pytest

from depthdist.shards.headers import Header
from depthdist.shards.plan import make_plan
from depthdist.shards.settings import ShardSettings

FILES = (
    "images/22-01-02-03-04-05_Zivid_acquisition_color.png",
    "depth/22-01-02-03-04-05_Zivid_acquisition_rawDepth.npy",
    "images/22-01-02-03-04-05_Zivid_acquisition_grooves.png",
    "images/22-01-02-05-00-00_Zivid_acquisition_color.png",
    "depth/22-01-02-05-00-00_Zivid_acquisition_rawDepth.npy",
    "monday/b.jpg",
    "monday/b.npy",
    "mon-day/b.jpg",
    "mon-day/b.npy",
    "monday/left_rgb.png",
    "monday/left_xyz.npy",
    "cloud.ply",
    "alone.jpg",
)


def headers(pairs, options):
    """As if each file had so many bytes as its number says, and was written at that time."""
    return [
        Header(
            (30, 40), (30, 40), tuple(range(100 * i, 100 * i + 2 * len(set(pair.files.values()))))
        )
        for i, pair in enumerate(pairs)
    ]


@pytest.mark.parametrize(
    ("split", "known"),
    [
        ("random", "c56fd0f9d6c25629f8d7bf5e5dee657461dbd44bf7bb8b5b7e439e537496e8ed"),
        ("session", "837c9cf2dfd7da4d517c1e684e3e230f8888a7971413b09f88a25c09f8d7e0d8"),
    ],
)
def test_the_hash_of_a_plan_is_that_of_older_versions(tmp_path, split, known):
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    plan = make_plan(ShardSettings(raw=str(tmp_path), out="out", split=split), look=headers)
    assert len(plan.rejects) == 1
    assert sum(len(job.items) for job in plan.jobs) == 6
    assert plan.hash == known
