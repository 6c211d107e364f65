"""Train several times with one thing changed, score each on the same images, and print the table
with its intervals.

    # the published recipe beside ours, and what each part of ours does
    python tools/study.py recipes RAW --model M
    python tools/study.py curve RAW --train-subset 5,10,20,46      # how much more data would help
    python tools/study.py sessions RAW  # each session left out once: what a new day would give
    # the same data split at random and by session: how much a split flatters
    python tools/study.py splits RAW
    python tools/study.py ablations RAW  # what the gradient loss and the pictures' size do
    # what the built-in's pretraining gives: the same run from random weights
    python tools/study.py foundation RAW --model built-in

RAW is a folder of captures, as tools/shard.py takes it. Everything is kept under --out; what is
finished there is not done again, so a study that was stopped goes on. Rows of untrained models are
scored on each validation set that occurs.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from depthdist.captures.layouts import find_pairs
from depthdist.captures.sessions import number_sessions
from depthdist.core.command import run_command
from depthdist.core.settings import Size, did_you_mean, parse, positional
from depthdist.training.deepspeed_config import EngineSettings
from tools.steps import do, launcher

RECIPES = {
    "document": "--recipe document",
    "document, calibrated": "--recipe document --calibrate",
    "document, lr x 10": "--recipe document --lr 5e-4",
    "near": "--recipe near",
    "near, decoder trained": "--recipe near --decoder trained",
}
ABLATIONS = {
    "as it is": "",
    "no gradient loss": "--loss l1=1",
    "edges in mm": "--loss l1=1,grad_mm=3",
    "linear depth": "--target linear",
    "bilinear upsampling": "--upsampling bilinear",
}
METRICS = (
    "rmse_mm",
    "rmse_mm@750-1500",
    "mae_mm",
    "abs_rel",
    "delta1",
    "edge_f1@4mm",
    "groove_mae_mm",
    "groove_found",
)


@dataclass(frozen=True)
class Study:
    """Study"""

    raw: str | None = positional(None)
    "Folder of captures."
    model: str | None = None
    """Base model, as launch/train.py takes it; or the folder of a run whose decoder was trained:
    it is made a model of relative depth first. Default: launch/train.py's."""
    recipe: str = "near"
    "Recipe of the runs, where the study is not about it: document or near."
    epochs: int = 15
    "Of each run; a run on fewer captures gets as many optimizer steps, not epochs."
    size: Size = Size(756, 1260)
    "Height and width of the pictures that the network sees."
    val: float = 0.2
    "Share of the captures for validation."
    split: str = "session"
    "How the captures are divided, where the study is not about it: session or random."
    train_subset: tuple[int, ...] = (5, 10, 20, 46)
    """curve: how many training captures each run gets, with commas between; each set holds the
    smaller ones."""
    deepspeed: Path = Path("ds_configs/fp16.json")
    "Precision and batch."
    ranks: int = 1
    "Processes of each run on a CPU, GPUs where there are some; 1: the launcher takes all GPUs."
    train: str = ""
    "More words for each launch/train.py, as one text: '--lr 1e-4 --lora linear'."
    out: Path = Path("runs/study")
    "Folder for shards and runs."

    def problems(self) -> list[str]:
        found = [] if self.raw else ["RAW is missing: a folder of captures"]
        found += [
            f"--{name} is {getattr(self, name)}: expected >= 1"
            for name in ("epochs", "ranks")
            if getattr(self, name) < 1
        ]
        found += EngineSettings(self.deepspeed).problems()
        found += [f"--train-subset has {n}: expected >= 1" for n in self.train_subset if n < 1]
        found += (
            []
            if self.split in ("session", "random")
            else [f"--split is {self.split}: expected session or random"]
        )
        return (
            found
            if self.recipe in ("document", "near")
            else [*found, f"--recipe is {self.recipe}: expected document or near"]
        )


@dataclass(frozen=True)
class Run:
    """One run of a study: its row, words for tools/shard.py, lines of a group file (or None), words
    for launch/train.py.
    """

    row: str
    shard: str
    groups: list[str] | None
    train: str


def recipes(s: Study) -> Iterator[Run]:
    yield from (Run(row, f"--split {s.split}", None, words) for row, words in RECIPES.items())


def ablations(s: Study) -> Iterator[Run]:
    yield from (
        Run(row, f"--split {s.split}", None, f"--recipe {s.recipe} {words}")
        for row, words in ABLATIONS.items()
    )
    half = Size(*(side // 28 * 14 for side in s.size))
    yield Run(
        f"pictures of {half}", f"--split {s.split} --size {half}", None, f"--recipe {s.recipe}"
    )


def foundation(s: Study) -> Iterator[Run]:
    """LoRA alone on the base, and the same on the weights that the built-in's pretraining began
    with.
    """
    from depthdist.models.adapter import save_full_model
    from tools.foundation import start

    random = s.out / "start"
    if not (random / "config.json").exists():
        save_full_model(start(0), {}, None, random)
    yield Run(
        f"{s.model or 'the base'}, LoRA alone", f"--split {s.split}", None, f"--recipe {s.recipe}"
    )
    yield Run(
        "random weights, LoRA alone",
        f"--split {s.split}",
        None,
        f"--recipe {s.recipe} --model {shlex.quote(str(random))}",
    )


def splits(s: Study) -> Iterator[Run]:
    yield from (
        Run(f"split {way}", f"--split {way}", None, f"--recipe {s.recipe}")
        for way in ("random", "session")
    )


def leave_one_out(s: Study) -> Iterator[Run]:
    """A run for each session, which is its validation set."""
    stems, numbers = _sessions(s)
    for left_out in sorted(set(numbers)):
        lines = [
            f"{stem},{'val' if number == left_out else 'train'}"
            for stem, number in zip(stems, numbers)
        ]
        yield Run(
            f"without session {left_out} ({numbers.count(left_out)})",
            "--split file",
            lines,
            f"--recipe {s.recipe}",
        )


def curve(s: Study) -> Iterator[Run]:
    """Growing training sets against one validation set: the split by session decides which captures
    are for validation.
    """
    stems, numbers = _sessions(s)
    sizes = {
        number: numbers.count(number)
        for number in sorted(set(numbers), key=lambda n: (numbers.count(n), n))
    }
    val, held = set(), 0
    for number, count in sizes.items():
        if not val or held + count <= s.val * len(stems):
            val.add(number)
            held += count
    train = [stem for stem, number in zip(stems, numbers) if number not in val]
    spread = [
        train[i] for i in sorted(range(len(train)), key=lambda i: (int(f"{i:020b}"[::-1], 2), i))
    ]  # any first few are spread over all
    for count in s.train_subset:
        if count > len(train):
            raise ValueError(
                f"--train-subset has {count}: the training side has {len(train)} captures ({held}"
                f" of {len(val)} sessions are for validation)"
            )
        chosen = set(spread[:count])
        lines = [
            f"{stem},{'val' if number in val else 'train' if stem in chosen else 'skip'}"
            for stem, number in zip(stems, numbers)
        ]
        batch = json.loads(s.deepspeed.read_text())["train_batch_size"]
        epochs = max(1, round(s.epochs * -(-len(train) // batch) / -(-count // batch)))
        yield Run(
            f"{count} captures, {epochs} epochs",
            "--split file",
            lines,
            f"--recipe {s.recipe} --epochs {epochs}",
        )


def _sessions(s: Study) -> tuple[list[str], list[int]]:
    """Every capture's stem, and the number of its session.

    ValueError where there is only one session.
    """
    stems = [pair.stem for pair in find_pairs(s.raw)[0]]
    numbers = number_sessions(stems)
    if len(set(numbers)) < 2:
        raise ValueError(
            f"{s.raw}: {len(stems)} captures of {len(set(numbers))} session; expected captures of"
            " two or more, by the times in their names"
        )
    return stems, numbers


WHAT = {
    "recipes": recipes,
    "curve": curve,
    "sessions": leave_one_out,
    "splits": splits,
    "ablations": ablations,
    "foundation": foundation,
}


# ----------------------------------------------------------------------------------------- doing it


def relative(run: Path, out: Path) -> Path:
    """A run's best model as a DA-V2 folder of the published kind: relative depth of 0..10 behind a
    ReLU, nothing left to load.

    What the last convolution gives keeps one scale and shift, so that what the decoder learned
    stays in it, and its range is far from the targets, as that of the published models is.
    """
    import torch

    from depthdist.core.files import replace_folder
    from depthdist.models.adapter import load_adapter

    out = (
        out / hashlib.sha256((run / "best/adapter_model.safetensors").read_bytes()).hexdigest()[:16]
    )
    if not out.exists():
        model, _ = load_adapter(run / "best")
        net = model.net.merge_and_unload()
        last, sigmoid = net.head.conv3, isinstance(net.head.activation2, torch.nn.Sigmoid)
        with torch.no_grad():  # logits of -4 .. 0, or behind a ReLU 0 .. 1, become 0 .. 10
            last.weight.mul_(2.5 if sigmoid else 10.0)
            last.bias.mul_(2.5 if sigmoid else 10.0).add_(10.0 if sigmoid else 0.0)
        net.config.depth_estimation_type, net.config.max_depth = "relative", 1
        with replace_folder(out) as fresh:
            net.save_pretrained(fresh)
    return out


def study(what: str, s: Study) -> dict[str, Any]:
    """Do all runs of it; what each came to, by row. Written to OUT/WHAT/study.json as well."""
    out, found = s.out / what, {}
    if s.model and (Path(s.model) / "best").is_dir():
        s = replace(s, model=str(relative(Path(s.model), s.out / "base")))
    runs = list(WHAT[what](s))
    for i, run in enumerate(runs):
        print(f"\n[{i + 1}/{len(runs)}] {run.row}", flush=True)
        name = "".join(c if c.isalnum() else "-" for c in run.row)
        data, folder = (
            out
            / "data"
            / (name if run.groups else "".join(c if c.isalnum() else "-" for c in run.shard)),
            out / name,
        )
        words = (
            [*shlex.split(run.shard), "--val", s.val]
            if run.groups is None
            else shlex.split(run.shard)
        )
        if run.groups is not None:
            data.parent.mkdir(parents=True, exist_ok=True)
            words += ["--groups", data.with_suffix(".csv")]
            data.with_suffix(".csv").write_text("\n".join(["stem,group", *run.groups]) + "\n")
        if "--size" not in words:
            words += ["--size", s.size]
        do("tools/shard.py", s.raw, data, *words)
        model = ["--model", s.model] if s.model else []
        train = [
            *(["--epochs", s.epochs] if "--epochs" not in run.train else []),
            *shlex.split(run.train),
            *shlex.split(s.train),
        ]
        do(
            *launcher(s.ranks),
            "launch/train.py",
            "--deepspeed",
            s.deepspeed,
            "--data",
            data,
            *model,
            "--run",
            folder,
            "--pictures",
            0,
            *train,
        )
        evaluation = folder / "evaluation.json"
        if (
            not evaluation.exists()
            or evaluation.stat().st_mtime < (folder / "best/depthdist.json").stat().st_mtime
        ):
            do("launch/evaluate.py", "--run", folder)
        found[run.row] = json.loads(evaluation.read_text())
    (out / "study.json").write_text(
        json.dumps(
            {
                row: {name: content[name] for name in ("run", "data_sha256", "rows", "intervals")}
                for row, content in found.items()
            },
            indent=1,
        )
    )
    return found


def table(found: dict[str, dict[str, Any]]) -> str:
    """A line a run, with intervals below; before them the untrained rows of each validation set."""
    from depthdist.evaluation.tables import format_interval, format_value

    lines, seen, rows = [], set(), []
    for row, content in found.items():
        fixed = (
            []
            if content["data_sha256"] in seen
            else [name for name in content["rows"] if not name.startswith("adapter")]
        )
        seen.add(content["data_sha256"])
        rows += [(name, content, name) for name in fixed]
        rows.append(
            (row, content, next(name for name in content["rows"] if name.startswith("adapter")))
        )
    metrics = [
        m
        for m in METRICS
        if any(content["rows"][name].get(m) is not None for _, content, name in rows)
    ]
    width, wide = max(len(row) for row, _, _ in rows), [max(18, len(m) + 2) for m in metrics]
    lines.append(f"{'':{width}}  images" + "".join(f"{m:>{w}}" for m, w in zip(metrics, wide)))
    for row, content, name in rows:
        values, intervals = content["rows"][name], content["intervals"][name]
        lines.append(
            f"{row:{width}}  {values['images']:>6}"
            + "".join(
                f"{_shown(format_value, m, values.get(m)):>{w}}" for m, w in zip(metrics, wide)
            )
        )
        spans = [
            format_interval(m, tuple(intervals[m]))
            if intervals.get(m) and None not in intervals[m]
            else ""
            for m in metrics
        ]
        if any(spans):
            lines.append(
                f"{'':{width}}  {'':6}" + "".join(f"{text:>{w}}" for text, w in zip(spans, wide))
            )
    lines.append(
        "\nbelow each row the 95 % interval of the mean over images; one run each: another seed's"
        " difference is not in it"
    )
    return "\n".join(lines)


def _shown(cell, name: str, value: float | None) -> str:
    return "-" if value is None else cell(name, value)


def main(argv: list[str]) -> None:
    if not argv or argv[0] not in WHAT:
        if argv and argv[0] in ("-h", "--help"):
            print(__doc__.strip())
            return
        raise ValueError(
            f"{f'{argv[0]!r} is no study' if argv else 'WHAT is missing'}; expected"
            f" {', '.join(WHAT)}{did_you_mean(argv[0], list(WHAT)) if argv else ''}"
        )
    (settings,) = parse(__doc__.splitlines()[0], Study, argv=argv[1:])
    model = (
        str(Path(settings.model).resolve())
        if settings.model and Path(settings.model).is_dir()
        else settings.model
    )
    settings = replace(
        settings,
        raw=str(Path(settings.raw).resolve()),
        out=settings.out.resolve(),
        deepspeed=settings.deepspeed.resolve(),
        model=model,
    )
    found = study(argv[0], settings)
    print(f"\n{table(found)}\n\nwritten to {settings.out / argv[0]}/study.json")
    first = next(iter(found.values()))
    same = [
        content["run"]
        for content in found.values()
        if content["data_sha256"] == first["data_sha256"]
    ]
    if len(same) > 1:
        print(f"side by side: python tools/report.py run {' '.join(same)}")


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
