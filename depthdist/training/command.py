"""The command lines that train: settings are checked before torch is imported."""

from __future__ import annotations

from typing import Any

from depthdist.core.command_line import parse
from depthdist.core.imports import importing
from depthdist.core.stop_signals import BEFORE_TRAINING, leave_if_stopped
from depthdist.distributed.early_failure import expect_ranks
from depthdist.distributed.launcher_watch import watch_launchers
from depthdist.training.settings import (
    GROUPS,
    RECIPES,
    Settings,
    check_together,
    defaults_of_run,
)

HELP = """Fine-tune a Depth Anything V2 with LoRA on a folder of captures, or on shards of them.

  deepspeed launch/train.py --deepspeed ds_configs/fp16.json --data data/tires --run runs/first
  deepspeed launch/train.py --deepspeed ds_configs/fp16.json --dry-run
  deepspeed launch/train.py --config runs/first/run.json --run runs/again   # the same once more"""

MOST_USED = ("data", "run", "model", "epochs", "lr", "recipe", "deepspeed", "resume", "dry_run")


def main(argv: list[str] | None = None) -> None:
    """Train as the command line of launch/train.py says: one rank, or all."""
    expect_ranks()
    watch_launchers()
    (settings,) = read_settings(HELP, argv)
    work(settings)


def read_settings(
    text: str,
    argv: list[str] | None,
    *others: Any,
    bare: str = "",
    first: tuple[str, ...] = MOST_USED,
    on_device: bool = True,
) -> tuple[Any, ...]:
    """Return an instance of each of `others`, more groups of settings, and the training's Settings.

    text       what --help begins with
    bare       the setting that words without a flag give too
    first      names of the settings that --help lists before all others
    on_device  also check what this machine's accelerator can run; a dry run always does
    raises SettingsError with every problem found
    """

    def check(*groups: Any) -> list[str]:
        settings = Settings(*groups[len(others) :])
        return check_together(settings, on_device or settings.keep.dry_run)

    groups = parse(
        text,
        *others,
        *GROUPS,
        argv=argv,
        together=check,
        presets=("recipe", RECIPES),
        bare=bare,
        remembered=defaults_of_run,
        first=first,
    )
    return *groups[: len(others)], Settings(*groups[len(others) :])


def work(settings: Settings) -> None:
    """Make shards of captures, meet the other ranks, train, and part."""
    leave_if_stopped(BEFORE_TRAINING)
    if settings.data.captures:
        from depthdist.training.capture_data import describe_sharding, with_shards

        lines = describe_sharding(settings) if settings.keep.dry_run else []
        if lines:
            print("\n".join([*lines, "dry run: nothing was computed or written"]))
            return
        settings = with_shards(settings)

    with importing():
        from depthdist.core.environment import silence_libraries
        from depthdist.distributed.process_group import start, stop

    silence_libraries()
    if settings.keep.dry_run:
        from depthdist.training.dry_run import dry_run

        return dry_run(settings)
    with importing():
        from depthdist.training.train import train

    leave_if_stopped(BEFORE_TRAINING)
    train(settings, start())
    stop()  # not after an error: under NCCL it would wait for ranks that wait for this one
