"""The loss scale of DeepSpeed's real fp16 optimizers: what growing and falling do to training."""

import json
import math

import pytest
import torch
from helpers.losses import with_gradient
from helpers.runs import deepspeed_json, train

WINDOW = 3  # steps after which the scale grows
RGB = torch.randint(
    0, 256, (1, 28, 42, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def fp16(path, stage=0, clip=0.0, **changes):
    """A configuration of plain gradient descent: a step moves the weights by the gradient."""
    scale = {"enabled": True, "loss_scale": 0, "initial_scale_power": 4, "hysteresis": 1}
    scale |= {"loss_scale_window": WINDOW, "min_loss_scale": 1, **changes}
    return deepspeed_json(
        path,
        "fp16",
        train_batch_size=1,
        gradient_clipping=clip,
        zero_optimization={"stage": stage},
        zero_allow_untested_optimizer=True,
        optimizer={"type": "SGD", "params": {}},
        fp16=scale,
    )


def make_engine(path, world, model, lr=1e-4):
    from depthdist.models.base_model import load_base
    from depthdist.models.lora import add_lora
    from depthdist.models.settings import LoraSettings
    from depthdist.training.deepspeed_config import EngineSettings
    from depthdist.training.engine import Engine

    network = add_lora(load_base(str(model)), LoraSettings(lora_dropout=0.0), seed=0)
    groups = [([p for p in network.parameters() if p.requires_grad], lr)]
    return Engine(network, EngineSettings(path).resolved()[0], groups, world)


def step(engine, scale=1.0):
    """Take a step; return how far it moved the weights, divided by the learning rate."""
    before = {name: tensor.clone() for name, tensor in engine.masters().items()}
    engine.backward((engine.forward(RGB) - 0.5).abs().mean() * scale)
    engine.step()
    moved = [(before[name] - now).flatten() for name, now in engine.masters().items()]
    return float(torch.cat(moved).double().norm()) / engine.lrs[0]


@pytest.mark.parametrize("stage", range(4))
def test_the_weights_get_the_whole_gradient_in_the_step_in_which_the_scale_grows(
    stage, world, real_fp16, model, tmp_path
):
    """All of DeepSpeed 0.19's optimizers double the scale before they divide by it."""
    made = make_engine(fp16(tmp_path / "json", stage), world, model)
    moved, norms, scales = [], [], []
    for _ in range(2 * WINDOW + 2):
        moved.append(step(made))
        norms.append(made.grad_norm)
        scales.append(made.loss_scale)
    assert scales[-1] >= 4 * 2**4, "the scale has grown twice"
    assert moved == pytest.approx([moved[0]] * len(moved), rel=0.02)
    assert norms == pytest.approx(moved, rel=0.02)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_clipping_judges_the_whole_gradient_when_the_scale_grows(
    stage, world, real_fp16, model, tmp_path
):
    norm = step(make_engine(fp16(tmp_path / "json", stage), world, model))
    made = make_engine(fp16(tmp_path / "json", stage, clip=0.75 * norm), world, model)
    moved = [step(made) for _ in range(WINDOW + 2)]
    assert made.loss_scale > 2**4
    assert moved == pytest.approx([0.75 * norm] * len(moved), rel=0.02)


def test_a_resume_grows_the_scale_in_the_same_step(world, real_fp16, model, tmp_path):
    path = fp16(tmp_path / "json")
    whole = make_engine(path, world, model)
    scales = []
    for number in range(2 * WINDOW + 2):
        step(whole)
        scales.append(whole.loss_scale)
        if number == WINDOW - 1:
            tensors, values = whole.state()
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    again = make_engine(path, world, model)
    again.restore(tensors, json.loads(json.dumps(values)))
    resumed = []
    for _ in range(WINDOW, 2 * WINDOW + 2):
        step(again)
        resumed.append(again.loss_scale)
    assert resumed == scales[WINDOW:] and len(set(scales)) == 3
    ours, its = again.masters(), whole.masters()
    assert all(torch.equal(ours[name], its[name]) for name in its)


@pytest.mark.parametrize("stage", range(4))
def test_a_scale_that_can_still_fall_is_no_problem_and_the_smallest_is(
    stage, world, real_fp16, model, tmp_path
):
    made = make_engine(fp16(tmp_path / "json", stage, initial_scale_power=2), world, model)
    found = []
    for _ in range(3):
        assert step(made, scale=math.inf) == 0
        found.append((made.loss_scale, made.gradient_problem))
    assert found == [
        (2, ""),
        (1, ""),
        (1, "not finite at a loss scale of 1, the smallest,"),
    ]
    assert step(made) > 0 and made.gradient_problem == ""


def test_too_many_skipped_steps_in_a_row_are_a_problem_where_the_scale_is_fixed(
    world, real_fp16, model, tmp_path
):
    made = make_engine(fp16(tmp_path / "json", loss_scale=256), world, model)
    for _ in range(19):
        step(made, scale=math.inf)
    assert made.gradient_problem == "" and made.loss_scale == 256
    step(made, scale=math.inf)
    assert made.gradient_problem == "not finite in 20 steps in a row"


@pytest.mark.parametrize("stage", [0, 2])
def test_a_gradient_that_is_never_a_number_ends_a_run_in_fp16_and_names_the_samples(
    stage, data, real_fp16, tmp_path, monkeypatch
):
    from depthdist.training import loop

    real = loop.forward
    seen, poison = [], with_gradient(math.nan)

    def poisoned(run, batch):
        seen.append(batch.stems)
        return {name: poison(part) for name, part in real(run, batch).items()}

    monkeypatch.setattr(loop, "forward", poisoned)
    scale = {"enabled": True, "loss_scale": 0, "initial_scale_power": 1, "min_loss_scale": 1}
    path = deepspeed_json(
        tmp_path / "json",
        "fp16",
        train_batch_size=4,
        fp16={**scale, "hysteresis": 1},
        zero_optimization={"stage": stage},
    )
    (line,) = train(data, tmp_path / "run", "--epochs", 15, deepspeed=path).errors
    assert line.startswith(
        "step 2: the gradient is not finite at a loss scale of 1, the smallest, although the loss"
        " is finite, for "
    )
    last_batch = [stem for stems in seen[4:] for stem in stems]
    assert last_batch and all(stem in line for stem in last_batch)
