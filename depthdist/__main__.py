"""Run the command `depthdist` as `python -m depthdist`."""

from depthdist.commands.main import entry

if __name__ == "__main__":
    entry()
