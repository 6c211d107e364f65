"""Loaders of small shards, and what tests compare of their batches.

source = loader(data, threads=2)                       # of the fixtures below, or of make(tmp_path)
# all that the batches hold; source.told is what it said of damage
exact(taken(source.evaluate("train", 1, 0, 1)))
"""

import threading

import pytest

from depthdist.data.augmentation import AugmentSettings
from depthdist.data.dataset import DataSettings, open_dataset
from depthdist.data.loader import Loader
from depthdist.data.sample_order import TrainPlan
from helpers.captures import write_capture
from helpers.runs import make_shards

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
            b.stems,
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
