"""Raw captures: which files of a folder belong together, and what is in them.

    find_pairs(folder)  ->  Pair(stem, rgb, xyz, grooves), Reject(path, reason)
    read_pair(pair)     ->  a picture in RGB, xyz (H, W, 3) float32 mm
    read_label(path)    ->  (H, W) uint16: which groove is seen where, where somebody marked it
                        beside the picture

Everything that reads a user's file is here; what cannot be read correctly raises `BadFile`, one
line that starts with the file's path. A new camera's layout is one function in `LAYOUTS`. Used by
`python tools/shard.py RAW OUT` and by predict.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from depthdist.core.errors import BadFile

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm", ".mpo"}
POINT_MAP_SUFFIXES = {".npy"}
GROOVE_LABEL_ENDING = "_grooves.png"  # X_grooves.png beside X_color.png or X.png
EXPECTED = (
    "expected images/X_color.png + depth/X_rawDepth.npy in two folders, or name.png + name.npy side"
    " by side"
)
# Chatter about odd but readable files; what cannot be read is an error here, never a warning.
warnings.filterwarnings(
    "ignore", message="Reading `.npy` or `.npz` file required additional header parsing"
)  # Python 2 wrote it
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())


class CapturePair(NamedTuple):
    """One capture's files.

    `stem` names it: relative to the root, `/` between folders, unique under the root.
    """

    stem: str
    rgb: Path
    xyz: Path
    grooves: Path | None = None

    @property
    def files(self) -> dict[str, Path]:
        """Those there are, by kind."""
        return {kind: path for kind, path in zip(self._fields[1:], self[1:]) if path}


class RejectedFile(NamedTuple):
    """A file that no sample is made of, and why."""

    path: Path
    reason: str


# ------------------------------------------------------------------------------------------ finding


def _kind(path: PurePosixPath) -> str | None:
    suffix = path.suffix.lower()
    if path.name.lower().endswith(GROOVE_LABEL_ENDING):
        return "grooves"
    return "rgb" if suffix in IMAGE_SUFFIXES else "xyz" if suffix in POINT_MAP_SUFFIXES else None


def _bare(name: str) -> str:
    """`name` without the suffix a camera's software puts on:
    21-12-03-18-50-31_Zivid_acquisition_color -> ..._acquisition.
    """
    return (
        re.sub(r"_(colou?r|rgb|rawdepth|depth|xyz|grooves)$", "", name, flags=re.IGNORECASE) or name
    )


def two_folders(path: PurePosixPath) -> tuple[str, str] | None:
    """images/X_color.png + depth/X_rawDepth.npy: two sibling folders."""
    kind, folder = _kind(path), path.parent.name.lower()
    if (kind in ("rgb", "grooves") and folder in ("images", "rgb", "color")) or (
        kind == "xyz" and folder in ("depth", "xyz")
    ):
        return kind, str(path.parent.parent / _bare(path.stem))
    return None


def same_name(path: PurePosixPath) -> tuple[str, str] | None:
    """name.png + name.npy: side by side."""
    kind = _kind(path)
    return kind and (
        kind,
        str(path)[: -len(GROOVE_LABEL_ENDING if kind == "grooves" else path.suffix)],
    )


def same_folder(path: PurePosixPath) -> tuple[str, str] | None:
    """X_color.png + X_rawDepth.npy: side by side with the camera's suffixes."""
    kind = _kind(path)
    return kind and (kind, str(path.parent / _bare(path.stem)))


Layout = Callable[[PurePosixPath], "tuple[str, str] | None"]
LAYOUTS: tuple[Layout, ...] = (
    two_folders,
    same_name,
    same_folder,
)  # the first that gives a file a twin wins


def find_pairs(root: Path | str) -> tuple[list[CapturePair], list[RejectedFile]]:
    """All pairs under `root`, sorted by stem, and the files that have no twin or more than one.

    Hidden files and folders, and folders called `truth`, are never looked into; links to folders
    are followed once. raises BadFile when `root` is no folder, or holds neither pictures nor point
    clouds
    """
    root = Path(root)
    if not root.is_dir():
        raise BadFile(
            root,
            f"{'is a file' if root.exists() else 'no such folder'}; expected a folder of captures",
        )
    pairs: dict[str, CapturePair] = {}
    rejects: list[RejectedFile] = []
    left = sorted(_walk(root))
    if not left:
        raise BadFile(root, f"no pictures and no .npy files; {EXPECTED}")
    for path in [p for p in left if not str(p).isprintable()]:
        left.remove(path)
        rejects.append(
            RejectedFile(root / path, "the name holds characters that cannot be printed; rename it")
        )
    for layout in LAYOUTS:
        groups: dict[str, dict[str, list[PurePosixPath]]] = defaultdict(
            lambda: {"rgb": [], "xyz": [], "grooves": []}
        )
        for path in left:
            if found := layout(path):
                groups[found[1]][found[0]].append(path)
        for stem, group in groups.items():
            pictures, clouds, labels = group["rgb"], group["xyz"], group["grooves"]
            if not pictures or not clouds:
                continue  # another layout may know the twin
            pair = CapturePair(
                stem, root / pictures[0], root / clouds[0], root / labels[0] if labels else None
            )
            if len(pictures) > 1 or len(clouds) > 1 or len(labels) > 1:
                names = ", ".join(str(p) for p in (*pictures, *clouds, *labels[1:]))
                found = (
                    f"{len(pictures)}"
                    f" pictures{f', {len(labels)} groove labels' if len(labels) > 1 else ''} and"
                    f" {len(clouds)} point clouds share the stem {stem} ({names})"
                )
                rejects.append(RejectedFile(pair.rgb, f"{found}; expected one of each"))
            elif stem in pairs:
                rejects.append(
                    RejectedFile(
                        pair.rgb,
                        f"the stem {stem} is taken by {pairs[stem].rgb}; rename one of them",
                    )
                )
            else:
                pairs[stem] = pair
        claimed = {
            p for g in groups.values() if g["rgb"] and g["xyz"] for ours in g.values() for p in ours
        }
        left = [p for p in left if p not in claimed]
    lonely = {
        "rgb": "a picture without its point cloud",
        "xyz": "a point cloud without its picture",
        "grooves": "a groove label without its capture",
    }
    rejects += [RejectedFile(root / p, f"{lonely[_kind(p)]}; {EXPECTED}") for p in left]
    return sorted(pairs.values()), sorted(rejects)


def is_image(path: Path) -> bool:
    """Whether that is a picture's name: no point cloud's, no groove label's."""
    return _kind(PurePosixPath(path)) == "rgb"


def list_images(path: Path) -> list[Path]:
    """The picture `path`, or every picture under the folder `path`. BadFile where there is none."""
    if not path.exists():
        raise BadFile(path, "no such file or folder; expected pictures, or folders of them")
    found = [path] if path.is_file() else sorted(path / p for p in _walk(path) if is_image(p))
    if not found:
        raise BadFile(path, f"no pictures; expected {', '.join(sorted(IMAGE_SUFFIXES))}")
    return found


def find_point_maps(pictures: list[Path]) -> dict[Path, Path]:
    """The point cloud that belongs to each picture that has exactly one."""
    parents = {p: p.absolute().parent for p in pictures}
    folders = {
        near
        for here in parents.values()
        for near in (here, here.parent / "depth", here.parent / "xyz")
    }
    clouds = [cloud for folder in sorted(folders) for cloud in sorted(folder.glob("*.npy"))]
    found: dict[Path, Path] = {}
    for layout in LAYOUTS:
        twins = defaultdict(list)
        for cloud in clouds:
            if claimed := layout(PurePosixPath(cloud)):
                twins[claimed[1]].append(cloud)
        for picture, here in parents.items():
            claimed = layout(PurePosixPath(here / picture.name))
            if picture not in found and claimed and len(twins[claimed[1]]) == 1:
                (found[picture],) = twins[claimed[1]]
    return found


def _walk(root: Path) -> list[PurePosixPath]:
    """Pictures and clouds under `root`, relative to it."""

    def stop(err: OSError) -> None:
        raise BadFile(err.filename, f"cannot be listed: {err.strerror}")

    files, seen = [], set()
    for folder, names, here in os.walk(root, followlinks=True, onerror=stop):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link back up
            names.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        names[:] = sorted(n for n in names if not n.startswith(".") and n != "truth")
        relative = PurePosixPath(Path(folder).relative_to(root).as_posix())
        files += [relative / n for n in here if not n.startswith(".") and _kind(PurePosixPath(n))]
    return files


# ----------------------------------------------------------------------------------------- sessions


# ----------------------------------------------------------------------------------------- pictures


# ------------------------------------------------------------------------------------- point clouds
