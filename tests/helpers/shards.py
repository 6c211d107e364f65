"""What a shard holds, member by member."""


def members(ref):
    content = ref.shard.read_bytes()
    return {m: content[offset : offset + size] for m, (offset, size, _) in ref.members.items()}
