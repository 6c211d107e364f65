"""Train several times with one thing changed, score each on the same images, and compare.

    # the published recipe beside ours, and what each part of ours does
    depthdist study recipes RAW --model M
    # how much more data would help
    depthdist study curve RAW --train-subset 5,10,20,46
    # each session left out once: the error to expect on a new day
    depthdist study sessions RAW
    # the same data split at random and by session: how optimistic a random split is
    depthdist study splits RAW
    # what the gradient loss and the image size do
    depthdist study ablations RAW
    # what the built-in model's pretraining gives: the same run from random weights
    depthdist study foundation RAW --model built-in

RAW is a folder of captures, as `depthdist shard` takes it. The table has a row for each run, with
its intervals below; untrained models are scored on each validation set that occurs. Everything is
kept under --out; finished steps are not repeated, so a stopped study continues.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from depthdist.commands.study_plans import STUDIES, Run, StudySettings
from depthdist.commands.subcommands import flags, run_shown
from depthdist.core.command_line import parse
from depthdist.core.file_lock import hold_folder
from depthdist.core.text_table import format_table
from depthdist.core.words import run_word
from depthdist.evaluation.row_kinds import adapter_row, row_kinds

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


def relative_model(run: Path, out: Path) -> Path:
    """Write a run's best model as a DA-V2 folder of relative depth, like the published ones.

    Its output is 0..10 behind a ReLU, and no decoder weights are missing. Only a scale and a shift
    change what the last convolution gives: what the decoder learned stays in it, and its range is
    as far from the targets as that of the published models.
    """
    import torch

    from depthdist.core.files import replace_folder
    from depthdist.models.adapter import load_adapter

    adapter = (run / "best/adapter_model.safetensors").read_bytes()
    out = out / hashlib.sha256(adapter).hexdigest()[:16]
    if out.exists():
        return out
    model: Any = load_adapter(run / "best")[0]
    net = model.net.merge_and_unload()
    last = net.head.conv3
    sigmoid = isinstance(net.head.activation2, torch.nn.Sigmoid)
    with torch.no_grad():  # logits of -4 .. 0, or behind a ReLU 0 .. 1, become 0 .. 10
        last.weight.mul_(2.5 if sigmoid else 10.0)
        last.bias.mul_(2.5 if sigmoid else 10.0).add_(10.0 if sigmoid else 0.0)
    net.config.depth_estimation_type = "relative"
    net.config.max_depth = 1
    with replace_folder(out) as fresh:
        net.save_pretrained(fresh)
    return out


def run_study(name: str, settings: StudySettings) -> dict[str, dict[str, Any]]:
    """Do all runs of a study, write OUT/NAME/study.json, return each row's evaluation.json."""
    out = settings.out / name
    if settings.model and (Path(settings.model) / "best").is_dir():
        relative = relative_model(Path(settings.model), settings.out / "base")
        settings = replace(settings, model=str(relative))
    runs = list(STUDIES[name](settings))
    evaluations = {}
    for i, run in enumerate(runs):
        print(f"\n[{i + 1}/{len(runs)}] {run.row}", flush=True)
        evaluations[run.row] = do_run(run, settings, out)
    kept = ("run", "data_sha256", "rows", "intervals")
    content = {
        row: {name: evaluation[name] for name in kept} for row, evaluation in evaluations.items()
    }
    (out / "study.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    return evaluations


def do_run(run: Run, settings: StudySettings, out: Path) -> dict[str, Any]:
    """Make the run's shards, train, evaluate, and return its evaluation.json."""
    folder = out / _file_name(run.row)
    data = make_shards(run, settings, out / "data")
    model = flags(model=settings.model) if settings.model else []
    epochs = [] if "--epochs" in run.train else flags(epochs=settings.epochs)
    run_shown(
        "train",
        data,
        *flags(deepspeed=settings.deepspeed),
        *(flags(gpus=settings.ranks) if settings.ranks > 1 else []),
        *model,
        *flags(run=folder, pictures=0),
        *epochs,
        *shlex.split(run.train),
        *shlex.split(settings.train),
    )
    evaluation = folder / "evaluation.json"
    best = folder / "best/depthdist.json"
    if not evaluation.exists() or evaluation.stat().st_mtime < best.stat().st_mtime:
        run_shown("evaluate", *flags(run=folder))
    content: dict[str, Any] = json.loads(evaluation.read_text(encoding="utf-8"))
    return content


def make_shards(run: Run, settings: StudySettings, folder: Path) -> Path:
    """Return the run's dataset in `folder`; runs with the same split and size share one."""
    words: list[object] = [*shlex.split(run.shard)]
    if run.groups is None:
        data = folder / _file_name(run.shard)
        words += flags(val=settings.val)
    else:
        data = folder / _file_name(run.row)
        groups = data.with_suffix(".csv")
        groups.parent.mkdir(parents=True, exist_ok=True)
        groups.write_text("\n".join(["stem,group", *run.groups]) + "\n", encoding="utf-8")
        words += flags(groups=groups)
    if "--size" not in words:
        words += flags(size=settings.size)
    run_shown("shard", settings.raw, data, *words)
    return data


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text)


def study_table(evaluations: dict[str, dict[str, Any]]) -> str:
    """Return the table: a line for each run, with its intervals below.

    Before them stand the untrained rows of each validation set.
    """
    rows: list[tuple[str, dict[str, Any], str]] = []  # its label, evaluation and name in there
    datasets = set()
    for label, evaluation in evaluations.items():
        if evaluation["data_sha256"] not in datasets:
            for name, kind in row_kinds(evaluation).items():
                if not kind.is_adapter:
                    rows.append((name, evaluation, name))
        datasets.add(evaluation["data_sha256"])
        rows.append((label, evaluation, adapter_row(evaluation)))
    metrics = [
        metric
        for metric in METRICS
        if any(evaluation["rows"][name].get(metric) is not None for _, evaluation, name in rows)
    ]
    lines = []
    for label, evaluation, name in rows:
        values = evaluation["rows"][name]
        intervals = evaluation["intervals"][name]
        lines.append([label, values["images"], *(_value(m, values.get(m)) for m in metrics)])
        spans = [_interval(m, intervals.get(m)) for m in metrics]
        if any(spans):
            lines.append(["", "", *spans])
    table = format_table(["", "images", *metrics], lines)
    return (
        f"{table}\n\nbelow each row the 95 % interval of the mean over images; one run each: the"
        " variation between seeds is not in it"
    )


def _value(metric: str, value: float | None) -> str:
    from depthdist.evaluation.tables import format_value

    return "-" if value is None else format_value(metric, value)


def _interval(metric: str, interval: list[float | None] | None) -> str:
    from depthdist.evaluation.tables import format_interval

    if not interval:
        return ""
    low, high = interval
    return "" if low is None or high is None else format_interval(metric, (low, high))


def main(argv: list[str] | None = None) -> None:
    """Run the study that the first word names, and print its table."""
    studies = {name: partial(do_study, name) for name in STUDIES}
    run_word(studies, sys.argv[1:] if argv is None else argv, "study", (__doc__ or "").strip())


def do_study(name: str, argv: list[str]) -> None:
    """Run one study and print its table."""
    assert __doc__
    (settings,) = parse(__doc__.splitlines()[0], StudySettings, argv=argv, word=name)
    assert settings.raw, "checked by problems()"
    from depthdist.shards.plan import chosen_size

    model = settings.model
    if model and Path(model).is_dir():
        model = str(Path(model).resolve())
    settings = replace(
        settings,
        raw=str(Path(settings.raw).resolve()),
        size=settings.size or chosen_size(settings.raw),
        out=settings.out.resolve(),
        model=model,
    )
    with hold_folder(settings.out / name, "depthdist study", "--out"):
        evaluations = run_study(name, settings)
    print(f"\n{study_table(evaluations)}\n\nwritten to {settings.out / name}/study.json")
    first = next(iter(evaluations.values()))
    same_data = [
        evaluation["run"]
        for evaluation in evaluations.values()
        if evaluation["data_sha256"] == first["data_sha256"]
    ]
    if len(same_data) > 1:
        print(f"side by side: depthdist report run {' '.join(same_data)}")
