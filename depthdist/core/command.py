"""Run a command: exit codes, one clear line a problem."""

from __future__ import annotations

import importlib
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from depthdist.core.errors import SettingsError, Stopped


def main_of(module: str) -> Callable[[], Any]:
    """The `main` of `module`, which is imported no earlier than it is called: its seconds are
    within what `command` watches over.
    """
    return lambda: importlib.import_module(module).main()


def run_command(main: Callable[[], Any]) -> None:
    """Run a command: bad input ends it with one clear line a problem and exit code 2, a stop on
    request with 75 (EX_TEMPFAIL), Ctrl-C with 130.

    Of ranks that have met (world.py) all end when one does, and what several have to say is said
    once. DEPTHDIST_TRACE=1 in the environment shows the traceback as well.
    """
    try:
        sys.exit(main() or 0)
    except (Exception, KeyboardInterrupt) as err:
        rank, name = (
            int(os.environ.get("RANK", 0)),
            Path(sys.argv[0]).name,
        )  # no earlier: importing world.py names the rank of an srun task
        world = sys.modules.get(
            "depthdist.distributed.process_group"
        )  # not imported here: torch takes seconds, and --help has no need of it
        if isinstance(err, Stopped):
            if rank == 0:
                print(f"{name}: {err}", file=sys.stderr)
            if world:
                world.stop()
            sys.exit(75)
        watch, code, text = world and world.watch, 1, f"{type(err).__name__}: {err}"
        if isinstance(err, KeyboardInterrupt):
            code, text = 130, "stopped by Ctrl-C"
        elif isinstance(err, (ValueError, OSError)):
            code, text = (
                2,
                (
                    str(err)
                    if isinstance(err, ValueError) or not err.strerror
                    else f"{err.filename or 'output'}: {err.strerror}"
                )
                or repr(err),
            )
        elif not watch:
            raise
        if not watch and isinstance(err, SettingsError) and int(os.environ.get("LOCAL_RANK", 0)):
            time.sleep(
                10
                # every rank of this machine found the same; the launcher ends all with the first
                # that
                # ends, and
            )
            sys.exit(2)  # that must be the one that says it
        shown = watch.judge(err, code, text) if watch else text
        if shown and ((code == 1 and shown == text) or os.environ.get("DEPTHDIST_TRACE")):
            traceback.print_exc()
        for line in shown.splitlines():
            print(
                f"{name}:"
                f" {'' if code == 130 else 'error: '}{f'[rank {rank}] ' if rank else ''}{line}",
                file=sys.stderr,
            )
        if watch:
            watch.end()
        sys.exit(code)
