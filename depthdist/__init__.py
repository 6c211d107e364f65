"""Fine-tune a depth foundation model on your own camera data, in millimetres.

    bash launch/quickstart.sh  # everything once, on built-in captures
    deepspeed launch/train.py --deepspeed ds_configs/fp16.json      # the main command

README.md has the chapters; `launch/train.py --help` lists every setting.
"""

__version__ = "0.1.0"
