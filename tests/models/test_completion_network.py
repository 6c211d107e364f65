"""The network of the completion stage: how it begins, and that it can learn what a shadow hides."""

import numpy as np
import pytest
import torch
from helpers.completion_stages import learn

from depthdist.models.completion_maps import WorkingMaps, network_inputs
from depthdist.models.completion_network import CompletionNetwork

WIDTHS = (8, 8, 8)


def scene(seed, size=(40, 57)):
    """A near plate on a far wall whose shadow is not measured; maps as shown, and the depth."""
    random = np.random.default_rng(seed)
    depth = np.full(size, random.uniform(1600, 2000), np.float32)
    top, left = random.integers(5, 15), random.integers(20, 30)
    depth[top : top + 20, left : left + 15] = random.uniform(900, 1200)
    shadow = np.zeros(size, bool)
    shadow[top : top + 20, left - 12 : left] = True
    rgb = random.integers(20, 60, (*size, 3), dtype=np.uint8)
    pred = np.full(size, np.log(1400), np.float32)
    return WorkingMaps(rgb, np.where(shadow, 0, depth).astype(np.float32), pred), depth, shadow


def as_batch(scenes):
    inputs = [network_inputs(maps) for maps, _, _ in scenes]
    stacked = [torch.from_numpy(np.stack(maps)) for maps in zip(*inputs)]
    log_pred, depth, hole = (
        torch.from_numpy(np.stack(arrays))
        for arrays in zip(*((maps.log_pred, depth, hole) for maps, depth, hole in scenes))
    )
    return stacked, log_pred, depth, hole


def test_it_begins_as_the_mean_of_the_guesses_and_from_its_seed_alone():
    (channels, guesses), *_ = as_batch([scene(0), scene(1)])
    network = CompletionNetwork(WIDTHS).begin(3)
    log_depth, spread = network(channels, guesses)
    assert torch.allclose(log_depth, guesses.mean(1)) and not spread.any()
    again = CompletionNetwork(WIDTHS).begin(3).state_dict()
    assert all(torch.equal(again[name], one) for name, one in network.state_dict().items())
    other = CompletionNetwork(WIDTHS).begin(4).state_dict()
    assert not torch.equal(other["stem.weight"], again["stem.weight"])


def test_samples_of_a_batch_do_not_touch_each_other():
    (channels, guesses), *_ = as_batch([scene(0), scene(1)])
    network = CompletionNetwork(WIDTHS).begin(0)
    torch.nn.init.normal_(network.head.weight, generator=torch.Generator().manual_seed(1))
    together = network(channels, guesses)
    for number in range(2):
        alone = network(channels[number : number + 1], guesses[number : number + 1])
        for one, of_both in zip(alone, together):
            assert torch.allclose(one[0], of_both[number], atol=1e-5)


def test_it_learns_that_a_shadow_is_as_far_as_its_far_side():
    torch.manual_seed(0)
    (channels, guesses), log_pred, depth, hole = as_batch([scene(seed) for seed in range(6)])
    network = CompletionNetwork(WIDTHS).begin(0)
    learn(network, (channels, guesses), log_pred, depth, hole, steps=40)
    (channels, guesses), _, depth, hole = as_batch([scene(seed) for seed in range(90, 94)])
    with torch.no_grad():
        filled = network(channels, guesses)[0].exp()
    error = (filled - depth).abs()[hole].mean()
    harmonic = (guesses[:, 0].exp() - depth).abs()[hole].mean()
    assert error < 0.4 * harmonic, (error, harmonic)


@pytest.mark.parametrize("size", [(8, 8), (33, 50), (72, 98)])
def test_any_size_goes_through(size):
    (channels, guesses), *_ = as_batch([scene(0, size=(45, 60))])
    channels, guesses = (torch.rand(1, maps.shape[1], *size) for maps in (channels, guesses))
    log_depth, spread = CompletionNetwork(WIDTHS).begin(0)(channels, guesses)
    assert log_depth.shape == spread.shape == (1, *size)
