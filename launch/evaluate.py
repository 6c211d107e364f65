"""Score a run: python launch/evaluate.py --run runs/NAME"""

from depthdist import config
from depthdist.evaluate import main

if __name__ == "__main__":
    config.command(main)
