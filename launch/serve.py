"""Depth in a browser: python launch/serve.py runs/NAME, then http://127.0.0.1:8000"""

from depthdist.core import settings as config

if __name__ == "__main__":
    config.command(config.main_of("depthdist.inference.server"))
