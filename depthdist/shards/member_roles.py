"""Which member of an external tar's samples is the image, the depth, the mask and the metadata.

    entries = assign_roles(folder, samples, settings)       # samples of tar_scan.scan

Members are chosen by their names and headers; nothing pickled is ever loaded.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from depthdist.captures.readers import METRES_BELOW_MM
from depthdist.core.errors import printable_path
from depthdist.geometry.image_size import choose_image_size
from depthdist.shards.external_samples import read_members
from depthdist.shards.format import LEVELS
from depthdist.shards.member_formats import (
    MemberError,
    is_jpeg,
    read_external_depth,
    read_npy_header,
)
from depthdist.shards.settings import ShardSettings
from depthdist.shards.tar_scan import Sample

INSPECTED = re.compile(r"(^|[.])(jpe?g|png|npy)$", re.IGNORECASE)
NUM_INSPECTED = 8  # samples that decide what the members are, and in which unit
DEPTH_DTYPES = ("uint16", "float16", "float32", "float64")
ROLE_NAMES = {  # names that say what a member is, best first
    "image": [{"", "rgb", "color", "colour", "image", "img"}],
    "depth": [{"depth"}, {"rawdepth"}, {"xyz"}, {"z"}],
    "mask": [{"mask"}],
}
REQUIRED = {
    "image": "a .jpg or .png",
    "depth": (
        "uint16 or float (H, W), (H, W, 1) or X, Y, Z (H, W, 3) in a .npy, or a gray PNG of 16 bits"
    ),
}


class Candidate(NamedTuple):
    """The role that a member can have, by its header.

    role   "image", "depth", "mask" or ""
    text   what the header says, for people
    dtype  type of its numbers
    size   its height and width
    """

    role: str
    text: str
    dtype: str = ""
    size: tuple[int, int] = (0, 0)


def assign_roles(folder: Path, samples: list[Sample], settings: ShardSettings) -> dict[str, Any]:
    """Return the entries of index.json that say what each member is, and `image_size`.

    That is the size for the network: --size, or chosen for the images' own. All come from the first
    samples that have the most common set of members.

    raises ValueError: no sample, no or several members that could be the image or the depth, depth
    in metres
    """
    if not samples:
        raise ValueError(
            f"{printable_path(folder)}: no samples in its tars; expected members such as 000000.jpg"
            " and 000000.depth.npy"
        )
    common = Counter(frozenset(s.members) for s in samples).most_common(1)[0][0]
    inspected = sorted(filter(INSPECTED.search, common))
    first_error = ""
    entries = None
    valid = []
    same = (s for s in samples if s.members.keys() == common)
    for sample in itertools.islice(same, NUM_INSPECTED):
        try:
            with open(folder / sample.shard, "rb") as file:
                content = read_members(file.fileno(), sample, inspected)[0] if inspected else {}
            entries = entries or _entries(sorted(common), content, settings)
            z = read_external_depth(entries, content)
            valid.append(z[(z > 0) & (z < np.inf)])
        except ValueError as err:  # this one may be damaged
            place = f"{printable_path(folder / sample.shard)}: {printable_path(sample.key)}"
            first_error = first_error or f"{place}: {err}"
    if entries is None:
        raise ValueError(first_error)
    if settings.unit is None:
        _refuse_metres(folder, entries["depth"], np.concatenate([*valid, []]))
    return entries


def _refuse_metres(folder: Path, depth: dict[str, Any], valid: np.ndarray) -> None:
    """Raise ValueError if the valid depths look like metres."""
    if not depth["dtype"].startswith("float") or not valid.size:
        return
    median = np.median(valid)
    if median < METRES_BELOW_MM:
        raise ValueError(
            f"{printable_path(folder)}: {depth['member']} looks like metres: the median is"
            f" {median:.4g}; expected mm, or --unit 1000 (the mm in a metre)"
        )


def _entries(
    names: list[str], content: dict[str, memoryview], settings: ShardSettings
) -> dict[str, Any]:
    candidates = {name: Candidate("", "not looked at") for name in names}
    for name in content:
        candidates[name] = _candidate(name, content[name])
    image = _pick_required("image", candidates)
    depth = _pick_required("depth", candidates)
    mask = _pick("mask", candidates)
    jsons = [name for name in names if name.lower().endswith("json")]
    meta = jsons[0] if len(jsons) == 1 else None
    resize = settings.depth_size == "train"
    image_size = settings.size or choose_image_size(candidates[image].size)
    return {
        "image_size": image_size,
        "members": [member for member in (depth, mask, meta, image) if member is not None],
        "depth": {
            "member": depth,
            "codec": "png" if depth.lower().endswith("png") else "npy",
            "dtype": candidates[depth].dtype,
            "steps": False,
            "unit_mm": settings.unit or 1.0,
            "resize": resize,
            "size": list(image_size if resize else candidates[depth].size),
            "step_mm": settings.far / LEVELS,
            "max_error_mm": settings.far / LEVELS / 2,
            "near_mm": settings.near,
            "far_mm": settings.far,
            "invalid": 0,
        },
        "mask": {"member": mask, "packed": False},
        "meta": {"member": meta},
        "rgb": {"member": image, "codec": "jpeg" if is_jpeg(image) else "png"},
    }


def _candidate(name: str, content: memoryview) -> Candidate:
    """Return the role that a member can have by its header, unless its name says otherwise."""
    bare, _, suffix = name.lower().rpartition(".")
    words = set(re.split("[^a-z]+", bare))
    image_role = "" if words & {"mask", "depth", "rawdepth"} else "image"
    try:
        if is_jpeg(suffix):
            height, width, *_ = simplejpeg.decode_jpeg_header(content)
            return Candidate(image_role, f"JPEG {height}x{width}", size=(height, width))
        found = _png_candidate(content, image_role) if suffix == "png" else _npy(name, content)
    except Exception as err:  # Pillow raises much besides OSError
        return Candidate("", str(MemberError(name, f"cannot be read: {err}")))
    named_mask = "mask" in words
    return found if (found.role == "mask") == named_mask else found._replace(role="")


def _png_candidate(content: memoryview, image_role: str) -> Candidate:
    image = Image.open(BytesIO(content), formats=["PNG"])
    if image.mode == "I;16":
        role = "depth"
    elif not image_role and image.mode in ("L", "1"):
        role = "mask"
    else:
        role = image_role
    width, height = image.size
    text = f"PNG {height}x{width}, mode {image.mode}"
    return Candidate(role, text, "uint16", (height, width))


def _npy(name: str, content: memoryview) -> Candidate:
    shape, _, dtype, _ = read_npy_header(name, content)
    if dtype in ("uint8", "bool"):
        role = "mask"
    elif dtype in DEPTH_DTYPES and len(shape) in (2, 3) and shape[2:] in ((), (1,), (3,)):
        role = "depth"
    else:
        role = ""
    text = "pickled Python objects, never loaded" if dtype.hasobject else f"{dtype} {shape}"
    height, width = (*shape, 0, 0)[:2]
    return Candidate(role, text, dtype.name, (height, width))


def _pick(role: str, candidates: dict[str, Candidate]) -> str | None:
    """Return the member with that role, None if there is none, raise ValueError if several fit."""
    best = _best_named(role, candidates)
    if len(best) > 1:
        raise ValueError(
            f"{_listed(best, candidates)} can all be the {role}; expected one, or one with a name"
            " that says it"
        )
    return best[0] if best else None


def _pick_required(role: str, candidates: dict[str, Candidate]) -> str:
    member = _pick(role, candidates)
    if member is None:
        listed = _listed(list(candidates), candidates)
        raise ValueError(f"no {role} among its members: {listed}; expected {REQUIRED[role]}")
    return member


def _best_named(role: str, candidates: dict[str, Candidate]) -> list[str]:
    """Return the members that can have the role and whose names say it best."""

    def rank(name: str) -> tuple[bool, int]:
        """Sort a name that is one of the role's names before one that contains it."""
        bare = name.lower().rpartition(".")[0]
        exact = _places({bare}, role)
        contained = _places({*re.split("[^a-z]+", bare)} - {""}, role)
        return not exact, min(exact or contained, default=len(ROLE_NAMES[role]))

    names = sorted((name for name, one in candidates.items() if one.role == role), key=rank)
    return [name for name in names if rank(name) == rank(names[0])]


def _places(words: set[str], role: str) -> list[int]:
    return [i for i, names in enumerate(ROLE_NAMES[role]) if names & words]


def _listed(names: list[str], candidates: dict[str, Candidate]) -> str:
    return ", ".join(f"{name} ({candidates[name].text})" for name in names)
