"""Depth in mm for pictures: python launch/predict.py PICTURES --run runs/NAME --out predictions"""

from depthdist import config
from depthdist.predict import main

if __name__ == "__main__":
    config.command(main)
