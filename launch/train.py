"""The main command: deepspeed launch/train.py --deepspeed ds_configs/fp16.json"""

from depthdist.core import settings as config

if __name__ == "__main__":
    config.command(config.main_of("depthdist.training.train"))
