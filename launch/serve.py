"""Depth in a browser: python launch/serve.py runs/NAME, then open http://127.0.0.1:8000."""

from depthdist.core.command import run_command
from depthdist.inference.serve_command import main

if __name__ == "__main__":
    run_command(main)
