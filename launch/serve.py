"""Depth in a browser: python launch/serve.py runs/NAME, then http://127.0.0.1:8000"""

from depthdist.core.command import main_of, run_command

if __name__ == "__main__":
    run_command(main_of("depthdist.inference.server"))
