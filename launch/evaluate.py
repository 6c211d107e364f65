"""Score a run: python launch/evaluate.py --run runs/NAME"""

from depthdist.core import settings as config

if __name__ == "__main__":
    config.command(config.main_of("depthdist.evaluation.evaluate"))
