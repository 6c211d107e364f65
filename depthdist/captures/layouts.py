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
from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

PICTURES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm", ".mpo"}
CLOUDS = {".npy"}
LABEL = "_grooves.png"  # X_grooves.png beside X_color.png or X.png
EXPECTED = (
    "expected images/X_color.png + depth/X_rawDepth.npy in two folders, or name.png + name.npy side"
    " by side"
)
ORIENTATION = 0x0112  # the EXIF tag
METRES_BELOW_MM = 20.0  # no structured-light camera measures at 20 mm, none at 20 m
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# Chatter about odd but readable files; what cannot be read is an error here, never a warning.
warnings.filterwarnings(
    "ignore", message="Reading `.npy` or `.npz` file required additional header parsing"
)  # Python 2 wrote it
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())


class BadFile(ValueError):
    """A file that cannot be used: its path, then what was found and what was expected."""

    def __init__(self, path: Path, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = Path(path), " ".join(reason.split())  # one line

    def __str__(self) -> str:
        return f"{shown(self.path)}: {self.reason}"


class Pair(NamedTuple):
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


class Reject(NamedTuple):
    """A file that no sample is made of, and why."""

    path: Path
    reason: str


def shown(path: Path | str) -> str:
    """`path` as text that stays on one line and that any terminal can print."""
    return str(path) if str(path).isprintable() else ascii(str(path))


# ------------------------------------------------------------------------------------------ finding


def _kind(path: PurePosixPath) -> str | None:
    suffix = path.suffix.lower()
    if path.name.lower().endswith(LABEL):
        return "grooves"
    return "rgb" if suffix in PICTURES else "xyz" if suffix in CLOUDS else None


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
    return kind and (kind, str(path)[: -len(LABEL if kind == "grooves" else path.suffix)])


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


def find_pairs(root: Path | str) -> tuple[list[Pair], list[Reject]]:
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
    pairs: dict[str, Pair] = {}
    rejects: list[Reject] = []
    left = sorted(_walk(root))
    if not left:
        raise BadFile(root, f"no pictures and no .npy files; {EXPECTED}")
    for path in [p for p in left if not str(p).isprintable()]:
        left.remove(path)
        rejects.append(
            Reject(root / path, "the name holds characters that cannot be printed; rename it")
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
            pair = Pair(
                stem, root / pictures[0], root / clouds[0], root / labels[0] if labels else None
            )
            if len(pictures) > 1 or len(clouds) > 1 or len(labels) > 1:
                names = ", ".join(str(p) for p in (*pictures, *clouds, *labels[1:]))
                found = (
                    f"{len(pictures)}"
                    f" pictures{f', {len(labels)} groove labels' if len(labels) > 1 else ''} and"
                    f" {len(clouds)} point clouds share the stem {stem} ({names})"
                )
                rejects.append(Reject(pair.rgb, f"{found}; expected one of each"))
            elif stem in pairs:
                rejects.append(
                    Reject(
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
    rejects += [Reject(root / p, f"{lonely[_kind(p)]}; {EXPECTED}") for p in left]
    return sorted(pairs.values()), sorted(rejects)


def is_picture(path: Path) -> bool:
    """Whether that is a picture's name: no point cloud's, no groove label's."""
    return _kind(PurePosixPath(path)) == "rgb"


def list_pictures(path: Path) -> list[Path]:
    """The picture `path`, or every picture under the folder `path`. BadFile where there is none."""
    if not path.exists():
        raise BadFile(path, "no such file or folder; expected pictures, or folders of them")
    found = [path] if path.is_file() else sorted(path / p for p in _walk(path) if is_picture(p))
    if not found:
        raise BadFile(path, f"no pictures; expected {', '.join(sorted(PICTURES))}")
    return found


def find_clouds(pictures: list[Path]) -> dict[Path, Path]:
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


def capture_time(stem: str) -> datetime | None:
    """When the capture was taken, read out of `[20]YY-MM-DD-hh-mm-ss...`, or None."""
    match = re.match(r"(?:20)?(\d\d)" + r"-(\d\d)" * 5 + r"(?!\d)", PurePosixPath(stem).name)
    try:
        return datetime(2000 + int(match[1]), *map(int, match.groups()[1:])) if match else None
    except ValueError:  # month 13
        return None


def sessions(stems: list[str], gap_minutes: float = 10.0) -> list[int]:
    """The session's number for each stem, from 0: captures less than `gap_minutes` after one
    another share one.

    Time decides across folders: two cameras over one crate see one scene. Stems without a time
    share their folder's session.
    """
    times = {stem: capture_time(stem) for stem in stems}
    number: dict[str, int] = {}
    count, last = 0, None
    for stem in sorted((s for s in times if times[s]), key=lambda s: (times[s], s)):
        count += last is None or times[stem] - last > timedelta(minutes=gap_minutes)
        number[stem], last = count - 1, times[stem]
    folders = sorted({PurePosixPath(s).parent for s in times if not times[s]})
    number.update(
        {s: count + folders.index(PurePosixPath(s).parent) for s in times if not times[s]}
    )
    return [number[stem] for stem in stems]


# ----------------------------------------------------------------------------------------- pictures


def read_rgb(path: Path | str, upright: bool = False) -> np.ndarray:
    """The picture as (H, W, 3) uint8 RGB; the rest is `open_rgb`'s."""
    return np.array(open_rgb(path, upright))


def open_rgb(path: Path | str, upright: bool = False, content: bytes | None = None) -> Image.Image:
    """The picture in RGB, 8 bits a channel, whatever kind of picture it is.

    `content` are the file's bytes, where they are at hand.

    16 bits become 8 by dropping the low byte, alpha is dropped, CMYK, palettes and grey are
    converted, and of several frames the first counts. `upright` turns a picture as its EXIF
    orientation says; without it such a picture raises, for a point cloud has no such tag and the
    two grids could disagree.

    raises BadFile: cannot be decoded, truncated, turned, 32 bits a channel, more pixels than
    Pillow's decompression-bomb guard
    """
    path = Path(path)
    try:
        with Image.open(path if content is None else BytesIO(content)) as image:
            turned = image.getexif().get(
                ORIENTATION, 1
            )  # before load(): Pillow turns a TIFF and drops the tag while loading
            if turned in range(2, 9) and not upright:
                raise BadFile(
                    path,
                    f"EXIF orientation is {turned}; expected 1 (the picture must lie as the"
                    " camera's grid does)",
                )
            image.load()
            return _as_rgb(path, ImageOps.exif_transpose(image) if upright else image)
    except BadFile:
        raise
    except (
        Exception
    ) as err:  # Pillow raises OSError, SyntaxError, TypeError, struct.error ... on broken files
        reason = (
            getattr(err, "strerror", None)
            or str(err).replace(repr(str(path)), "it")
            or type(err).__name__
        )
        raise BadFile(
            path, f"cannot be read as a picture ({reason}); expected a whole PNG, JPEG or TIFF"
        ) from err


def orientation(path: Path) -> int:
    """How a picture that can be read lies, by its EXIF tag: 2 to 8, or 0 where it is upright."""
    with Image.open(path) as image:
        turned = image.getexif().get(ORIENTATION, 1)
    return turned if turned in range(2, 9) else 0


def _as_rgb(path: Path, image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (
        image.mode == "I" and image.format in ("PNG", "PPM")
    ):  # grey, 16 bits
        grey = np.asarray(image).astype(np.int64)
        if 0 < grey.max() < 256:  # dropping the low byte would leave a black picture
            raise BadFile(
                path,
                f"16 bits a pixel, but the highest value is {grey.max()}; expected values up to"
                " 65535",
            )
        return Image.fromarray((grey >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise BadFile(
            path, f"32 bits a channel (mode {image.mode}); expected a picture of 8 or 16 bits"
        )
    if image.mode in ("P", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def resize_rgb(rgb: np.ndarray | Image.Image, size: tuple[int, int]) -> np.ndarray:
    """`rgb` (H, W, 3) uint8, or a picture in RGB, as (*size, 3) uint8: bicubic, aspect not kept.

    Pillow's antialiased bicubic on uint8, which is what transformers' DPTImageProcessor does
    (keep_aspect_ratio=False).
    """
    height, width = size
    image = rgb if isinstance(rgb, Image.Image) else Image.fromarray(rgb)
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC))


# ------------------------------------------------------------------------------------- point clouds


def _open_xyz(path: Path, file: BinaryIO) -> tuple[tuple[int, int], bool, np.dtype]:
    """Height and width, Fortran order, and dtype from the header of a `.npy`.

    `file` is left where the numbers start.
    """
    start = file.read(6)
    file.seek(0)
    if start[:4] == b"PK\x03\x04":
        raise BadFile(path, "is an .npz archive; expected one array in a .npy file")
    if start != np.lib.format.MAGIC_PREFIX:
        raise BadFile(path, f"starts with {start!r}; expected a .npy file")
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise BadFile(path, f".npy format {version}; expected 1.0 or 2.0")
    shape, fortran, dtype = HEADERS[version](file)
    if dtype.hasobject:
        raise BadFile(
            path,
            "holds pickled Python objects, which are never loaded; expected float32 or float64",
        )
    if len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise BadFile(path, f"shape is {shape}; expected (H, W, 3): X, Y, Z in mm")
    if dtype.kind != "f" or dtype.itemsize not in (4, 8):
        raise BadFile(path, f"dtype is {dtype}; expected float32 or float64, in mm")
    start = file.tell()
    found, wanted = (
        file.seek(0, os.SEEK_END),
        start + int(np.prod(shape, dtype=object)) * dtype.itemsize,
    )
    if found < wanted:
        raise BadFile(path, f"truncated: {found:,} bytes; expected {wanted:,} for {shape} {dtype}")
    file.seek(start)
    return shape[:2], fortran, dtype


def peek(pair: Pair) -> tuple[int, int]:
    """(H, W) of a pair from the two headers alone: cheap, and enough to turn most bad pairs away
    before any work.

    raises BadFile as `read_pair` would, for what a header tells
    """
    try:
        with open(pair.xyz, "rb") as file:
            size = _open_xyz(pair.xyz, file)[0]
    except (OSError, SyntaxError) as err:
        raise BadFile(
            pair.xyz, f"cannot be read ({err.strerror if isinstance(err, OSError) else err})"
        ) from err
    except ValueError as err:
        raise (
            err
            if isinstance(err, BadFile)
            else BadFile(pair.xyz, f"not a .npy file that can be read ({err})")
        ) from err
    try:
        with Image.open(pair.rgb) as image:
            width, height = image.size
    except Exception:  # Pillow raises half a dozen kinds; read_rgb turns each into one line
        read_rgb(pair.rgb)
        raise
    _same_size(pair, (height, width), size)
    return size


def _same_size(pair: Pair, rgb: tuple[int, int], xyz: tuple[int, int]) -> None:
    if rgb != xyz:
        raise BadFile(
            pair.rgb,
            f"rgb is {rgb[0]}x{rgb[1]}, xyz is {xyz[0]}x{xyz[1]} ({pair.xyz.name}); both must come"
            " from one capture",
        )


def read_xyz(path: Path | str, content: bytes | None = None) -> np.ndarray:
    """The point cloud as (H, W, 3) float32 mm: X, Y, Z, +Z away from the lens, NaN (or Z 0) where
    nothing was measured.

    content  the file's bytes, where they are at hand; what comes back may then be read-only
    raises BadFile: not a .npy, pickled, truncated, another shape or dtype, no valid pixel, Z
    negative, looks like metres
    """
    path = Path(path)
    try:
        with open(path, "rb") if content is None else BytesIO(content) as file:
            size, fortran, dtype = _open_xyz(path, file)
            count = size[0] * size[1] * 3
            flat = (
                np.fromfile(file, dtype, count)
                if content is None
                else np.frombuffer(content, dtype, count, file.tell())
            )
    except BadFile:
        raise
    except (OSError, ValueError, SyntaxError, MemoryError) as err:
        raise BadFile(
            path, f"not a .npy file that can be read ({getattr(err, 'strerror', None) or err})"
        ) from err
    xyz = flat.reshape((*size, 3), order="F" if fortran else "C")
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # a float64 beyond float32 becomes inf, which is not a valid pixel
        xyz = np.ascontiguousarray(xyz, np.float32)
        z = np.ascontiguousarray(xyz[:, :, 2])
        negative, count = (
            np.count_nonzero((z < 0) & (z > -np.inf)),
            np.count_nonzero((z > 0) & (z < np.inf)),
        )
        stride = max(1, min(size) // 100)
        some = z[::stride, ::stride]  # enough for a median that tells metres from millimetres
        some = some[(some > 0) & (some < np.inf)]
    if negative > count:
        raise BadFile(
            path,
            f"Z is negative in {negative:,} of {negative + count:,} measured pixels; expected +Z"
            " away from the lens",
        )
    if not count:
        raise BadFile(
            path, f"no valid pixel: Z is NaN or 0 in all of {size[0]}x{size[1]}; expected Z in mm"
        )
    if some.size and (median := float(np.median(some))) < METRES_BELOW_MM:
        raise BadFile(
            path, f"looks like metres: the median Z is {median:.4g}; expected millimetres"
        )
    return xyz


def read_label(path: Path, size: tuple[int, int], content: bytes | None = None) -> np.ndarray:
    """The groove label as (H, W) uint16: 0 no groove, else the number of the groove that is seen
    there.

    content  the file's bytes, where they are at hand
    raises BadFile: not a grey picture of 8 or 16 bits (a palette's numbers count as they are), or
    not of the capture's size
    """
    try:
        with Image.open(path if content is None else BytesIO(content), formats=["PNG"]) as image:
            if image.mode not in ("1", "L", "P", "I", "I;16"):
                raise BadFile(
                    path,
                    f"mode is {image.mode}; expected a grey PNG of 8 or 16 bits: 0 no groove, else"
                    " its number",
                )
            label = np.asarray(image)
    except BadFile:
        raise
    except Exception as err:  # Pillow raises much besides OSError
        raise BadFile(
            path, f"cannot be read as a groove label ({err}); expected a grey PNG"
        ) from err
    if label.shape != tuple(size):
        raise BadFile(
            path,
            f"is {label.shape[0]}x{label.shape[1]}; expected {size[0]}x{size[1]}, as its capture",
        )
    return label.astype(np.uint16)


def read_pair(
    pair: Pair, contents: tuple[bytes, bytes] | None = None
) -> tuple[Image.Image, np.ndarray]:
    """The picture in RGB and xyz (H, W, 3) float32 mm of one capture.

    BadFile says what is wrong with which file.

    contents  the bytes of both files, where they are at hand
    """
    contents = contents or (None, None)
    picture, xyz = open_rgb(pair.rgb, content=contents[0]), read_xyz(pair.xyz, contents[1])
    _same_size(pair, picture.size[::-1], xyz.shape[:2])
    return picture, xyz
