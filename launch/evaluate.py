"""Score a run: python launch/evaluate.py --run runs/NAME"""

from depthdist.core.command import command, main_of

if __name__ == "__main__":
    command(main_of("depthdist.evaluation.evaluate"))
