"""A trained adapter as others take it: python launch/export.py runs/NAME OUT"""

from depthdist.core.command import command, main_of

if __name__ == "__main__":
    command(main_of("depthdist.inference.export"))
