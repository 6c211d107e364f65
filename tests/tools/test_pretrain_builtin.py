"""The built-in model: what it is, that it sees depth, and that one command makes such a model."""

import numpy as np
import pytest
import torch
from helpers.commands import command, steps_in_this_process
from helpers.runs import log, train
from safetensors.torch import load_file
from transformers import AutoImageProcessor, DepthAnythingForDepthEstimation

from depthdist.data.dataset import DataSettings, open_dataset
from depthdist.data.loader import Loader
from depthdist.evaluation.metrics.alignment import align
from depthdist.losses.terms import to_relative_depth
from depthdist.models.adapter import load_adapter, save_full_model
from depthdist.models.base_model import BUILT_IN, load_base
from depthdist.models.builtin_start import initial_model
from depthdist.models.lora import add_lora
from depthdist.models.settings import LoraSettings
from depthdist.synthetic.rooms import render as rooms
from depthdist.synthetic.tires import render as tires
from tools import make_tires, pretrain_builtin

SIZE = (224, 364)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The network before pretraining, as a folder."""
    folder = tmp_path_factory.mktemp("start") / "start"
    save_full_model(initial_model(0), {}, None, folder)
    return str(folder)


@pytest.fixture(scope="module")
def captures(tmp_path_factory):
    """Shards of built-in captures of tires in a crate: 12 for training, 4 for validation."""
    folder = tmp_path_factory.mktemp("captures")
    make_tires.main([str(folder / "raw"), "--pairs", "16", "--size", "300x486", "--seed", "5"])
    flags = ["--size", "196x308", "--depth-size", "train", "--split", "random", "--val", 0.25]
    done = command("tools/shard.py", folder / "raw", folder / "data", *flags)
    assert done.code == 0, done.err
    return folder / "data"


def abs_rel(model, pairs):
    """Mean AbsRel over (rgb, depth_mm) pairs, scale and shift of 1/depth fitted to each."""
    found = []
    for rgb, depth_mm in pairs:
        truth = torch.from_numpy(np.ascontiguousarray(depth_mm))
        with torch.no_grad():
            pred = model.upsampled(model(torch.from_numpy(rgb)[None]), truth.shape)[0]
        mask = torch.isfinite(truth)
        away = align("disparity", 1.0 / pred.clamp(min=1e-3), truth, mask)
        found.append(float(((away - truth).abs() / truth)[mask].mean()))
    return sum(found) / len(found)


@torch.no_grad()
def distance(model):
    """Mean distance from the target of pretraining, a range of 1 to 9, over 100 unseen scenes."""
    scenes = [rooms.render(rooms.Settings(100, (28, 42), 77), i) for i in range(100)]
    truth = 1 / torch.from_numpy(np.stack([s.xyz[..., 2] for s in scenes])).float()
    mask = torch.isfinite(truth)
    output = model.raw(torch.from_numpy(np.stack([s.rgb for s in scenes])))
    return float((output - to_relative_depth(truth, mask))[mask].abs().mean())


def test_it_is_a_small_depth_anything_in_half_precision_with_its_card():
    stored = load_file(BUILT_IN / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float16}
    assert (BUILT_IN / "model.safetensors").stat().st_size <= 4_000_000
    base = load_base("built-in")
    trained, total = base.parameter_counts()
    assert trained == 0
    assert 1e6 < total < 3e6
    assert not base.fresh_decoder
    assert isinstance(base.head.activation2, torch.nn.ReLU)
    model = add_lora(base, LoraSettings(), seed=0)
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 36
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)
    card = (BUILT_IN / "README.md").read_text()
    for text in ("tools/pretrain_builtin.py", "seed", "license: apache-2.0"):
        assert text in card


def test_plain_transformers_reads_it_alike():
    rgb = rooms.render(rooms.Settings(1, SIZE, 98), 0).rgb
    seen = AutoImageProcessor.from_pretrained(BUILT_IN)(rgb, return_tensors="pt")["pixel_values"]
    assert seen.shape == (1, 3, *SIZE)
    with torch.no_grad():
        plain = (
            DepthAnythingForDepthEstimation.from_pretrained(BUILT_IN, dtype=torch.float32)
            .eval()(pixel_values=seen)
            .predicted_depth
        )
        ours = load_base("built-in")(torch.from_numpy(rgb)[None])
    assert (plain - ours).abs().max() < 1e-4
    assert ours.min() >= 0
    assert ours.max() < 20
    assert ours.std() > 0.5


def test_it_sees_depth_in_scenes_and_captures_that_it_never_saw(start):
    """The random start scores like a constant: the alignment alone does not see depth."""
    scenes = [rooms.render(rooms.Settings(8, SIZE, 99), i) for i in range(8)]
    crates = [tires.render(tires.Settings(8, (294, 476), seed=31), i) for i in range(8)]
    for pairs, better in (
        ([(s.rgb, s.xyz[..., 2]) for s in scenes], 0.75),
        ([(c.rgb, c.xyz[..., 2]) for c in crates], 0.95),
    ):
        assert abs_rel(load_base("built-in"), pairs) < better * abs_rel(load_base(start), pairs)


def test_a_few_steps_of_lora_alone_improve_it_on_held_out_captures_and_not_the_random_start(
    captures, start, tmp_path
):
    errors = {}
    flags = "--recipe near --lora linear --lr 1e-3 --epochs 6"
    for name, model in (("built-in", "built-in"), ("start", start)):
        assert train(captures, tmp_path / name, "--model", model, *flags.split()).code == 0
        errors[name] = [line["eval/rmse_mm"] for line in log(tmp_path / name, of="eval/rmse_mm")]
    assert min(errors["built-in"]) < 0.93 * errors["built-in"][0]
    assert min(errors["built-in"]) < 0.93 * min(errors["start"])


def test_one_command_pretrains_such_a_model_from_nothing_and_again_it_is_the_same(
    tmp_path, monkeypatch
):
    small = "--small-scenes 200 --small-epochs 6 --small-lr 1e-3"
    words = [str(tmp_path), *f"--size 56x84 {small} --scenes 100 --epochs 1 --warmup 5".split()]
    with steps_in_this_process():
        pretrain_builtin.main(words)
    made = tmp_path / "foundation"
    assert sorted(p.name for p in made.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    begun = load_base(str(tmp_path / "start"))
    learned = load_adapter(tmp_path / "small/run/best")[0]
    assert distance(learned) < 0.98 * distance(begun), "78 steps learn only where things often are"
    assert len(log(tmp_path / "full/run", of="eval/loss")) == 2
    settings = DataSettings(data=(str(tmp_path / "full/data"),))
    model = load_base(str(made))
    batches = Loader(open_dataset(settings), settings).evaluate("val", 2, 0, 1)
    seen = torch.cat([model.raw(batch.to("cpu").rgb).flatten() for batch in batches])
    assert torch.quantile(seen, torch.tensor([0.001, 0.999])).tolist() == pytest.approx(
        [0.5, 10.0], abs=0.5
    ), "but for half precision"
    card = (made / "README.md").read_text()
    for text in (
        "| 28x42 | `--scenes 200 --size 42x63 --seed 0` | 196 + 4 |",
        "disparity-aligned",
        "tools/pretrain_builtin.py OUT",
    ):
        assert text in card
    before = (made / "model.safetensors").read_bytes()
    asked = []
    # each of the commands sees itself that it is done: their own tests
    for run in ("run_shown", "run_python"):
        monkeypatch.setattr(pretrain_builtin, run, lambda *words: asked.append(words))
    pretrain_builtin.main(words)
    assert len(asked) == 7
    assert (made / "model.safetensors").read_bytes() == before


def test_a_pause_between_two_starts_is_no_time_at_work():
    starts = [
        {"step": 0, "time": "1970-01-01T00:01:30+0000"},
        {"step": 2, "time": "1970-01-01T01:00:00+0000"},
    ]
    seconds = pretrain_builtin.training_seconds
    assert seconds([100.0, 130.0, 170.0, 3660.0, 3700.0], starts) == 30 + 40 + 40
    assert seconds([100.0, 130.0, 170.0], starts[:1]) == 70


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--scenes", "10"], "--scenes is 10: expected >= 50"),
        (["--small-epochs", "0"], "--small-epochs is 0"),
        (["--ranks", "0"], "--ranks is 0"),
        (["--size", "42x84"], "--size is 42x84: expected multiples of 28"),
        (
            ["--scenes", "100"],
            "--warmup is 200: expected fewer than the 36 optimizer steps that the shorter stage"
            " has",
        ),
    ],
)
def test_settings_that_cannot_work_are_reported_before_anything_is_made(tmp_path, words, said):
    with pytest.raises(ValueError, match=said):
        pretrain_builtin.main([str(tmp_path / "out"), *words])
    assert not (tmp_path / "out").exists()
