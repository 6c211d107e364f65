"""What the ranks were given, each on its machine: rank 0 decides what its run remembers."""

import json
import socket

from helpers.commands import on_srun, script


def agreeing(folder, data):
    """Write what settings this rank trains with, and what is said of settings that differ."""
    import json
    from pathlib import Path

    from depthdist.distributed.process_group import start, stop
    from depthdist.training.command import read_settings
    from depthdist.training.same_on_ranks import agree_on_settings

    world = start()

    def agreed(first, second, ds_config):
        words = ["--data", data, "--deepspeed", "ds_configs/fp32.json"]
        (given,) = read_settings("", [*words, *(second if world.rank else first)])
        try:
            found = agree_on_settings(given, ds_config, world).train
        except ValueError as err:
            return str(err)
        return [found.recipe, found.lr, found.calibrate]

    seen = [
        agreed(["--recipe", "near"], ["--cache", "elsewhere", "--threads", "3"], {}),
        agreed(["--epochs", "3"], ["--epochs", "4"], {}),
        agreed([], [], {"train_batch_size": 8 + world.rank, "fp16": {}}),
    ]
    Path(folder, f"{world.rank}.json").write_text(json.dumps(seen))
    stop()


def test_a_remembered_recipe_is_rank_0s_and_other_commands_are_refused_by_name(tmp_path):
    from helpers.runs import make_shards

    data = make_shards(tmp_path)
    done = [rank.done() for rank in on_srun(2, script(agreeing, tmp_path), tmp_path, data)]
    assert all(rank.code == 0 for rank in done), done
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first[0] == second[0] == ["near", 5e-4, True]
    host = socket.gethostname()
    assert second[1] == (
        f"rank 1 on {host} has --epochs 4, but rank 0 on {host} has --epochs 3: every machine needs"
        " the same command"
    )
    assert f"rank 1 on {host} has another train_batch_size than rank 0" in second[2]
