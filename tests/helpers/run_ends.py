"""What two runs must have in common that should have ended alike."""

import torch

from helpers.runs import log, saved_state
from helpers.tensorboard_tabs import board, hparams_rows


def numbers(run):
    """metrics.jsonl without what depends on the clock and the machine."""
    return [
        {k: v for k, v in line.items() if k != "time" and not k.startswith(("speed/", "memory/"))}
        for line in log(run)
    ]


def curves(run):
    """TensorBoard's scalars, as its page shows them."""
    shown = board(run)
    return {
        n: [(p.step, p.value) for p in shown.Scalars(n)]
        for n in shown.Tags()["scalars"]
        if not n.startswith(("speed/", "memory/"))
    }


def hparams_row(run):
    """What TensorBoard's hparams tab has of a run, without what depends on the machine."""
    (row,) = hparams_rows(run)
    scores = {n: score for n, score in row["scores"].items() if n.startswith(("best/", "eval/"))}
    return row["status"], row["settings"], scores


def same(a, b):
    """Whether two states are equal, NaN to NaN."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def ended_alike(run, whole):
    """Bit for bit: numbers, weights, optimizer, and no file more or less."""
    assert numbers(run) == numbers(whole)
    assert same(saved_state(run), saved_state(whole)) and curves(run) == curves(whole)
    assert hparams_row(run) == hparams_row(whole)
    for name in ("best/adapter_model.safetensors", "best/depthdist.json"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    assert sorted(p.name for p in run.iterdir()) == sorted(p.name for p in whole.iterdir())
    assert len(list((run / "last").iterdir())) == len(list((whole / "last").iterdir())) == 2
