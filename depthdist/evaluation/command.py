"""The command depthdist evaluate: score one run, or compare two."""

from __future__ import annotations

from dataclasses import replace

from depthdist.core.command_line import parse
from depthdist.core.imports import importing
from depthdist.evaluation.settings import EvaluateSettings
from depthdist.runs.run_folder import Run, label_runs, open_run


def main(argv: list[str] | None = None) -> None:
    """Run the command; what takes seconds to import is imported once the settings are checked."""
    (settings,) = parse(
        "Score a run in mm against the untrained model and a constant depth, or compare two runs.",
        EvaluateSettings,
        argv=argv,
        first=("run", "data", "split", "compare", "raw", "refine"),
    )
    if settings.run:
        run = open_run(settings.run)
        with importing():
            from depthdist.evaluation.evaluate import evaluate_run

        evaluate_run(run, settings)
    elif settings.compare:
        compare(settings, [open_run(folder) for folder in settings.compare])


def compare(settings: EvaluateSettings, runs: list[Run]) -> None:
    """Evaluate two runs with the same settings, and print how they differ."""
    folders = [run.folder for run in runs]
    if not settings.data and len({run.record["derived"].get("data_sha256") for run in runs}) > 1:
        raise ValueError(
            f"{' and '.join(map(str, folders))} learned from different data; expected runs of the"
            " same data, or --data to measure both on"
        )
    with importing():
        from depthdist.evaluation.comparison import compare_runs
        from depthdist.evaluation.evaluate import evaluate_run

    names = label_runs(folders)
    evaluations = []
    for letter, name, run in zip("AB", names, runs):
        print(f"\n{letter}  {name}")
        evaluations.append(evaluate_run(run, replace(settings, run=run.folder, compare=None)))
    print(f"\n{compare_runs(evaluations[0], evaluations[1], names)}")
