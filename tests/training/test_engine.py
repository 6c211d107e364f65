"""DeepSpeed as we use it: every shipped configuration, the real fp16 optimizer, ZeRO, its whole
state, and the same step on any number of ranks."""

import json
import re
from pathlib import Path
from unittest import mock

import pytest
import torch
from helpers.captures import ROOT
from helpers.commands import on_ranks, on_srun, script
from helpers.runs import (
    deepspeed_json,
    largest_difference,
    log,
    make_loader,
    make_model,
    make_shards,
    train,
)

CONFIGS = sorted((ROOT / "ds_configs").glob("*.json"))
RGB = torch.randint(
    0, 256, (4, 28, 42, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small DA-V2 with a decoder that counts as pretrained: LoRA alone trains, the head is
    frozen."""
    return make_model(tmp_path_factory.mktemp("model") / "dav2")


def two_ranks(out, model, deepspeed):
    """ZeRO 0 to 3, 3 steps each: weights after each, all state after step 2, and the third step
    again by an engine that got that state."""
    from pathlib import Path

    import torch

    from depthdist.distributed.process_group import start, stop
    from depthdist.models.base_model import load_base
    from depthdist.models.lora import add_lora
    from depthdist.models.settings import LoraSettings
    from depthdist.training.deepspeed_config import EngineSettings
    from depthdist.training.engine import Engine

    out, world = Path(out), start()
    config = EngineSettings(Path(deepspeed)).resolved()[0]
    rgb = torch.randint(
        0, 256, (3, 4, 28, 42, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )

    def make(stage, seed):
        network = add_lora(load_base(model), LoraSettings(lora_dropout=0.0), seed)
        return Engine(
            network,
            {**config, "zero_optimization": {"stage": stage}},
            [([p for p in network.parameters() if p.requires_grad], 1e-4)],
            world,
        )

    def step(engine, number):
        for i in range(2):  # two micro-batches of one image a rank
            engine.backward(
                (engine.forward(rgb[number, [2 * world.rank + i]]) - 0.5).abs().mean() / 4
            )
            engine.step(1 - number / 4)
        return {name: tensor.cpu().clone() for name, tensor in engine.masters().items()}

    found = {}
    for stage in range(4):
        engine = make(stage, seed=0)
        first = {name: tensor.cpu().clone() for name, tensor in engine.masters().items()}
        steps = [step(engine, 0), step(engine, 1)]
        tensors, values = engine.state()
        tensors = {name: tensor.cpu().clone() for name, tensor in tensors.items()}
        steps.append(step(engine, 2))
        again = make(stage, seed=9)
        again.restore(tensors, values)
        restored = {name: tensor.cpu().clone() for name, tensor in again.masters().items()}
        found[stage] = {
            "first": first,
            "steps": steps,
            "tensors": tensors,
            "values": values,
            "restored": restored,
            "third": step(again, 2),
        }
    torch.save(found, out / f"rank{world.rank}.pt")
    stop()


@pytest.fixture(scope="module", autouse=True)
def at_work(folder, tmp_path_factory):
    """`two_ranks` on two ranks, while the tests of one rank run."""
    out = tmp_path_factory.mktemp("two")
    launch = on_ranks(
        2, two_ranks, out, out, folder, deepspeed_json(out / "batch4.json", train_batch_size=4)
    )
    yield out, launch
    launch.kill()


@pytest.fixture
def two(at_work):
    """The outcome of `two_ranks`: its folder, and what each rank saw."""
    out, launch = at_work
    assert launch.done().code == 0, launch.done()
    return out, [torch.load(out / f"rank{rank}.pt") for rank in range(2)]


def engine(world, path: Path, model="tiny", lr=1e-3, **changes):
    """An Engine of that configuration."""
    from depthdist.models.base_model import load_base
    from depthdist.models.lora import add_lora
    from depthdist.models.settings import LoraSettings
    from depthdist.training.deepspeed_config import EngineSettings
    from depthdist.training.engine import Engine

    network = add_lora(load_base(str(model)), LoraSettings(), seed=0)
    config, _ = EngineSettings(path).resolved()
    return Engine(
        network,
        {**config, **changes},
        [([p for p in network.parameters() if p.requires_grad], lr)],
        world,
    )


def learn(engine, times=1, scale=1.0):
    """Whether each micro-batch ended with an optimizer step."""
    taken = []
    for i in range(times):
        loss = (engine.forward(RGB[i % 4 :][:1], torch.tensor([i])) - 0.5).abs().mean() * scale
        engine.backward(loss)
        taken.append(engine.step())
    return taken


def weights(engine):
    return {name: tensor.clone() for name, tensor in engine.masters().items()}


# ----------------------------------------------------------------------------------- configurations


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_shipped_configuration_trains_two_steps_on_the_cpu(path, world):
    from depthdist.training.deepspeed_config import EngineSettings

    settings = EngineSettings(path)
    assert settings.problems() == [] and settings.batch == 8 and settings.micro_batches(2) == [1]
    remarks = settings.resolved()[1]
    assert len(remarks) == (path.stem == "fp16") and all(
        "FP16 IS NOT FOR THIS DEVICE" in r and "FP32" in r for r in remarks
    )
    made = engine(world, path)
    assert made.precision == {"fp16": "fp32"}.get(path.stem, path.stem)
    before = weights(made)
    assert learn(made, 16) == [*[False] * 7, True] * 2
    assert made.skipped_steps == 0 and made.loss_scale == 1 and made.grad_norm > 0
    assert largest_difference(weights(made), before) > 1e-3
    assert {t.dtype for t in made.masters().values()} == {torch.float32}


BAD = {
    "not JSON": ("{", "not JSON"),
    "a list": ("[]", "expected a JSON object, found list"),
    "no batch": ('{"optimizer": {"type": "AdamW"}}', "train_batch_size is missing"),
    "batch as text": (
        '{"train_batch_size": "8", "optimizer": {"type": "AdamW"}}',
        "train_batch_size is '8'; expected a whole number",
    ),
    "batch 0": ('{"train_batch_size": 0, "optimizer": {"type": "AdamW"}}', "train_batch_size is 0"),
    "lr": (
        '{"train_batch_size": 8, "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}}',
        "optimizer.params.lr is set",
    ),
    "a scheduler": (
        (
            '{"train_batch_size": 8, "optimizer": {"type": "AdamW"}, "scheduler": {"type":'
            ' "WarmupLR"}}'
        ),
        "scheduler is set",
    ),
    "accumulation": (
        '{"train_batch_size": 8, "optimizer": {"type": "AdamW"}, "gradient_accumulation_steps": 2}',
        "gradient_accumulation_steps is set",
    ),
    "no optimizer": ('{"train_batch_size": 8}', "optimizer.type is missing"),
    "optimizer as text": ('{"train_batch_size": 8, "optimizer": "AdamW"}', "optimizer"),
    "fp16 as a boolean": (
        '{"train_batch_size": 8, "optimizer": {"type": "AdamW"}, "fp16": true}',
        "fp16",
    ),
    "an optimizer without a type": ('{"train_batch_size": 8, "optimizer": {}}', "optimizer"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_configuration_is_one_clear_problem(name, tmp_path):
    from depthdist.training.deepspeed_config import EngineSettings

    content, expected = BAD[name]
    (tmp_path / "bad.json").write_text(content)
    found = EngineSettings(tmp_path / "bad.json").problems()
    assert len(found) == 1 and str(tmp_path / "bad.json") in found[0] and expected in found[0]


def test_all_problems_of_a_configuration_are_listed_at_once(tmp_path):
    from depthdist.training.deepspeed_config import EngineSettings

    (tmp_path / "bad.json").write_text(
        '{"scheduler": {}, "optimizer": {"type": "AdamW", "params": {"lr": 1}}}'
    )
    assert len(EngineSettings(tmp_path / "bad.json").problems()) == 3
    assert "No such file" in EngineSettings(tmp_path / "absent.json").problems()[0]


def test_what_deepspeed_refuses_with_an_error_class_of_its_own_is_one_line(world):
    with pytest.raises(ValueError, match="DeepSpeed refuses this configuration: Sparse"):
        engine(world, ROOT / "ds_configs/fp32.json", sparse_gradients=True)


# --------------------------------------------------------------------------------------------- fp16


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_an_overflow_halves_the_loss_scale_and_nothing_else(stage, world, real_fp16, tmp_path):
    made = engine(
        world,
        deepspeed_json(
            tmp_path / "fp16.json", "fp16", train_batch_size=2, zero_optimization={"stage": stage}
        ),
    )
    assert made.precision == "fp16" and made.loss_scale == 2**14
    assert learn(made, 2) == [False, True]
    before = weights(made)
    assert learn(made, 2, scale=1e30) == [False, False]
    assert (made.skipped_steps, made.loss_scale) == (1, 2**13)
    assert largest_difference(weights(made), before) == 0
    assert learn(made, 2) == [False, True]
    assert (made.skipped_steps, made.loss_scale) == (1, 2**13)
    assert largest_difference(weights(made), before) > 1e-5


@pytest.mark.parametrize("name", ["fp16", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_masters_keep_what_the_half_copies_round_away(
    name, stage, world, real_fp16, folder, tmp_path
):
    made = engine(
        world,
        deepspeed_json(
            tmp_path / "half.json", name, train_batch_size=1, zero_optimization={"stage": stage}
        ),
        folder,
        lr=1e-6,
    )
    before = weights(made)
    assert all("lora_" in key for key in before) and {t.dtype for t in before.values()} == {
        torch.float32
    }
    assert learn(made) == [True]
    after = weights(made)
    assert (
        1e-7 < largest_difference(after, before) < 2e-6
    )  # one step of Adam moves a weight by lr at most
    if stage == 3:
        return  # the half copies lie in pieces
    halves = {key: p for key, p in made.model.named_parameters() if p.requires_grad}
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[name]
    assert {p.dtype for p in halves.values()} == {dtype}
    assert all(torch.equal(halves[key], after[key].to(dtype)) for key in after), (
        "a half copy is its master, rounded"
    )
    kept = [
        key for key in after if "lora_A" in key
    ]  # of size 0.1: the step is far below their half precision
    assert all(
        torch.equal(after[key].to(dtype), before[key].to(dtype)) or name == "fp16" for key in kept
    )
    assert largest_difference(after, {key: p.detach().float() for key, p in halves.items()}) > 0


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_the_frozen_end_of_the_head_stays_exactly_float32(name, world, real_fp16, folder, tmp_path):
    from depthdist.models.base_model import load_base

    wanted = {
        key: value
        for key, value in load_base(str(folder)).net.head.state_dict().items()
        if "conv1" not in key
    }
    made = engine(world, deepspeed_json(tmp_path / "half.json", name, train_batch_size=1), folder)
    assert learn(made) == [True]
    net = made.model.net.base_model.model
    found = {key: value for key, value in net.head.state_dict().items() if "conv1" not in key}
    assert found.keys() == wanted.keys() and len(found) == 4
    assert all(
        found[key].dtype == torch.float32 and torch.equal(found[key], wanted[key]) for key in found
    )
    assert any(not torch.equal(value, value.half().float()) for value in found.values()), (
        "these could not tell"
    )
    assert (
        net.head.conv1.weight.dtype != torch.float32
        and net.backbone.embeddings.cls_token.dtype != torch.float32
    )


def test_training_in_real_fp16_reports_its_scale_and_exports_the_masters(
    data, folder, real_fp16, tmp_path
):
    from safetensors.torch import load_file

    run = tmp_path / "run"
    done = train(
        data, run, "--epochs", 1, "--model", folder, deepspeed=ROOT / "ds_configs/fp16.json"
    )
    assert done.code == 0 and "NOT FOR THIS DEVICE" not in done.out
    record = json.loads((run / "run.json").read_text())
    assert record["derived"]["precision"] == "fp16"
    assert not [line for line in record["remarks"] if not line.startswith("threads ")]
    assert [line["train/loss_scale"] for line in log(run, of="train/loss")] == [2**14, 2**14]
    adapter = load_file(run / "best/adapter_model.safetensors")
    assert {t.dtype for t in adapter.values()} == {torch.float32}
    assert any(not torch.equal(t, t.half().float()) for t in adapter.values()), (
        "these are the half copies"
    )


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_loss_scale_is_in_the_gradient_and_out_of_its_norm(
    stage, world, real_fp16, folder, tmp_path
):
    """DeepSpeed 0.19 forgets to multiply by it without ZeRO: its gradients underflow, and the norm
    that clipping sees is 16384 times too small."""
    norms, zeros = {}, {}
    for name, power in (("fp32", 0), ("fp16", 14), ("fp16", 4)):
        fp16 = {
            "enabled": name == "fp16",
            "loss_scale": 0,
            "initial_scale_power": power,
            "loss_scale_window": 100,
            "hysteresis": 1,
            "min_loss_scale": 1,
        }
        made = engine(
            world,
            deepspeed_json(
                tmp_path / "json",
                name,
                train_batch_size=1,
                fp16=fp16,
                zero_optimization={"stage": stage},
            ),
            folder,
        )
        learn(made)  # A has no gradient before this
        made.backward(
            (made.forward(RGB[:1], torch.tensor([0])) - 0.5).abs().mean() * 1e-5, watch=True
        )
        made.step()
        norms[power], zeros[power] = made.grad_norm, made.underflow_share
    assert norms[14] == pytest.approx(norms[0], rel=0.05)
    assert zeros[0] < 0.01 and zeros[14] < 0.1 < zeros[4]


# ------------------------------------------------------------------------------------- the gradient


def test_a_short_last_batch_steps_by_the_plain_mean_over_its_real_images(data, world, tmp_path):
    """One step of SGD at lr 1 without clipping moves the weights by the gradient.

    Autograd alone says what that is.
    """
    from depthdist.data.sample_order import TrainPlan
    from depthdist.distributed.shared_folder import SharedFolder
    from depthdist.geometry.depth_range import normalize_depth
    from depthdist.geometry.resampling import upsample
    from depthdist.losses.settings import LossSettings
    from depthdist.losses.terms import compute_losses
    from depthdist.models.base_model import load_base
    from depthdist.models.lora import add_lora
    from depthdist.models.settings import LoraSettings
    from depthdist.runs.tracker import Tracker
    from depthdist.training.engine import Engine
    from depthdist.training.loop import optimizer_step
    from depthdist.training.parts import Learner, Output, Run, TrainingData
    from depthdist.training.run_facts import training_bounds
    from depthdist.training.schedule import ScheduleSettings, lr_factor
    from depthdist.training.settings import KeepSettings, Settings, TrainSettings
    from depthdist.training.step_timer import StepTimer
    from depthdist.training.train_state import TrainState

    loader, plan, loss = make_loader(data), TrainPlan(11, 8, 2, 1), LossSettings()
    bounds = training_bounds(loader.dataset)
    network = add_lora(load_base("tiny"), LoraSettings(lora_dropout=0.0), seed=0)
    made = Engine(
        network,
        {"train_batch_size": 8, "optimizer": {"type": "SGD"}},
        [([p for p in network.parameters() if p.requires_grad], 1.0)],
        world,
        2,
    )
    settings = Settings(
        loss=loss,
        train=TrainSettings(epochs=1),
        schedule=ScheduleSettings(warmup=1),
        keep=KeepSettings(),
        **dict.fromkeys(("data", "augment", "model", "lora", "engine")),
    )
    assert lr_factor(settings.schedule, 1, 2) == 1
    run = Run(
        settings,
        world,
        TrainingData(loader.dataset, loader, plan, bounds),
        Learner(network, made, None, None),
        TrainState(),
        Output(SharedFolder.alone(tmp_path), Tracker(tmp_path, False, None, 2)),
    )
    batches, speed = iter(loader.train(plan, 0, 0, epochs=1)), StepTimer()
    made.lrs = [0.0]
    optimizer_step(run, batches, speed)
    before, made.lrs = weights(made), [1.0]
    optimizer_step(run, batches, speed)
    moved, state = (
        {name: before[name] - after for name, after in weights(made).items()},
        run.state,
    )

    plain = add_lora(load_base("tiny"), LoraSettings(lora_dropout=0.0), seed=0).train()
    short = loader.dataset.order(0).epoch(0)[8:].tolist()
    assert len(short) == 3 and state.step == 2
    total = 0.0
    for i in short:
        batch = loader.samples("train", [i]).to("cpu")
        target, mask = normalize_depth(batch.depth_mm, bounds, batch.mask)
        total = (
            total
            + compute_losses(
                loss, upsample(plain(batch.rgb), target.shape[-2:]), target, mask, bounds
            )["loss"][0]
            / 3
        )
    total.backward()
    wanted = {
        name: p.grad if p.grad is not None else torch.zeros_like(p)
        for name, p in plain.named_parameters()
        if p.requires_grad
    }
    largest = max(float(g.abs().max()) for g in wanted.values())
    assert largest > 1e-3 and largest_difference(moved, wanted) < 1e-4 * largest
    norm = torch.stack([g.norm() for g in wanted.values()]).norm()
    assert made.grad_norm == pytest.approx(float(norm), rel=1e-4)


# ------------------------------------------------------------------------------------ several ranks


def test_every_zero_stage_on_two_ranks_learns_the_same(two):
    _, ranks = two
    plain = ranks[0][0]
    assert (
        min(
            largest_difference(a, b)
            for a, b in zip(plain["steps"], [plain["first"], *plain["steps"]])
        )
        > 2e-5
    )
    for found in ranks:
        for stage in range(4):
            assert largest_difference(found[stage]["first"], plain["first"]) == 0
            for mine, its in zip(found[stage]["steps"], plain["steps"]):
                assert largest_difference(mine, its) < 1e-6, stage


def test_state_restores_weights_and_optimizer_exactly(two):
    for found in two[1]:
        for stage in range(4):
            one = found[stage]
            assert {name.partition("/")[0] for name in one["tensors"]} == {
                "weights",
                "exp_avg",
                "exp_avg_sq",
            } and one["values"]["optimizer_step"] == 2
            assert largest_difference(one["restored"], one["steps"][1]) == 0
            assert largest_difference(one["third"], one["steps"][2]) == 0, (
                "Adam's moments were lost"
            )


@pytest.mark.parametrize("source", range(4))
@pytest.mark.parametrize("stage", range(4))
def test_state_of_two_ranks_goes_on_on_one_in_any_stage(source, stage, two, world, folder):
    made, saved = (
        engine(world, two[0] / "batch4.json", folder, lr=1e-4, zero_optimization={"stage": stage}),
        two[1][0][source],
    )
    made.model.train(False)  # the two ranks had no dropout
    rgb = torch.randint(
        0, 256, (3, 4, 28, 42, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )[2]
    made.restore(saved["tensors"], saved["values"])
    assert largest_difference(weights(made), saved["steps"][1]) == 0
    for i in range(4):
        made.backward((made.forward(rgb[[i]]) - 0.5).abs().mean() / 4)
        made.step(1 - 2 / 4)
    assert largest_difference(weights(made), saved["steps"][2]) < 1e-6


def test_state_of_another_model_is_one_clear_error(two, world):
    saved = two[1][0][0]
    with pytest.raises(ValueError, match="the saved state is of another model"):
        engine(world, two[0] / "batch4.json").restore(
            saved["tensors"], saved["values"]
        )  # tiny: its decoder trains as well


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("stage", range(4))
def test_state_goes_round_in_every_precision_with_the_loss_scale(
    name, stage, world, real_fp16, folder, tmp_path
):
    path = deepspeed_json(
        tmp_path / "json", name, train_batch_size=1, zero_optimization={"stage": stage}
    )
    made, again = engine(world, path, folder), engine(world, path, folder)
    unused, values = made.state()
    assert values["optimizer_step"] == 0
    again.restore(unused, values)  # before the first step there are no moments
    learn(made, 2)
    if name == "fp16":
        learn(made, 1, scale=1e30)
    tensors, values = made.state()
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    again.restore(tensors, json.loads(json.dumps(values)))
    assert (
        (again.loss_scale, again.skipped_steps)
        == (made.loss_scale, made.skipped_steps)
        == ((2**13, 1) if name == "fp16" else (1, 0))
    )
    for one in (made, again):
        learn(one, 2)
    assert (
        largest_difference(weights(made), weights(again)) == 0
        and largest_difference(
            weights(made),
            {k.removeprefix("weights/"): t for k, t in tensors.items() if "weights/" in k},
        )
        > 0
    )


def weights_of_steps(samples=6):
    """Print what three clipped steps of six samples make of a layer, each rank with its share."""
    import torch

    from depthdist.distributed.process_group import start
    from depthdist.training.engine import Engine

    world = start()
    torch.manual_seed(0)
    layer = torch.nn.Linear(7, 5)
    sgd = {"type": "SGD", "params": {}}
    config = {"train_batch_size": samples, "gradient_clipping": 0.1, "optimizer": sgd}
    engine = Engine(layer, config, [(list(layer.parameters()), 1.0)], world)
    for batch in torch.randn(3, samples, 7):
        for image in batch[world.rank :: world.size]:
            engine.backward(engine.forward(image[None]).square().sum() / samples)
            engine.step()
        assert engine.grad_norm > 0.2
    if world.rank == 0:
        print("weights", layer.weight.detach().numpy().tobytes().hex())


def test_clipping_rounds_alike_on_three_ranks(world, tmp_path, capsys):
    """DeepSpeed's own, in fp32, divides the norm by the ranks and adds it up again."""
    launches = on_srun(3, script(weights_of_steps, tmp_path))
    with mock.patch("depthdist.distributed.process_group.start", return_value=world):
        weights_of_steps()
    found = [capsys.readouterr().out, *(launch.done().out for launch in launches)]
    alone, together = re.findall("^weights (.+)$", "".join(found), re.M)
    assert alone == together
