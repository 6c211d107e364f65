"""Depth in mm for pictures: python launch/predict.py PICTURES --run runs/NAME --out predictions"""

from depthdist.core.command import command, main_of

if __name__ == "__main__":
    command(main_of("depthdist.inference.predict"))
