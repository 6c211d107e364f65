"""Score a run: python launch/evaluate.py --run runs/NAME"""

from depthdist.core.command import main_of, run_command

if __name__ == "__main__":
    run_command(main_of("depthdist.evaluation.evaluate"))
