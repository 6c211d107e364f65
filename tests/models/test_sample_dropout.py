"""Dropout per sample: the same mask on any device and in any batch, and a random one.

Runs as well where transformers is older than 5.18.
"""

import shutil
import time

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from depthdist.models.sample_dropout import (
    DropoutKeys,
    SampleDropout,
    _dropped,
    draw_keys,
    layer_keys,
    use_sample_dropout,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
N = 1 << 18  # elements a mask
FAR = 5 / N**0.5  # five standard deviations of a correlation of N independent pairs


def masks(p=0.5, seed=0, epoch=0, samples=(0,), layers=1, num=N):
    """(samples, layers, num) bool, True where dropped."""
    keys = layer_keys(draw_keys(seed, epoch, samples), layers)
    ones = torch.ones(len(keys), num)
    return torch.stack([_dropped(ones, keys[:, layer], p) == 0 for layer in range(layers)], 1)


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1])


def dropout(p=0.3, layers=2):
    """The last of `layers` dropouts, and their draws."""
    draws = DropoutKeys()
    draws.num_layers = layers
    return SampleDropout(p, layers - 1, draws).train(), draws


# --------------------------------------------------------------------------------------- what it is


def test_a_mask_is_what_the_published_hashes_give():
    """SplitMix64's first outputs for the seed 1234567, as its reference implementation prints them.

    The other in Python's integers.
    """
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    keys = layer_keys(torch.tensor([1234567]), 5)
    assert keys[0].tolist() == [value >> 32 for value in published]

    def stirred(x):
        x = x * 0x21F0AAAD & 0xFFFFFFFF
        return (x ^ x >> 15) * 0x735A2D97 & 0xFFFFFFFF

    def hashed(x):
        x = stirred(x ^ x >> 16)
        return x ^ x >> 15

    for p in (0.05, 0.5):
        for key in keys[0].tolist():
            wanted = [stirred(hashed(place) ^ key) < round(p * 2**32) for place in range(1000)]
            assert (
                _dropped(torch.ones(1, 1000), torch.tensor([key]), p)[0] == 0
            ).tolist() == wanted


def test_what_stays_is_divided_by_the_share_that_stays():
    layer, draws = dropout(p=0.25)
    x = torch.randn(2, 30, 8)
    draws.set(draw_keys(0, 0, [5, 6]), x.device)
    y = layer(x)
    dropped = y == 0
    assert 0.15 < dropped.float().mean() < 0.35
    assert torch.allclose(y[~dropped], (x / 0.75)[~dropped], rtol=1e-6)
    assert layer.eval()(x) is x


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_way_back_has_the_same_mask(dtype):
    layer, draws = dropout()
    x = torch.ones(3, 50, 7, dtype=dtype, requires_grad=True)
    draws.set(draw_keys(0, 0, [0, 1, 2]), x.device)
    y = layer(x)
    y.sum().backward()
    assert y.dtype == dtype
    assert torch.equal(x.grad, y.detach())
    assert 0 < (y == 0).sum() < y.numel()


def test_gradients_are_those_of_a_plain_product():
    layer, draws = dropout()
    draws.set(draw_keys(0, 0, [0, 1]), torch.device("cpu"))
    assert torch.autograd.gradcheck(
        layer, torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    )


def test_nothing_is_kept_for_the_way_back():
    layer, draws = dropout()
    x = torch.randn(2, 100, 8, requires_grad=True)
    kept = []
    draws.set(draw_keys(0, 0, [0, 1]), x.device)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    assert sum(t.numel() for t in kept) == 2, "the two samples' keys"


# ------------------------------------------------------------------------------ the same everywhere


def test_a_batch_of_two_is_its_two_samples_one_by_one_in_either_order():
    layer, draws = dropout()
    x = torch.randn(2, 40, 9)
    device = torch.device("cpu")

    def masked(samples):
        draws.set(draw_keys(3, 1, samples), device)
        return layer(x[[s - 7 for s in samples]])

    both = masked([7, 8])
    assert torch.equal(both, torch.cat([masked([7]), masked([8])]))
    assert torch.equal(both, masked([8, 7]).flip(0))
    assert not torch.equal(both[0] == 0, both[1] == 0)


def test_draws_follow_from_seed_epoch_and_sample_alone():
    assert torch.equal(draw_keys(1, 2, [3, 4, 5]), draw_keys(1, 2, [5, 4, 3]).flip(0))
    assert draw_keys(1, 2, [3]).dtype == torch.int64
    everything = torch.cat(
        [draw_keys(seed, epoch, range(50)) for seed in (0, 1, 2**40) for epoch in range(15)]
    )
    assert len(everything.unique()) == len(everything) == 3 * 15 * 50
    # written down: a run that goes on under another version of anything must go on with the same
    # masks
    assert draw_keys(0, 1, [3, 4]).tolist() == [-7893292161924029452, -2964168872985325250]
    assert layer_keys(draw_keys(0, 1, [3]), 2).tolist() == [[771541367, 3373816813]]


@pytest.mark.parametrize("shape", [(3, 7, 384), (2, 5, 9, 11), (1, 1, 1), (4, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_and_the_compiled_loop_drop_the_same(dtype, shape, monkeypatch):
    """What a GPU computes, operation by operation, on the CPU."""
    keys = layer_keys(draw_keys(0, 0, range(shape[0])), 4)[:, 2]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    loop = _dropped(x, keys, 0.4)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(_dropped(x, keys, 0.4), loop)


def test_a_mask_does_not_see_how_its_input_lies_in_memory():
    x = torch.randn(2, 6, 5, 7)
    keys = layer_keys(draw_keys(0, 0, [0, 1]), 1)[:, 0]
    wanted = _dropped(x, keys, 0.3)
    for other in (
        x.to(memory_format=torch.channels_last),
        x.mT.contiguous().mT,
        torch.stack([x, x])[1],
        x.expand(2, 6, 5, 7),
    ):
        assert torch.equal(_dropped(other, keys, 0.3), wanted)


@pytest.mark.skipif(
    not shutil.which("g++") and not shutil.which("clang++"),
    reason="torch.compile needs a C++ compiler",
)
@pytest.mark.parametrize("vectors", [True, False])
def test_torch_compile_drops_the_same(vectors, tmp_path, monkeypatch):
    """Sizes that fill the processor's vectors, and that do not.

    And as for a processor without: there C++ leaves overflow undefined.
    """
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    keys = layer_keys(draw_keys(0, 0, [0, 1]), 1)[:, 0]
    compiled = torch.compile(_dropped, dynamic=False)
    with inductor.patch({"cpp.simdlen": None if vectors else 1}):
        for size in (64, 1003):
            x = torch.randn(2, size)
            assert torch.equal(compiled(x, keys, 0.3), _dropped(x, keys, 0.3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gpu_drops_the_same(dtype):
    keys = layer_keys(draw_keys(0, 0, [0, 1]), 1)[:, 0]
    x = torch.randn(2, 777, 384).to(dtype)
    assert torch.equal(_dropped(x.cuda(), keys.cuda(), 0.05).cpu(), _dropped(x, keys, 0.05))


# -------------------------------------------------------------------------------------- a good mask


@pytest.mark.parametrize("p", [0.001, 0.05, 0.5, 0.9])
def test_the_share_dropped_is_p(p):
    share = masks(p, samples=range(8), layers=2).float().mean()
    num = 16 * N
    assert abs(share - p) < 5 * (p * (1 - p) / num) ** 0.5


def test_masks_of_layers_samples_epochs_and_seeds_have_nothing_in_common():
    found = torch.cat(
        [
            masks(seed=seed, epoch=epoch, samples=(0, 1), layers=3).flatten(0, 1)
            for seed, epoch in ((0, 0), (0, 1), (1, 0))
        ]
    )
    together = torch.corrcoef(found.double()) - torch.eye(len(found))
    assert len(found) == 18
    assert together.abs().max() < FAR


def test_neighbors_have_nothing_in_common():
    mask = masks(samples=(4,), layers=1)[0, 0]
    for distance in (1, 2, 3, 16, 384, 1000, 4096, 1 << 16):
        assert abs(correlation(mask[distance:], mask[:-distance])) < 2 * FAR, distance


def test_an_element_is_dropped_as_often_as_any_other():
    """Chi-square, one degree of freedom an element, over the samples of one layer and over the
    layers of one sample."""
    p = 0.25
    for found in (
        masks(p, samples=range(2000), num=500)[:, 0],
        masks(p, samples=(0,), layers=2000, num=500)[0],
    ):
        counts = found.double().sum(0)
        chi2 = float(((counts - 2000 * p) ** 2 / (2000 * p * (1 - p))).sum())
        assert abs(chi2 - 500) < 5 * (2 * 500) ** 0.5, chi2


def test_runs_of_eight_elements_take_every_pattern_equally_often():
    """Chi-square with 255 degrees of freedom: the 256 patterns of eight neighbors at p = 1/2."""
    for layer in range(3):
        bits = masks(samples=(9,), layers=3)[0, layer].view(-1, 8).numpy()
        counts = np.bincount(np.packbits(bits, axis=1)[:, 0], minlength=256)
        chi2 = float(((counts - N / 8 / 256) ** 2 / (N / 8 / 256)).sum())
        assert abs(chi2 - 255) < 5 * (2 * 255) ** 0.5, chi2


# --------------------------------------------------------------------------------------- in a model


def lora(p=0.3):
    net = nn.Sequential(nn.Linear(6, 6), nn.Conv2d(3, 4, 3))
    return get_peft_model(net, LoraConfig(r=2, lora_dropout=p, target_modules=["0", "1"]))


def test_every_dropout_of_lora_is_replaced_and_numbered():
    net = lora()
    draws = DropoutKeys()
    use_sample_dropout(net, draws)
    found = [m for m in net.modules() if isinstance(m, SampleDropout)]
    assert [(m.p, m.layer) for m in found] == [(0.3, 0), (0.3, 1)]
    assert draws.num_layers == 2
    assert not any(isinstance(m, nn.Dropout) for m in net.modules())
    without = DropoutKeys()
    use_sample_dropout(lora(p=0.0), without)
    assert without.num_layers == 0


def test_a_batch_without_its_draws_is_a_bug_that_is_caught():
    layer, draws = dropout()
    with pytest.raises(AssertionError, match="draws of 0 samples for a batch of 3"):
        layer(torch.ones(3, 4))
    draws.set(draw_keys(0, 0, [1, 2]), torch.device("cpu"))
    with pytest.raises(AssertionError, match="draws of 2 samples for a batch of 3"):
        layer(torch.ones(3, 4))


def test_it_costs_no_more_than_nn_dropout(quietly_on_one_thread):
    """At a layer's size for images of 378 x 630.

    Measured: 1.1 ms where nn.Dropout takes 5.1 ms, one core.
    """
    layer, draws = dropout(p=0.05)
    draws.set(draw_keys(0, 0, [0]), torch.device("cpu"))
    x = torch.randn(1, 1216, 384)
    best = {}
    for _ in range(40):
        for name, module in (("ours", layer), ("torch", nn.Dropout(0.05))):
            began = time.perf_counter()
            module(x)
            best[name] = min(best.get(name, 1.0), time.perf_counter() - began)
    assert best["ours"] < 1.5 * best["torch"], best
