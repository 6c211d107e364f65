"""The main command: deepspeed launch/train.py --deepspeed ds_configs/fp16.json"""

from depthdist.core.command import command, main_of

if __name__ == "__main__":
    command(main_of("depthdist.training.train"))
