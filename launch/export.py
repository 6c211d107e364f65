"""A trained adapter as others take it: python launch/export.py runs/NAME OUT"""

from depthdist.core.command import main_of, run_command

if __name__ == "__main__":
    run_command(main_of("depthdist.inference.export"))
