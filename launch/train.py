"""The main command: deepspeed launch/train.py --deepspeed ds_configs/fp16.json"""

from depthdist import config
from depthdist.train import main

if __name__ == "__main__":
    config.command(main)
