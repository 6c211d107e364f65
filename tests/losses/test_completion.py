"""The completion stage's loss, against float64 by hand."""

import numpy as np
import pytest
import torch

from depthdist.losses.completion import CompletionWeights, completion_losses

UNIT = 0.02


def batch(seed=0, size=(2, 5, 7)):
    random = np.random.default_rng(seed)
    depth = random.uniform(900, 1800, size).astype(np.float32)
    depth[random.random(size) < 0.2] = 0
    hole = (random.random(size) < 0.4) & (depth > 0)
    log_depth, log_pred = np.log(random.uniform(900, 1800, (2, *size))).astype(np.float32)
    spread = random.normal(size=size).astype(np.float32)
    return log_depth, spread, log_pred, depth, hole


def by_hand(log_depth, spread, log_pred, depth, hole):
    terms = {"hole": [], "spread": [], "kept": []}
    for says, s, pred, z, h in zip(log_depth, spread, log_pred, depth, hole):
        shown = (z > 0) & ~h
        used = says if shown.any() else pred
        errors, likelihoods, kept = [], [], []
        for place in np.ndindex(z.shape):
            if z[place] <= 0:
                continue
            e = abs(float(used[place]) - np.log(float(z[place]))) / UNIT
            if h[place]:
                errors.append(e)
                likelihoods.append(e / np.exp(float(s[place])) + float(s[place]))
            else:
                kept.append(e)
        for name, values in zip(terms, (errors, likelihoods, kept)):
            terms[name].append(np.mean(values) if values else 0.0)
    return terms


@pytest.mark.parametrize("nothing_shown", [False, True])
def test_terms_by_hand(nothing_shown):
    log_depth, spread, log_pred, depth, hole = batch()
    if nothing_shown:
        hole[1] = depth[1] > 0
    weights = CompletionWeights(hole=2.0, spread=0.5, kept=0.25)
    tensors = map(torch.from_numpy, (log_depth, spread, log_pred, depth, hole))
    found = completion_losses(weights, *tensors, UNIT)
    expected = by_hand(log_depth, spread, log_pred, depth, hole)
    for name, values in expected.items():
        assert found[name].numpy() == pytest.approx(values, rel=1e-4)
    total = sum(getattr(weights, name) * np.array(values) for name, values in expected.items())
    assert found["loss"].numpy() == pytest.approx(total, rel=1e-4)


def test_where_nothing_is_shown_only_the_spread_learns_and_its_best_is_the_mean_error():
    log_depth, spread, log_pred, depth, _ = map(torch.from_numpy, batch())
    log_depth.requires_grad_()
    spread = torch.full_like(spread, 1.3).requires_grad_()
    hole = depth > 0
    losses = completion_losses(CompletionWeights(), log_depth, spread, log_pred, depth, hole, UNIT)
    losses["loss"].sum().backward()
    assert not log_depth.grad.any() and spread.grad[hole].all()
    error = ((log_pred - depth.clamp(min=1).log()).abs() / UNIT)[0][hole[0]].mean()

    def likelihood(value):
        where = torch.full_like(spread, float(value))
        return completion_losses(
            CompletionWeights(), log_depth, where, log_pred, depth, hole, UNIT
        )["spread"][0]

    best = likelihood(error.log())
    assert best < likelihood(error.log() + 0.1) and best < likelihood(error.log() - 0.1)


def test_nothing_measured_is_0():
    log_depth, spread, log_pred, depth, hole = map(torch.from_numpy, batch())
    losses = completion_losses(
        CompletionWeights(), log_depth, spread, log_pred, depth * 0, hole & False, UNIT
    )
    assert not losses["loss"].any()


def test_wrong_weights_are_named():
    (line,) = CompletionWeights(kept=-1.0).problems()
    assert "kept is -1" in line
