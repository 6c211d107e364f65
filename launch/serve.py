"""Depth in a browser: python launch/serve.py runs/NAME, then http://127.0.0.1:8000"""

from depthdist import config
from depthdist.serve import main

if __name__ == "__main__":
    config.command(main)
