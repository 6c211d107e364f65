"""Train, save, go on from the file, and compare: an engine in any configuration, on any ranks.

wrong = check(covering(ranks=2), world, base, folder)  # [] where all is equal, to the bit
"""

import copy
import itertools
import random
import shutil
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch

from depthdist.distributed.accelerator import accelerator
from depthdist.models.lora import add_lora, trained_groups
from depthdist.models.sample_dropout import draw_keys
from depthdist.models.settings import LoraSettings
from depthdist.runs.training_state import load_state, save_state
from depthdist.training.engine import Engine

RANKS = (1, 2, 4)
STAGES = (0, 1, 2, 3)
PRECISIONS = ("fp32", "bf16", "fp16", "fp16, first step skipped")
STEPS = (0, 1, 2, 4)  # after which the state is saved; in 4 the loss scale grows
TRAINED = {
    "qkv": {},
    "linear": {"lora": "linear"},
    "conv": {"lora": "conv"},
    "none": {"lora": "none", "lora_rank": 16},
    "targets": {"lora_targets": r".*\.(fc2|attention\.query|conv2)"},
    "dora": {"dora": True},
    "conv + dora": {"lora": "conv", "dora": True},
    "rslora": {"rslora": True},
    "decoder": {"decoder": "trained"},
    "dora + decoder": {"dora": True, "decoder": "trained"},
}
SCALE = {"loss_scale": 0, "initial_scale_power": 10, "hysteresis": 1, "loss_scale_window": 3}
MOMENTS = {"exp_avg", "exp_avg_sq"}
ADAMW = {"type": "AdamW", "params": {"torch_adam": True, "weight_decay": 0.01}}


class Case(NamedTuple):
    ranks: int
    stage: int
    precision: str
    steps: int
    trained: str


def covering(ranks: int) -> list[Case]:
    """The cases of this many ranks, of few in which each two of stage, precision and steps meet.

    Each number of ranks meets each stage and each precision, and every value is there.
    """

    def met(case: Case) -> set[tuple]:
        values = case._asdict()
        pairs = itertools.combinations(("stage", "precision", "steps"), 2)
        pairs = [*pairs, ("ranks", "stage"), ("ranks", "precision")]
        return {*((name, values[name], other, values[other]) for name, other in pairs), case[4:]}

    axes = (RANKS, STAGES, PRECISIONS, STEPS, TRAINED)
    cases = [Case(*values) for values in itertools.product(*axes)]
    random.Random(0).shuffle(cases)
    cases.sort(key=lambda case: case.ranks * (case.steps + 1))  # of equals, the cheapest
    missing = set().union(*map(met, cases))
    chosen = []
    while missing:
        best = max(cases, key=lambda case: len(met(case) & missing))
        missing -= met(best)
        chosen.append(best)
    return [case for case in chosen if case.ranks == ranks]


def make_engine(case: Case, world, base, optimizer=None) -> Engine:
    """An engine of `base`, a loaded model that stays as it is, with two learning rates."""
    settings = LoraSettings(**{"lora_rank": 4, **TRAINED[case.trained]})
    network = add_lora(copy.deepcopy(base), settings, seed=0)
    precision = case.precision[:4]
    config = {
        "train_batch_size": world.size,
        "gradient_clipping": 1.0,
        "optimizer": optimizer or ADAMW,
        "zero_optimization": {"stage": case.stage},
        precision: {"enabled": True, **(SCALE if precision == "fp16" else {})},
    }
    if precision == "fp32":
        del config["fp32"]
    rates = {"lora": 1e-3, "decoder": 1e-4}
    groups = [(parameters, rates[name]) for name, parameters in trained_groups(network).items()]
    with (
        mock.patch.object(accelerator(), "is_fp16_supported", lambda: True),
        # stage 3 puts all elements of all parameters into a line that it does not print
        mock.patch.object(torch.nn.Parameter, "__repr__", object.__repr__),
    ):
        return Engine(network, config, groups, world)


def learn(engine: Engine, number: int, overflows: bool = False) -> None:
    """Optimizer step `number`, with an image a rank."""
    rank = engine.world.rank
    random_bits = torch.Generator().manual_seed(100 * number + rank)
    rgb = torch.randint(0, 256, (1, 28, 28, 3), dtype=torch.uint8, generator=random_bits)
    out = engine.forward(rgb, draw_keys(0, number, [rank]))
    loss = (out.float() - 0.5).abs().mean() / engine.world.size
    engine.backward(loss * (1e30 if overflows else 1.0))
    engine.step(1 - number / 10)


def whole_state(engine: Engine):
    """A copy of what `engine.state` gives."""
    tensors, values = engine.state()
    return {name: tensor.cpu().clone() for name, tensor in tensors.items()}, values


def kinds_of(tensors) -> set[str]:
    """What a state's tensors are, of which each parameter has one: "weights", ..."""
    return {name.partition("/")[0] for name in tensors}


def unequal(found, expected) -> str:
    """What differs of two states, "" where nothing does."""
    (tensors, values), (others, other_values) = found, expected
    if tensors.keys() != others.keys():
        return f"tensors {sorted(tensors.keys() ^ others.keys())[:3]}"
    differ = [name for name, tensor in tensors.items() if not torch.equal(tensor, others[name])]
    if differ:
        largest = max(float((tensors[n] - others[n]).abs().max()) for n in differ)
        return f"{len(differ)} of {len(tensors)} tensors, by {largest:.2g}, as {differ[0]}"
    return "" if values == other_values else f"{values} is not {other_values}"


def differences(case: Case, world, base, folder: Path) -> list[str]:
    """What goes wrong, a line each: a run without interruption, and one that goes on from a file.

    The file holds the state after `steps` steps.
    """
    steps, skips = case.steps, case.precision.endswith("skipped")
    wrong = []
    whole = make_engine(case, world, base)
    begun = whole_state(whole)
    if (kinds := kinds_of(whole.example_state()[0])) != {"weights", *MOMENTS}:
        wrong.append(f"{case}: the trial before the first step holds {sorted(kinds)}")
    if what := unequal(whole_state(whole), begun):
        wrong.append(f"{case}: the trial changed something: {what}")
    for number in range(1, steps + 1):
        learn(whole, number, skips and number == 1)
    saved = whole_state(whole)
    learn(whole, steps + 1, skips and steps == 0)
    kinds = kinds_of(saved[0])
    if kinds != {"weights", *(MOMENTS if steps > skips else ())}:
        wrong.append(f"{case}: saved {sorted(kinds)} after {steps} steps")
    last = folder / f"rank{world.rank}"
    shutil.rmtree(last, ignore_errors=True)
    save_state(last, steps, *saved, keep=1)
    again = make_engine(case, world, base)
    read = load_state(last, print)
    assert read
    again.restore(*read[:2])
    if what := unequal(whole_state(again), saved):
        wrong.append(f"{case}: read otherwise than saved after {steps} steps: {what}")
    learn(again, steps + 1, skips and steps == 0)
    if what := unequal(whole_state(again), whole_state(whole)):
        wrong.append(f"{case}: goes on otherwise after {steps} steps: {what}")
    if whole.state()[1]["optimizer_step"] != steps + 1 - skips:
        wrong.append(f"{case}: not every step was counted")
    return wrong


def check(cases: list[Case], world, base, folder: Path) -> list[str]:
    """`differences` of all cases."""
    return [line for case in cases for line in differences(case, world, base, folder)]
