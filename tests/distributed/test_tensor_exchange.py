"""Tensors from rank 0 to all ranks: equal to the bit, with memory for one of them at a time."""

import json

from helpers.commands import on_srun, script


def exchanging(folder):
    """Rank 0 has a state; the others get it. Each writes what it has, and what was sent at most."""
    import json
    from pathlib import Path

    import torch
    import torch.distributed as dist

    from depthdist.distributed.process_group import start, stop
    from depthdist.distributed.tensor_exchange import broadcast_file, broadcast_tensors

    world = start()
    sent, real = [], dist.broadcast

    def counting(tensor, *given, **named):
        sent.append(tensor.nbytes)
        return real(tensor, *given, **named)

    dist.broadcast = torch.distributed.distributed_c10d.broadcast = counting
    tensors = {}
    if world.rank == 0:
        bits = torch.arange(-500, 500, dtype=torch.int32)
        tensors = {f"weights/{i}": torch.rand(1000, 25) for i in range(40)}
        tensors |= {
            "nan": bits.view(torch.float32),
            "half": bits.to(torch.int16).view(torch.bfloat16).view(10, 10, 10).mT,
            "flags": bits % 3 == 0,
            "step": torch.tensor(7),
            "nothing": torch.zeros(0, 4),
        }
    found = broadcast_tensors(tensors)
    most = max(sent)
    path = Path(folder, "file")
    if world.rank == 0:
        path.write_bytes(bytes(range(256)) * 200_000)
    content = b"".join(broadcast_file(path if world.rank == 0 else Path("none")))
    state = {
        name: [str(tensor.dtype), list(tensor.shape), tensor.contiguous().reshape(-1)]
        for name, tensor in found.items()
    }
    for entry in state.values():
        entry[2] = entry[2].view(torch.uint8).numpy().tobytes().hex() if len(entry[2]) else ""
    is_same = content == bytes(range(256)) * 200_000
    seen = [state, most, max(sent[-4:]), is_same]
    Path(folder, f"rank{world.rank}.json").write_text(json.dumps(seen))
    stop()


def test_a_state_reaches_all_ranks_bit_for_bit_one_tensor_at_a_time(tmp_path):
    ranks = [rank.done() for rank in on_srun(2, script(exchanging, tmp_path), tmp_path)]
    assert all(rank.code == 0 for rank in ranks), ranks
    mine, its = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert len(mine[0]) == 45 and its[0] == mine[0]
    assert mine[1] == 1000 * 25 * 4, "the largest message is the largest tensor, not all of them"
    assert mine[2] == 16 * 2**20 and its[3], "a file goes in pieces"
