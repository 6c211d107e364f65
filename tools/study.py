"""Train several times with one thing changed: python tools/study.py recipes RAW."""

from depthdist.commands.study import main
from depthdist.core.command import run_command

if __name__ == "__main__":
    run_command(main)
