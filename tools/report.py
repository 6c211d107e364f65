"""Reports to read in a browser: python tools/report.py run runs/NAME."""

from depthdist.core.command import run_command
from depthdist.reports.command import main

if __name__ == "__main__":
    run_command(main)
