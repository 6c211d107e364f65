"""The training state: bits come back; damage is recognised, and the state before it is used."""

import hashlib
import json
import math
import os
import random
import shutil

import pytest
import torch
from helpers.training_states import load, names, save

from depthdist.runs.state_files import MANIFEST, TENSORS, VALUES, states
from depthdist.runs.training_state import load_state, save_state

# --------------------------------------------------------------------------------------- round trip


def bits(x):
    return x.dtype, x.shape, x.contiguous().view(-1).view(torch.uint8).tolist()


def test_every_bit_of_every_tensor_comes_back(tmp_path):
    flat = torch.arange(12.0)
    tensors = {
        "nan payloads": (
            torch.tensor([0x7FC12345, -1, 0x7F800001, -(2**31)], dtype=torch.int32).view(
                torch.float32
            )
        ),
        "0-dim": torch.tensor(3.5),
        "int64": torch.tensor([2**63 - 1, -(2**63)]),
        "bf16": torch.randn(3, 5).bfloat16(),
        "fp16": torch.tensor([math.nan, math.inf, 6e-8, -0.0], dtype=torch.float16),
        "float64": torch.tensor([math.pi], dtype=torch.float64),
        "bool": torch.tensor([True, False]),
        "bytes": torch.arange(256).to(torch.uint8),
        "empty": torch.empty(0, 4),
        "transposed": flat.view(3, 4).T,
        "a piece of a flat buffer": flat[:5],
        "another that overlaps": flat[3:],
        "the same once more": flat,
        "trained": torch.nn.Parameter(torch.ones(2)),
    }
    (tmp_path / "run").mkdir()
    state = save_state(tmp_path / "run/last", 123, tensors, {}, keep=1)
    found, _, where = load_state(tmp_path / "run/last", pytest.fail)
    assert where == state == tmp_path / "run/last/step-000123" and names(state) == sorted(
        [TENSORS, VALUES, MANIFEST]
    )
    assert list(found) == sorted(tensors) and all(
        bits(found[name]) == bits(x) for name, x in tensors.items()
    )
    found["0-dim"] += 1  # of its own, and writable
    assert bits(load_state(tmp_path / "run/last", pytest.fail)[0]["0-dim"]) == bits(
        tensors["0-dim"]
    )


def test_values_come_back_as_json_holds_them(tmp_path):
    values = {
        "best": math.inf,
        "rate": 0.1 + 0.2,
        "tiny": 5e-324,
        "position": {"epoch": 3, "key": "ü"},
        "list": [1, None, True],
        "big": 2**70,
    }
    save_state(tmp_path, 0, {}, {**values, "nan": math.nan}, keep=1)
    tensors, found, _ = load_state(tmp_path, pytest.fail)
    assert tensors == {} and math.isnan(found.pop("nan")) and found == values


def test_the_same_state_is_the_same_bytes(tmp_path):
    first, second = (save(tmp_path / name, 7) for name in "ab")
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names(first))


def test_no_state_is_none(tmp_path):
    (tmp_path / "last").mkdir()
    (tmp_path / "last/step-000001.tmp").mkdir()  # a crash in the very first saving
    assert (
        load_state(tmp_path / "absent", pytest.fail) is None
        and load_state(tmp_path / "last", pytest.fail) is None
    )


# ----------------------------------------------------------------------------------- which are kept


@pytest.mark.parametrize("keep", [1, 2, 3, 9])
def test_the_newest_are_kept_and_listed_oldest_first(keep, tmp_path):
    steps = [5, 999_999, 1_000_000, 12_345_678]
    for step in steps:
        save(tmp_path, step, keep)
    kept = [f"step-{step:06d}" for step in steps[-keep:]]
    assert [path.name for path in states(tmp_path)] == kept and names(tmp_path) == sorted(kept)
    assert load(tmp_path)[0] == steps[-1]


def test_a_state_that_is_not_whole_does_not_count_among_the_kept(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, keep=3)
    (tmp_path / "step-000003" / VALUES).unlink()
    save(tmp_path, 4, keep=2)
    assert names(tmp_path) == ["step-000002", "step-000004"]


def test_a_step_saved_again_takes_the_place_of_the_first(tmp_path):
    save(tmp_path, 1)
    for number, name in ((1, "step-000002"), (2, "step-000002.2"), (3, "step-000002.3")):
        assert save(tmp_path, 2, saving=number).name == name
        assert (
            names(tmp_path) == ["step-000001", name]
            and load_state(tmp_path, pytest.fail)[1]["saving"] == number
        )
    save(tmp_path, 3)
    assert names(tmp_path) == ["step-000002.3", "step-000003"]


def test_a_later_step_that_was_not_gone_on_from_goes(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step, keep=3)
    flip(tmp_path / "step-000030" / TENSORS, -1)
    assert load(tmp_path)[0] == 20
    save(tmp_path, 25, keep=3)
    assert (
        names(tmp_path) == ["step-000010", "step-000020", "step-000025"] and load(tmp_path)[0] == 25
    )


def test_a_folder_of_another_name_is_left_alone(tmp_path):
    kept = shutil.copytree(save(tmp_path, 1), tmp_path / "step-000001-keep")
    (tmp_path / "step-notes.txt").write_text("x")
    (tmp_path / "step-000009").write_text("a file")
    for step in (2, 3):
        save(tmp_path, step, keep=1)
    assert names(tmp_path) == [
        "step-000001-keep",
        "step-000003",
        "step-000009",
        "step-notes.txt",
    ] and names(kept) == names(tmp_path / "step-000003")


def test_what_a_crash_left_is_removed(tmp_path):
    for leftover in ("step-000001.tmp", "step-000002.2.tmp"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / TENSORS).write_bytes(b"half")
    save(tmp_path, 1)
    assert names(tmp_path) == ["step-000001"] and load(tmp_path)[0] == 1


# ------------------------------------------------------------------------------------------- damage


def flip(path, byte, bit=0):
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


def edit_manifest(state, **changes):
    (state / MANIFEST).write_text(
        json.dumps({**json.loads((state / MANIFEST).read_text()), **changes})
    )


def foreign(state):
    """Another program's folder: what it pickled must not be run."""
    shutil.rmtree(state)
    state.mkdir()
    (state / "mp_rank_00_model_states.pt").write_bytes(
        b"cos\nsystem\n(S'touch " + str(state / "unpickled").encode() + b"'\ntR."
    )


def replaced(state, name, content):
    """A manifest that proves other content."""
    (state / name).write_bytes(content)
    proof = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_manifest(state, files={**json.loads((state / MANIFEST).read_text())["files"], name: proof})


DAMAGE = {
    "tensors cut short": (
        lambda s: os.truncate(s / TENSORS, 10),
        "is cut off: state.safetensors has 10 bytes, its manifest says ",
    ),
    "tensors empty": (
        lambda s: os.truncate(s / TENSORS, 0),
        "is cut off: state.safetensors has 0 bytes",
    ),
    "tensors too long": (
        lambda s: os.truncate(s / TENSORS, 5000),
        "is damaged: state.safetensors has 5000 bytes",
    ),
    "tensors missing": (lambda s: (s / TENSORS).unlink(), "it has no state.safetensors"),
    "a flipped bit in the tensors": (
        lambda s: flip(s / TENSORS, -1),
        "is damaged: the sha256 of state.safetensors is ",
    ),
    "values cut short": (
        lambda s: os.truncate(s / VALUES, 3),
        "is cut off: state.json has 3 bytes",
    ),
    "values missing": (lambda s: (s / VALUES).unlink(), "it has no state.json"),
    "a flipped bit in the values": (
        lambda s: flip(s / VALUES, 4),
        "is damaged: the sha256 of state.json is ",
    ),
    "values that are a folder": (
        lambda s: ((s / VALUES).rename(s / "x"), (s / VALUES).mkdir()),
        "state.json",
    ),
    "no manifest": (lambda s: (s / MANIFEST).unlink(), "it has no manifest.json"),
    "an empty manifest": (
        lambda s: os.truncate(s / MANIFEST, 0),
        "is damaged: manifest.json is no manifest (JSONDecodeError)",
    ),
    "a manifest cut short": (lambda s: os.truncate(s / MANIFEST, 40), "is damaged: manifest.json"),
    "a manifest that is a list": (
        lambda s: (s / MANIFEST).write_text("[]"),
        "is damaged: manifest.json",
    ),
    "a manifest without end": (
        lambda s: (s / MANIFEST).write_text("[" * 100_000),
        "is damaged: manifest.json",
    ),
    "a manifest that names nothing": (
        lambda s: edit_manifest(s, files={}),
        "is damaged: manifest.json",
    ),
    "a manifest of another version": (
        lambda s: edit_manifest(s, version=2, files=[]),
        "is of another depthdist: its manifest has version 2; expected 1",
    ),
    "an empty folder": (
        lambda s: (shutil.rmtree(s), s.mkdir()),
        "is cut off, or no state of depthdist: it has no manifest.json",
    ),
    "another program's": (foreign, "no state of depthdist: it has no manifest.json"),
    "proven, but no tensors": (
        lambda s: replaced(s, TENSORS, b"PK\x03\x04 a zip of pickles"),
        "is whole, but no state of depthdist",
    ),
    "proven, but no values": (
        lambda s: replaced(s, VALUES, b"\x80\x04."),
        "is whole, but no state of depthdist",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_state_is_named_and_the_one_before_it_used(case, tmp_path):
    harm, says = DAMAGE[case]
    last = tmp_path / "last"
    save(last, 100)
    harm(save(last, 123))
    step, state, (line,) = load(last)
    assert (
        step == 100
        and state.name == "step-000100"
        and not (last / "step-000123/unpickled").exists()
    )
    assert (
        line.startswith(f"{last / 'step-000123'} ")
        and says in line
        and line.endswith("; resuming from step-000100")
        and "\n" not in line
    )


@pytest.mark.parametrize("case", DAMAGE)
def test_where_none_is_whole_it_is_one_error_with_every_reason(case, tmp_path):
    last = tmp_path / "last"
    DAMAGE[case][0](save(last, 100))
    (last / "step-000123").mkdir()
    with pytest.raises(ValueError) as caught:
        load_state(last, pytest.fail)
    text = str(caught.value)
    assert (
        "\n" not in text
        and f"{last}: no state is whole" in text
        and DAMAGE[case][1] in text
        and "step-000123 is cut off" in text
    )


def test_every_damaged_one_is_named(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, keep=3)
    for step in (2, 3):
        (tmp_path / f"step-00000{step}" / VALUES).unlink()
    step, _, said = load(tmp_path)
    assert step == 1 and [line.split("/")[-1][:11] for line in said] == [
        "step-000003",
        "step-000002",
    ]


def test_no_flipped_bit_is_ever_loaded_as_something_else(tmp_path):
    draw = random.Random(0)
    save(tmp_path, 1)
    good = shutil.copytree(save(tmp_path, 2), tmp_path / "good")
    for name in (TENSORS, VALUES, MANIFEST):
        for byte in range((good / name).stat().st_size):
            flip(tmp_path / "step-000002" / name, byte, draw.randrange(8))
            # equal to what was saved, also where the flip was in a blank of the manifest
            step, _, said = load(tmp_path)
            is_found = step == 1 and len(said) == 1
            is_harmless = name == MANIFEST and step == 2 and not said
            assert is_found or is_harmless, (name, byte)
            shutil.copy(good / name, tmp_path / "step-000002")
