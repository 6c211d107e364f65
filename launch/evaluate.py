"""Score a run: python launch/evaluate.py --run runs/NAME."""

from depthdist.core.command import run_command
from depthdist.evaluation.command import main

if __name__ == "__main__":
    run_command(main)
