"""A trained adapter as others take it: python launch/export.py runs/NAME OUT"""

from depthdist import config
from depthdist.export import main

if __name__ == "__main__":
    config.command(main)
