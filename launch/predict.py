"""Depth in mm for pictures: python launch/predict.py PICTURES --run runs/NAME --out predictions"""

from depthdist.core import settings as config

if __name__ == "__main__":
    config.command(config.main_of("depthdist.inference.predict"))
