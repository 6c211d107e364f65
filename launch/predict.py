"""Depth in mm for images: python launch/predict.py IMAGES --run runs/NAME --out predictions."""

from depthdist.core.command import run_command
from depthdist.inference.predict_command import main

if __name__ == "__main__":
    run_command(main)
