"""Whether the relief that a run draws is there: python tools/relief.py --run RUN --captures RAW."""

from depthdist.commands.relief import main
from depthdist.core.command import run_command

if __name__ == "__main__":
    run_command(main)
