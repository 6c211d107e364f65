"""Fine-tune a depth foundation model on your own camera data, in millimetres.

    bash launch/quickstart.sh  # everything once, on built-in captures
    deepspeed launch/train.py --deepspeed ds_configs/fp16.json      # the main command

README.md has the chapters; `launch/train.py --help` lists every setting.
"""

import os

os.environ.setdefault(
    "TORCH_CPP_LOG_LEVEL", "ERROR"
)  # before torch: a rank whose store is gone would fill the screen with torch's stack

__version__ = "0.1.0"
