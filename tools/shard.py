"""Make, extend, verify or index a dataset of shards: python tools/shard.py RAW OUT."""

from depthdist.core.command import run_command
from depthdist.shards.command import main

if __name__ == "__main__":
    run_command(main)
