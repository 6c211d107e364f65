"""Shards: what a dataset folder made by `tools/shard.py` looks like.

    OUT/index.json                     written last: sizes, depth step, splits, statistics, shards,
                                       and the names of:
    OUT/samples-HASH.npy               a row a sample: its shard, where each member lies, every
                                       CRC-32 (`index.table_dtype`)
    OUT/names-HASH.txt                 a line a sample: its key, and the stem of the capture
    OUT/{train,val}/shard-000000.tar   plain USTAR; a sample is KEY.depth.npy KEY.mask.npy
                                       KEY.meta.json KEY.rgb.jpg
    OUT/{train,val}/shard-000000.json  the same facts of one shard, its commit record
    OUT/rejects.jsonl                  the raw files that no sample was made of, and why

    depth.npy   uint16 (H, W): depth_mm = value * step_mm, 0 where invalid; off by step_mm / 2 at
                most. Or depth.png, the same
    mask.npy    uint8 (H, ceil(W / 8)): the valid pixels, np.packbits along W
    rgb.jpg     or rgb.png: uint8 (h, w, 3) at the network's size
    meta.json   the capture's name, session, files with their sha256, valid fraction, bounds,
                intrinsics

plan, writer, pool, build   captures become shards (`python tools/shard.py RAW OUT`)
index                       where the bytes of every sample are; opened in no time, whatever the
                            number of samples
foreign                     the same index for somebody else's tars, in place (`--index DIR`)
decode                      bytes become arrays; nothing pickled is ever loaded
remote                      shards behind a URL, through a cache on this machine
verify                      every byte against the index (`--verify DIR`)
"""

SCHEMA, VERSION = "depthdist-shards", 2
