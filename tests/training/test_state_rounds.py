"""Train, save, go on, and end in the same bits: ranks, ZeRO stages, precisions and steps before the
saving in all pairs, with every form of `--lora`."""

import json

import pytest
from helpers.commands import joined, on_srun, script
from helpers.runs import make_model
from helpers.state_rounds import RANKS, check, covering


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "dav2", width=24, layers=3)


def rounds(out, model, ranks):
    """Write what is wrong with the cases of this many ranks, on each rank."""
    import json
    from pathlib import Path

    from helpers.state_rounds import check, covering

    from depthdist.distributed.process_group import start, stop
    from depthdist.models.base_model import load_base

    out, world = Path(out), start()
    wrong = check(covering(int(ranks)), world, load_base(model), out)
    (out / f"wrong{world.rank}.json").write_text(json.dumps(wrong))
    stop()


@pytest.fixture(scope="module", autouse=True)
def at_work(folder, tmp_path_factory):
    """`rounds` on several ranks, while one rank's run here: folders and processes by ranks."""
    launches = {}
    for ranks in RANKS[1:]:
        out = tmp_path_factory.mktemp(f"ranks{ranks}")
        launches[ranks] = out, on_srun(ranks, script(rounds, out), out, folder, ranks)
    yield launches
    for _, launch in launches.values():
        for rank in launch:
            rank.kill()


@pytest.fixture
def base(folder, monkeypatch):
    from depthdist.models.base_model import load_base

    monkeypatch.setenv("LOCAL_RANK", "0")  # DeepSpeed looks for it
    joined()
    return load_base(str(folder))


def test_a_run_on_one_rank_goes_on_from_its_saved_state_to_the_same_bits(base, tmp_path):
    assert check(covering(1), joined(), base, tmp_path) == []


@pytest.mark.parametrize("ranks", RANKS[1:])
def test_a_run_on_several_ranks_goes_on_from_its_saved_state_to_the_same_bits(ranks, at_work):
    out, launch = at_work[ranks]
    ended = [rank.done() for rank in launch]
    assert all(done.code == 0 for done in ended), ended
    found = [json.loads((out / f"wrong{rank}.json").read_text()) for rank in range(ranks)]
    assert found == [[]] * ranks
