"""The command line of launch/train.py: settings are checked before torch is imported."""

from __future__ import annotations

from depthdist.core.command_line import parse
from depthdist.distributed.launchers import adopt_slurm_variables
from depthdist.training.settings import (
    GROUPS,
    RECIPES,
    Settings,
    check_together,
    recipe_of_resumed_run,
)

HELP = """Fine-tune a Depth Anything V2 with LoRA on shards of RGB and depth.

  deepspeed launch/train.py --deepspeed ds_configs/fp16.json --data data/tires --run runs/first
  deepspeed launch/train.py --deepspeed ds_configs/fp16.json --dry-run
  deepspeed launch/train.py --config runs/first/run.json --run runs/again   # the same once more"""

MOST_USED = ("data", "run", "model", "epochs", "lr", "recipe", "deepspeed", "resume", "dry_run")


def main(argv: list[str] | None = None) -> None:
    """Train as the command line says."""
    adopt_slurm_variables()
    groups = parse(
        HELP,
        *GROUPS,
        argv=argv,
        together=lambda *groups: check_together(Settings(*groups)),
        presets=("recipe", RECIPES),
        remembered=recipe_of_resumed_run,
        first=MOST_USED,
    )
    settings = Settings(*groups)
    if settings.data.captures:
        from depthdist.training.capture_data import describe_sharding, with_shards

        lines = describe_sharding(settings) if settings.keep.dry_run else []
        if lines:
            print("\n".join([*lines, "dry run: nothing was computed or written"]))
            return
        settings = with_shards(settings)
    work(settings)


def work(settings: Settings) -> None:
    """Meet the other ranks, train, and part."""
    from depthdist.core.environment import silence_libraries
    from depthdist.distributed.process_group import start, stop

    silence_libraries()
    if settings.keep.dry_run:
        from depthdist.training.dry_run import dry_run

        return dry_run(settings)
    from depthdist.training.train import train

    train(settings, start())
    stop()  # not after an error: under NCCL it would wait for ranks that wait for this one
