"""Depth in a browser: python launch/serve.py runs/NAME, then http://127.0.0.1:8000"""

from depthdist.core.command import command, main_of

if __name__ == "__main__":
    command(main_of("depthdist.inference.server"))
