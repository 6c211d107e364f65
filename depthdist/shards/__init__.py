"""The dataset format: folders of shards, as `depthdist shard` writes them.

    OUT/index.json                     written last: sizes, depth step, splits, statistics, shards,
                                       and the names of:
    OUT/samples-HASH.npy               a row per sample: its shard, where each member lies, every
                                       CRC-32 (`index.table_dtype`)
    OUT/names-HASH.txt                 a line per sample: its key, and the stem of the capture
    OUT/{train,val}/shard-000000.tar   plain USTAR; a sample is KEY.depth.npy KEY.mask.npy
                                       KEY.meta.json KEY.rgb.jpg
    OUT/{train,val}/shard-000000.json  the same entries for one shard, its commit record
    OUT/rejects.jsonl                  the raw files that were rejected, and why

    depth.npy   uint16 (H, W): depth_mm = value * step_mm, 0 where invalid; the error is at most
                step_mm / 2. Or depth.png, the same
    mask.npy    uint8 (H, ceil(W / 8)): the valid pixels, np.packbits along W
    rgb.jpg     or rgb.png: uint8 (h, w, 3) at the network's size
    meta.json   the capture's name, session, files with their sha256, valid fraction, bounds,
                intrinsics

settings, format            what can be chosen, and what is written
plan, splits                which captures, which side of the split, which shard
encoding, quantize_kernel, statistics  one capture becomes a sample
writer, worker_pool, build  captures become shards (`depthdist shard RAW OUT`)
previous_output             what OUT holds before a run
record_sums, index_writer   the shards' commit records added up, and the index after a run
index, index_schema         where the bytes of every sample are; opening it takes little time
external_*, member_*, tar_scan  the same index for existing tars, in place (`--index DIR`)
decoding, sample_arrays     bytes become arrays; nothing pickled is ever loaded
remote_cache, remote_files  shards behind a URL, through a cache on this machine
verify                      every byte against the index (`--verify DIR`)
"""

SCHEMA = "depthdist-shards"
VERSION = 2
