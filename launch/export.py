"""Export a trained adapter in standard forms: python launch/export.py runs/NAME OUT."""

from depthdist.core.command import run_command
from depthdist.inference.export_command import main

if __name__ == "__main__":
    run_command(main)
