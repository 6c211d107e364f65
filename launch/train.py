"""The main command: deepspeed launch/train.py --deepspeed ds_configs/fp16.json."""

from depthdist.core.command import main_of, run_command

if __name__ == "__main__":
    run_command(main_of("depthdist.training.command"))
