"""The main command: deepspeed launch/train.py --deepspeed ds_configs/fp16.json."""

from depthdist.core.command import run_command
from depthdist.training.command import main

if __name__ == "__main__":
    run_command(main)
