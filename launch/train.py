"""The main command: deepspeed launch/train.py --deepspeed ds_configs/fp16.json."""

if __name__ == "__main__":
    from depthdist.core.stop_signals import note_stop_signals

    note_stop_signals()  # before the rest is imported: a signal must not end it unsaid

    from depthdist.core.command import run_command
    from depthdist.training.command import main

    run_command(main)
