"""Depth in mm for pictures: python launch/predict.py PICTURES --run runs/NAME --out predictions"""

from depthdist.core.command import main_of, run_command

if __name__ == "__main__":
    run_command(main_of("depthdist.inference.predict"))
