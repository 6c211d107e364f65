"""Hypothesis strategies: good files, damaged as disks, editors and other programs damage them."""

import json
from fractions import Fraction

from hypothesis import strategies as st

NUMBERS = [0, 1, 2, 7, 10, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**60, 2**63 - 1, 2**64 - 1]
ODD = [
    None, True, False, 0, -1, 1, 1.5, 10**15, 10**400, -(2**63), 1e308, float("inf"),
    float("-inf"), float("nan"), "", "a", "0", "nan", "..", "/", "\0", "\ud800", "a" * 5000, "é",
    [], {}, [[]], [None], [1, 2, 3], ["a"], {"a": 1}, {"settings": {}}, [0, 0], [-1, -1],
    [2**31, 2**31], [10**6, 10**6],
]  # fmt: skip
DEEP = "[" * 100_000


def _edit_bytes(draw, content: bytearray) -> bytearray:
    at = draw(st.integers(0, max(0, len(content) - 1)))
    kind = draw(st.sampled_from(["flip", "number", "cut", "insert", "remove", "repeat", "zeros"]))
    if kind == "flip" and content:
        content[at] ^= draw(st.integers(1, 255))
    elif kind == "number":
        size = draw(st.sampled_from([1, 2, 4, 8]))
        number = draw(st.sampled_from(NUMBERS)) % 256**size
        content[at : at + size] = number.to_bytes(size, draw(st.sampled_from(["little", "big"])))
    elif kind == "cut":
        del content[at:]
    elif kind == "insert":
        content[at:at] = draw(st.binary(max_size=20))
    elif kind == "remove":
        del content[at : at + draw(st.integers(1, 600))]
    elif kind == "repeat":
        length = draw(st.integers(1, 600))
        content[at:at] = content[at : at + length]
    else:
        length = draw(st.integers(1, 600))
        content[at : at + length] = bytes(len(content[at : at + length]))
    return content


@st.composite
def damaged_bytes(draw, seeds: list[bytes]) -> bytes:
    """One of the files after one to four edits of its bytes."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        content = _edit_bytes(draw, content)
    return bytes(content)


def paths_of(value, at=()):
    """The places of every value of parsed JSON."""
    yield at
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, one in items:
        yield from paths_of(one, (*at, key))


def with_value(value, path, change):
    """Parsed JSON with what is at `path` changed; `change` gets container and key."""
    value = json.loads(json.dumps(value))
    if not path:
        box = [value]
        change(box, 0)
        return box[0] if box else None
    place = value
    for key in path[:-1]:
        place = place[key]
    change(place, path[-1])
    return value


def _set(new):
    def change(box, key):
        box[key] = new

    return change


def _remove(box, key):
    del box[key]


def _scale(factor):
    def change(box, key):
        if isinstance(box[key], float):
            box[key] = box[key] * factor
        elif isinstance(box[key], int):
            box[key] = int(box[key] * Fraction(factor))

    return change


def _text(box, key):
    box[key] = str(box[key])


@st.composite
def damaged_json(draw, seeds: list[bytes]) -> bytes:
    """One of the JSON files after one to three edits of its values, or of its text."""
    seed = draw(st.sampled_from(seeds))
    if draw(st.integers(0, 9)) == 0:
        return draw(damaged_bytes([seed]))
    if draw(st.integers(0, 19)) == 0:
        return draw(st.sampled_from([DEEP.encode(), b'{"a":' * 100_000, b"", b"null", b"[]", b"7",
            b'"a"', b"\xef\xbb\xbf" + seed, seed[:-1], seed * 2, seed.decode().encode("utf-16"),
            b"1" * 5000, b"\xff"]))  # fmt: skip
    lines = seed.splitlines() if seed.count(b"\n") > 1 and _is_lines(seed) else [seed]
    number = draw(st.integers(0, len(lines) - 1))
    value = json.loads(lines[number])
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(paths_of(value))))
        change = draw(
            st.sampled_from([*map(_set, ODD), _remove, _scale(-1), _scale(1e6), _scale(0.5), _text])
        )
        value = with_value(value, path, change)
    lines[number] = json.dumps(value).encode()
    return b"\n".join(lines) + b"\n"


def _is_lines(content: bytes) -> bool:
    """Whether each line is JSON of its own."""
    try:
        json.loads(content.splitlines()[0])
    except ValueError:
        return False
    return True
