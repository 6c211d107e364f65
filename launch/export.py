"""A trained adapter as others take it: python launch/export.py runs/NAME OUT"""

from depthdist.core import settings as config

if __name__ == "__main__":
    config.command(config.main_of("depthdist.inference.export"))
