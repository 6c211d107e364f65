"""A calibrated start: the planted line is found, and the adapter needs nothing else."""

import itertools
import math

import pytest
import torch
from helpers.commands import joined
from helpers.runs import (
    largest_difference,
    log,
    make_loader,
    saved_state,
    saved_weights,
    train,
)


def test_a_planted_relation_between_output_and_target_is_found_and_undone(data, model):
    """Depth that is made from the model's own raw output, by a known scale and shift of the target:
    the fit gives both back."""
    from depthdist.geometry.depth_range import DepthRange, denormalize_depth, normalize_depth
    from depthdist.geometry.resampling import upsample
    from depthdist.models.base_model import load_base
    from depthdist.training.calibration import fit_calibration

    bounds, loader, base = DepthRange(500.0, 3000.0), make_loader(data), load_base(str(model))
    scale, shift, real = 0.004, 0.3, loader.evaluate

    class Planted:
        def __init__(self, packed):
            self.packed = packed

        def to(self, device):
            batch = self.packed.to(device)
            with torch.no_grad():
                target = scale * upsample(base.raw(batch.rgb), batch.depth_mm.shape[-2:]) + shift
            assert target.min() > 0 and target.max() < 1
            batch.depth_mm = denormalize_depth(target, bounds)
            return batch

    loader.evaluate = lambda *a: map(Planted, real(*a))
    line = fit_calibration(base, loader, bounds, joined())
    assert line == pytest.approx((scale, shift, 1.0), rel=1e-4)
    batch = next(iter(loader.evaluate("train", 1, 0, 1))).to("cpu")
    target, mask = normalize_depth(batch.depth_mm, bounds, batch.mask)
    base.rescale(*line[:2])
    with torch.no_grad():
        off = (upsample(base(batch.rgb), target.shape[-2:]) - target)[mask]
    assert off.abs().max() < 1e-4


class Masked:
    """A loader's batch, whose mask is False everywhere."""

    def __init__(self, packed):
        self.packed = packed

    def to(self, device):
        batch = self.packed.to(device)
        batch.mask = torch.zeros_like(batch.mask)
        return batch


@pytest.fixture
def fit(data, model, monkeypatch):
    """Fit the model to batches as `seen` makes them of a loader's."""
    from depthdist.models.base_model import load_base
    from depthdist.training.calibration import fit_calibration
    from depthdist.training.run_facts import training_bounds

    loader, base = make_loader(data), load_base(str(model))
    real = loader.evaluate

    def fitted(seen):
        monkeypatch.setattr(loader, "evaluate", lambda *given: seen(real(*given)))
        return fit_calibration(base, loader, training_bounds(loader.dataset), joined())

    return base, fitted


def test_images_without_a_valid_pixel_do_not_count(fit):
    _, fitted = fit
    expected = fitted(lambda batches: itertools.islice(batches, 0, None, 2))
    found = fitted(lambda batches: (b if i % 2 == 0 else Masked(b) for i, b in enumerate(batches)))
    assert found == expected


def test_one_sample_is_enough_for_a_line(fit):
    _, fitted = fit
    line = fitted(lambda batches: itertools.islice(batches, 1))
    assert all(map(math.isfinite, line)) and 0 <= line.explained <= 1


def test_no_valid_pixel_at_all_is_one_line(fit):
    with pytest.raises(ValueError, match=r"none of \d+ training samples has a valid pixel"):
        fit[1](lambda batches: map(Masked, batches))


def test_a_model_whose_output_is_no_number_is_one_line(fit):
    base, fitted = fit
    with torch.no_grad():
        base.head.conv3.bias.fill_(math.nan)
    with pytest.raises(ValueError, match="what the untrained model gives is not finite"):
        fitted(iter)


def test_a_calibrated_run_begins_nearer_and_its_adapter_needs_nothing_else(
    data, model, batch4, tmp_path
):
    from peft import PeftModel
    from transformers import AutoModelForDepthEstimation

    from depthdist.models.adapter import load_adapter

    plain, calibrated = tmp_path / "plain", tmp_path / "calibrated"
    for run, words in ((plain, ["--recipe", "document"]), (calibrated, [])):
        assert train(data, run, "--epochs", 1, "--model", model, *words, deepspeed=batch4).code == 0
    start = [log(run, of="eval/loss")[0]["eval/loss"] for run in (plain, calibrated)]
    assert start[1] < 0.5 * start[0]
    rgb = torch.randint(
        0, 256, (1, 28, 42, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    ours, _ = load_adapter(calibrated / "best")
    alone = PeftModel.from_pretrained(
        AutoModelForDepthEstimation.from_pretrained(model), calibrated / "best"
    ).eval()
    with torch.no_grad():
        pixels = (rgb.permute(0, 3, 1, 2).float() / 255 - ours.mean) / ours.std
        assert torch.allclose(ours(rgb), alone(pixel_values=pixels).predicted_depth, atol=1e-6)
    assert len(saved_state(calibrated)[1]["train"]["line"]) == 3


def test_a_calibrated_run_goes_on_with_the_same_scale_and_shift(data, model, batch4, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    words = ["--model", model]
    assert (
        train(data, whole, "--epochs", 2, *words, "--schedule", "constant", deepspeed=batch4).code
        == 0
    )
    for epochs in (1, 2):
        assert (
            train(
                data, run, "--epochs", epochs, *words, "--schedule", "constant", deepspeed=batch4
            ).code
            == 0
        )
    assert (
        largest_difference(saved_weights(run), saved_weights(whole)) == 0
        and saved_state(run)[1]["train"]["line"] == saved_state(whole)[1]["train"]["line"]
    )
