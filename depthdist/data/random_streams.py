"""The random streams of the data: each draw is a function of (seed, epoch, sample) alone.

All are NumPy's counter-based Philox generator; a stream is named by two key words, and by a counter
where it has to stay clear of another stream with the same key:

    key                           counter             what is drawn
    (seed, epoch)                 (0, 0, 0, 0) ...    the order of an epoch
    (seed, (part + 1) << 40 | n)  (0, 0, 0, 0) ...    the n-th shuffle of one of several datasets
    (seed, epoch)                 (0, 0, sample, 1)   the augmentation of one sample
    (seed, number)                (0, 0, 0, 2)        one crop of the detail stage
    (seed, number)                (0, 0, 0, 3)        the holes of one image of the completion stage
    (seed, number)                (0, 0, 0, 4)        the same of its validation
"""

from __future__ import annotations

import numpy as np


def epoch_stream(seed: int, epoch: int) -> np.random.Generator:
    """Return the generator of an epoch's order."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch]))


def shuffle_stream(seed: int, part: int, turn: int) -> np.random.Generator:
    """Return the generator of the `turn`-th shuffle of dataset number `part` of a mix."""
    return np.random.Generator(np.random.Philox(key=[seed, (part + 1) << 40 | turn]))


def augmentation_words(seed: int, epoch: int, sample: int, num_words: int) -> np.ndarray:
    """Return (num_words,) uint64 random words for the augmentation of one sample in one epoch.

    They are Philox's raw output: NumPy promises never to change it, which it does not promise for
    what `Generator` makes of it.
    """
    philox = np.random.Philox(key=[seed, epoch], counter=[0, 0, sample, 1])
    return philox.random_raw(num_words)


def crop_stream(seed: int, number: int) -> np.random.Generator:
    """Return the generator of crop number `number` of the detail stage."""
    return np.random.Generator(np.random.Philox(key=[seed, number], counter=[0, 0, 0, 2]))


def hole_stream(seed: int, number: int, validation: bool = False) -> np.random.Generator:
    """Return the generator of what is drawn for image number `number` of the completion stage."""
    counter = [0, 0, 0, 4 if validation else 3]
    return np.random.Generator(np.random.Philox(key=[seed, number], counter=counter))
