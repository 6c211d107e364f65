"""Loaders of small shards, and what tests compare of their batches.

source = loader(data, threads=2)                       # of the fixtures below, or of make(tmp_path)
# all that the batches hold; source.told is what it said of damage
exact(taken(source.evaluate("train", 1, 0, 1)))
"""

import shutil
import threading
from pathlib import Path

import pytest
from captures import write_capture
from ranks import make_shards

from depthdist.data.augmentation import AugmentSettings
from depthdist.data.dataset import DataSettings, open_dataset
from depthdist.data.loader import Loader
from depthdist.data.sample_order import TrainPlan

STRONG = AugmentSettings(flip=0.5, exposure=0.5, colour=0.15, noise=6, jpeg=60)


def make(folder, first=0, count=4, **settings):
    """Shards of captures from seed `first` on, which a stem ends with."""
    for seed in range(first, first + count):
        write_capture(
            folder / f"raw/images/x{seed}_color.png",
            folder / f"raw/depth/x{seed}_rawDepth.npy",
            seed,
        )
    return make_shards(folder, **{"split": "none", "rgb": "jpeg", **settings})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """8 training samples in 4 shards, 3 for validation."""
    return make(tmp_path_factory.mktemp("tires"), count=11, split="random", val=0.3, shard_mb=0.02)


@pytest.fixture(scope="module")
def one_shard(tmp_path_factory):
    """20 training samples in it."""
    return make(tmp_path_factory.mktemp("one"), count=20)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two datasets of one shard with 4 training samples each, which have the same keys and other
    depth steps."""
    return make(tmp_path_factory.mktemp("a")), make(tmp_path_factory.mktemp("b"), 100, far=2500.0)


@pytest.fixture
def copies(two, tmp_path):
    """The same, for a test to damage."""
    return [Path(shutil.copytree(place, tmp_path / name)) for place, name in zip(two, "ab")]


@pytest.fixture(scope="module")
def in_both(tmp_path_factory):
    """20 training and 5 validation samples."""
    return make(tmp_path_factory.mktemp("both"), count=25, split="random", val=0.2, shard_mb=0.03)


def loader(*places, augment=None, **settings):
    """A Loader of those places; what it tells of damage is in `told`."""
    told, given = [], DataSettings(data=tuple(map(str, places)), **settings)
    made = Loader(open_dataset(given), given, augment, on_damage=told.append)
    made.told = told
    return made


def plan_of(loader, batch=4, micro=1, world=1):
    return TrainPlan(loader.dataset.count("train"), batch, micro, world)


def taken(batches):
    return [packed.to("cpu") for packed in batches]


def everything(batches):
    """(sample, weight) of every slot, in order."""
    return [
        (sample, weight)
        for batch in batches
        for sample, weight in zip(batch.samples, batch.weight.tolist())
    ]


def real(ranks):
    return sorted(sample for batches in ranks for sample, weight in everything(batches) if weight)


def exact(batches):
    """All that batches hold, to be compared."""
    return [
        (
            b.group,
            b.samples,
            b.keys,
            b.weight.tolist(),
            *(t.numpy().tobytes() for t in (b.rgb, b.depth_mm, b.mask)),
        )
        for b in batches
    ]


def seed_of(key):
    """Of the capture that a sample was made of."""
    return int(key.removeprefix("x"))


def decoders():
    return [t.name for t in threading.enumerate() if t.name.startswith("decode")]


def failure(call, *args):
    with pytest.raises(ValueError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)
