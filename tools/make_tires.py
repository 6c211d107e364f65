"""Write synthetic captures of tires: python tools/make_tires.py OUT --pairs 58."""

from depthdist.core.command import run_command
from depthdist.synthetic.command import main

if __name__ == "__main__":
    run_command(main)
