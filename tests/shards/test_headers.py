"""Headers of captures are read once, whatever the number of ranks."""

import json

from helpers.captures import write_raw
from helpers.commands import on_srun, script

from depthdist.captures.layouts import find_pairs
from depthdist.captures.read_options import NO_OPTIONS
from depthdist.core.errors import BadFile
from depthdist.shards.headers import look_at


def test_a_header_has_the_sizes_and_the_files_and_what_is_wrong_is_in_its_place(tmp_path):
    raw = write_raw(tmp_path / "raw", 3)
    pairs, _ = find_pairs(raw)
    pairs[1].xyz.write_bytes(b"no array")
    first, bad, last = look_at(pairs, NO_OPTIONS)
    assert isinstance(bad, BadFile) and bad.path == pairs[1].xyz
    assert (first.image_size, first.size) == ((30, 40), (30, 40))
    for pair, header in ((pairs[0], first), (pairs[2], last)):
        found = [path.stat() for path in (pair.rgb, pair.xyz)]
        wanted = [value for file in found for value in (file.st_size, file.st_mtime_ns)]
        assert list(header.status) == wanted


def counting(raw, out):
    """Shard on this rank, and write which files of RAW it opened or listed itself."""
    import json
    import os
    import sys
    from pathlib import Path

    if __name__ != "__main__":
        return  # a worker, which imports this script
    opened = []

    def note(event, given):
        if event in ("open", "os.listdir", "os.scandir") and str(given[0]).startswith(raw):
            opened.append(str(given[0]))

    sys.addaudithook(note)
    from depthdist.shards.command import main

    rank = os.environ["SLURM_PROCID"]
    main([raw, out, "--size", "28x42", "--workers", "1"])
    Path(f"{out}-{rank}.json").write_text(json.dumps(opened))


def test_rank_0_lists_the_folder_and_each_rank_reads_its_share_of_the_headers(tmp_path):
    raw, out = write_raw(tmp_path / "raw", 9), tmp_path / "out"
    ranks = on_srun(3, script(counting, tmp_path), raw, out)
    done = [rank.done() for rank in ranks]
    assert [one.code for one in done] == [0, 0, 0], done
    opened = [json.loads((tmp_path / f"out-{rank}.json").read_text()) for rank in range(3)]
    files = [[name for name in names if name.endswith((".png", ".npy"))] for names in opened]
    assert [len(names) for names in files] == [6, 6, 6], "two files of three captures each"
    assert len({name for names in files for name in names}) == 18
    listed = [len(names) - len(own) for names, own in zip(opened, files)]
    assert listed[0] and not listed[1] and not listed[2]


def test_a_folder_that_cannot_be_used_ends_every_rank_with_its_line(tmp_path):
    (tmp_path / "raw").mkdir()
    ranks = on_srun(2, script(counting, tmp_path), tmp_path / "raw", tmp_path / "out")
    for done in (rank.done() for rank in ranks):
        assert done.code and "no pictures and no files of points or depth" in done.err, done
