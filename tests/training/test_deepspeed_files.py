"""DeepSpeed files as people have them: each is read and settled, or refused in one clear line."""

import codecs
import json
from types import SimpleNamespace

import pytest
from helpers.captures import ROOT
from helpers.commands import command
from helpers.runs import make_shards

from depthdist.core.json_text import find_json_faults
from depthdist.training.deepspeed_config import EngineSettings, config_problems, precision

PLAIN = {"train_batch_size": 4, "optimizer": {"type": "AdamW", "params": {"torch_adam": True}}}
HUGGING_FACE_ZERO_2 = {
    "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16, "hysteresis": 2},
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
    },
    "scheduler": {
        "type": "WarmupLR",
        "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"},
    },
    "zero_optimization": {
        "stage": 2,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "allgather_partitions": True,
        "allgather_bucket_size": 2e8,
        "overlap_comm": True,
        "reduce_bucket_size": "auto",
        "contiguous_gradients": True,
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
}
HUGGING_FACE_ZERO_3 = {
    **HUGGING_FACE_ZERO_2,
    "bf16": {"enabled": "auto"},
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "nvme", "nvme_path": "/local_nvme"},
        "offload_param": {"device": "cpu", "pin_memory": True},
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "steps_per_print": 2000,
    "wall_clock_breakdown": False,
}
LEFT_OUT = {
    name: {**PLAIN, name: {"enabled": True}}
    for name in (
        "wandb",
        "tensorboard",
        "csv_monitor",
        "comet",
        "flops_profiler",
        "autotuning",
        "activation_checkpointing",
        "aio",
    )
}
ACCEPTED = {"zero 2": HUGGING_FACE_ZERO_2, "zero 3": HUGGING_FACE_ZERO_3, **LEFT_OUT}
REFUSED = {
    "amp": {"enabled": True, "opt_level": "O1"},
    "compression_training": {"weight_quantization": {}},
    "curriculum_learning": {"enabled": True},
    "data_efficiency": {"enabled": True},
    "progressive_layer_drop": {"enabled": True},
    "elasticity": {"enabled": True},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10}},
}


def settings(folder, content) -> EngineSettings:
    path = folder / "ds.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return EngineSettings(path)


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_byte_order_mark_is_read(tmp_path, mark):
    start = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}.get(mark, b"")
    content = start + json.dumps(PLAIN).encode(mark)
    assert settings(tmp_path, content).read() == PLAIN


@pytest.mark.parametrize(
    "text, found",
    [
        ('{\n // why\n"train_batch_size": 8}', "line 2: JSON has no comments; remove // why"),
        ('{"train_batch_size": 8,\n# why\n"a": 1}', "line 2: JSON has no comments; remove # why"),
        ('{"u": "http://a#b",\n\n/* why */ "a": 1}', "line 3: JSON has no comments; remove /* why"),
        ('{ // a\n"a": 1 // b\n}', "line 1: JSON has no comments; remove // a; also line 2"),
        ('{"a": 1,\n"b": [1,\n]}', "line 2: nothing follows this comma"),
        ('{"a": "NaN",\n"b": [NaN, NaN]}', "line 2: NaN; expected a number"),
        ('{"a": 1,\n"b": 2,\n"a": 3}', 'line 3: "a" stands on line 1 already'),
        (
            '{"a": {"on": 1},\n"b": {"on": 1,\n"on": 2},\n"c": {"on": 1}}',
            'line 3: "on" stands on line 2 already',
        ),
        ('{"a":\nTrue}', "line 2: True; JSON spells it true"),
        ("{'a': 1}", "line 1: 'a'; JSON has text in double quotes"),
        ('{"a"\n: 1\n"b": 2}', "line 3, column 1: Expecting ',' delimiter"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "expected a JSON object, found list"),
        ("", "line 1, column 1: Expecting value"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, text, found):
    (problem,) = settings(tmp_path, text.encode()).problems()
    assert found in problem and "\n" not in problem


@pytest.mark.parametrize(
    "content",
    [{"a": ["x", "x"], "b": {"x": "a"}}, {"a": [{"x": 1}, {"x": 1}], "x": "// # /* */ ,]"}],
)
def test_what_is_right_has_no_fault(content):
    assert find_json_faults(json.dumps(content, indent=1)) == []


def test_other_bytes_are_refused_in_one_line(tmp_path):
    (problem,) = settings(tmp_path, b'{"a": "\xff"}').problems()
    assert "line 1: bytes that are no utf-8" in problem


def test_the_shipped_files_are_found_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert EngineSettings().problems() == [] and EngineSettings().batch == 8


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_accepted_file_has_no_problem_and_a_remark_for_what_is_left_out(tmp_path, name):
    engine = settings(tmp_path, ACCEPTED[name])
    assert engine.problems() == []
    config, remarks = engine.resolved()
    assert name not in config and "auto" not in json.dumps(config)
    assert any(name in line for line in remarks) or name.startswith("zero")


def test_auto_means_the_recipes_values(tmp_path):
    config = settings(tmp_path, HUGGING_FACE_ZERO_3).read()
    assert (config["train_batch_size"], config["gradient_clipping"]) == (8, 1.0)
    assert precision(config) == "fp16" and config["bf16"] == {"enabled": False}
    assert config["optimizer"]["params"] == {
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "weight_decay": 0.0,
        "torch_adam": True,
    }
    assert config["zero_optimization"] == {"stage": 3, "sub_group_size": 1e9}


@pytest.mark.parametrize("chosen, other", [("bf16", "fp16"), ("fp16", "bf16")])
def test_a_precision_that_is_chosen_decides_what_auto_means_for_the_other(tmp_path, chosen, other):
    content = {**PLAIN, chosen: {"enabled": True}, other: {"enabled": "auto"}}
    config = settings(tmp_path, content).read()
    assert precision(config) == chosen and config[other] == {"enabled": False}


@pytest.mark.parametrize("name", ["offload_optimizer", "offload_param", "cpu_offload"])
def test_offloading_is_left_out_with_a_remark(tmp_path, name):
    value = True if name == "cpu_offload" else {"device": "cpu"}
    content = {**PLAIN, "zero_optimization": {"stage": 3, name: value}}
    config, remarks = settings(tmp_path, content).resolved()
    assert config["zero_optimization"] == {"stage": 3}
    assert any(f"zero_optimization.{name} is left out" in line for line in remarks)


@pytest.mark.parametrize("name", REFUSED)
def test_a_section_that_cannot_be_used_is_refused_by_name(tmp_path, name):
    engine = settings(tmp_path, {**PLAIN, name: REFUSED[name]})
    (problem,) = config_problems(engine.read())
    assert problem.startswith(f"{name} is set; leave it out: ")


@pytest.mark.parametrize("name", [*LEFT_OUT, "amp", "curriculum_learning"])
def test_a_section_that_is_off_changes_nothing(tmp_path, name):
    engine = settings(tmp_path, {**PLAIN, name: {"enabled": False}})
    assert engine.problems() == [] and engine.resolved() == (PLAIN, [])


def test_a_key_that_is_not_known_is_told(tmp_path):
    _, remarks = settings(tmp_path, {**PLAIN, "made_by": "me"}).resolved()
    assert any("made_by is not known here" in line for line in remarks)


def test_a_slip_in_a_key_is_refused_with_the_name_that_was_meant(tmp_path):
    (problem,) = settings(tmp_path, {**PLAIN, "gradient_cliping": 1}).problems()
    assert "unknown key gradient_cliping; did you mean gradient_clipping" in problem


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of that compute capability, as torch and DeepSpeed see it.

    A bfloat16 tensor can be made on each: what has no units for it is emulated.
    """
    import torch
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

    def make(major):
        for name, value in {
            "is_available": True,
            "current_device": 0,
            "get_device_properties": SimpleNamespace(major=major),
            "get_device_capability": (major, 5),
            "get_device_name": "a GPU",
            "_check_bf16_tensor_supported": True,
        }.items():
            monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
        cuda = CUDA_Accelerator()
        monkeypatch.setattr("depthdist.training.deepspeed_config.accelerator", lambda: cuda)

    return make


def test_bf16_is_refused_by_a_gpu_that_only_emulates_it(gpu):
    settings = EngineSettings(ROOT / "ds_configs/bf16.json")
    gpu(major=7)  # Turing
    with pytest.raises(ValueError, match=r"bf16.json: a GPU has no bf16 \(compute capability 7.5"):
        settings.resolved()
    assert precision(EngineSettings(ROOT / "ds_configs/fp16.json").resolved()[0]) == "fp16"
    gpu(major=8)
    assert precision(settings.resolved()[0]) == "bf16"


def test_the_older_name_of_bf16_is_bf16(tmp_path):
    config = settings(tmp_path, {**PLAIN, "bfloat16": {"enabled": True}}).read()
    assert precision(config) == "bf16" and "bfloat16" not in config


@pytest.mark.parametrize("name", ["fp16", "optimizer", "bf16"])
def test_auto_in_the_place_of_a_section_means_ours(tmp_path, name):
    engine = settings(tmp_path, {**PLAIN, name: "auto"})
    config = engine.read()
    assert engine.problems() == []
    assert config["optimizer"]["type"] == "AdamW" and config["optimizer"]["params"]["torch_adam"]
    assert precision(config) == ("fp32" if name == "optimizer" else "fp16")


@pytest.mark.parametrize(
    "name, value", [("optimizer", {"type": "AdamW", "params": [1]}), ("steps_per_print", "often")]
)
def test_a_value_of_the_wrong_kind_is_named_with_what_was_expected(tmp_path, name, value):
    (problem,) = settings(tmp_path, {**PLAIN, name: value}).problems()
    assert name in problem and "expected" in problem


def test_a_file_of_hugging_face_trains(tmp_path):
    engine = settings(tmp_path, {**HUGGING_FACE_ZERO_3, "fp16": {"enabled": False}})
    done = command(
        "launch/train.py",
        *("--data", make_shards(tmp_path, 4)),
        *("--deepspeed", engine.deepspeed),
        *("--run", tmp_path / "run"),
        *("--model", "tiny", "--epochs", 1, "--pictures", 0),
    )
    assert done.code == 0, done
    assert 'DeepSpeed file: "auto"' in done.out
