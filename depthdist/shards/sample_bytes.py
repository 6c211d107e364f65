"""How many bytes a sample takes in a shard, from sizes alone: for plans."""

from __future__ import annotations

from depthdist.shards.format import Encoding

RGB_BYTES = {"jpeg": 0.33, "png": 1.5, "raw": 3}  # a pixel, measured; by codec
TAR_BYTES = 8 * 512  # a sample's tar headers and padding


def samples_per_shard(encoding: Encoding, shard_mb: float) -> int:
    """Return how many samples are planned for one shard.

    From sizes alone, because the plan must not depend on the content of files.
    """
    return max(1, int(shard_mb * 2**20 // bytes_of_sample(encoding)))


def bytes_of_sample(encoding: Encoding) -> float:
    """Return about how many bytes a sample takes in a shard."""
    height, width = encoding.depth_size
    rows, columns = encoding.rgb_size or encoding.depth_size
    rgb = rows * columns * RGB_BYTES[encoding.codec]
    depth = 2 * height * width
    mask = height * -(-width // 8)
    return depth + mask + rgb + TAR_BYTES
