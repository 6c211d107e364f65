"""SplitMix64 gives the bits of its reference implementation."""

import numpy as np
from numba import njit

from depthdist.core.splitmix64 import INCREMENT, mix

# the first outputs for the seed 1234567, as the reference implementation in C prints them
SEED = 1234567
OUTPUTS = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


def test_arrays_give_the_reference_outputs():
    states = np.uint64(SEED) + np.arange(1, 6, dtype=np.uint64) * INCREMENT
    assert mix(states).tolist() == OUTPUTS


def test_compiled_code_gives_the_reference_outputs():
    compiled_mix = njit(mix)

    @njit
    def outputs(state, num):
        found = np.empty(num, np.uint64)
        for n in range(num):
            state += INCREMENT
            found[n] = compiled_mix(state)
        return found

    assert outputs(np.uint64(SEED), 5).tolist() == OUTPUTS
