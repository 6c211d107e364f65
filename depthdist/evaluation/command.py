"""The command launch/evaluate.py."""

from __future__ import annotations

from dataclasses import replace

from depthdist.core.settings import parse
from depthdist.evaluation.comparison import compare_runs
from depthdist.evaluation.evaluate import evaluate_run
from depthdist.evaluation.settings import EvaluateSettings
from depthdist.runs.run_folder import label_runs, open_run


def main(argv: list[str] | None = None) -> None:
    (settings,) = parse(
        "Score a run in mm against the untrained model and a constant depth, or compare two runs.",
        EvaluateSettings,
        argv=argv,
    )
    if settings.run:
        evaluate_run(settings)
        return
    if (
        not settings.data
        and len({open_run(run).record["derived"].get("data_sha256") for run in settings.compare})
        > 1
    ):
        raise ValueError(
            f"{' and '.join(map(str, settings.compare))} learned from different data; expected runs"
            " of the same, or --data that both are measured on"
        )
    called, found = label_runs(settings.compare), []
    for letter, name, run in zip("AB", called, settings.compare):
        print(f"\n{letter}  {name}")
        found.append(evaluate_run(replace(settings, run=run, compare=None)))
    print(f"\n{compare_runs(*found, called)}")
