"""The main command: deepspeed launch/train.py --deepspeed ds_configs/fp16.json"""

from depthdist import config

if __name__ == "__main__":
    config.command(config.main_of("depthdist.train"))
