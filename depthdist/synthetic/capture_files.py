"""Write rendered captures: arrays as file contents, the record of a folder's settings, workers."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from depthdist.core.environment import count_workers, open_pool, start_worker
from depthdist.core.files import parse_json
from depthdist.synthetic.raytracing.kernel_cache import use_fresh_kernels


def png_bytes(image: np.ndarray) -> bytes:
    """Return `image`, (H, W, 3) uint8 or (H, W) uint16, as a fast-compressed PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def npy_bytes(array: np.ndarray) -> bytes:
    """Return `array` as the content of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    """Return `arrays` as the content of an .npz file; unlike NumPy's, it contains no time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            archive.writestr(info, npy_bytes(array), zipfile.ZIP_DEFLATED, 1)
    return buffer.getvalue()


def read_folder_settings(record: Path, *keys: str) -> dict[str, Any] | None:
    """Return the settings in the JSON file `record`, under `keys`; None where its folder is empty.

    Raise ValueError where the folder holds something else.
    """
    folder = record.parent
    if not record.exists():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(
                f"{folder} holds other files and no {record.name}; give a new or empty folder"
            )
        return None
    try:
        content = parse_json(record.read_bytes())
        for key in keys:
            content = content[key]
        return dict(content)
    except (KeyError, TypeError, ValueError) as err:
        raise ValueError(
            f"{record}: not written by this command ({err}); give a new or empty folder"
        ) from None


def render_all(render: Callable[[int], None], indices: list[int], workers: int, unit: str) -> None:
    """Call `render` for each of `indices` and show the progress.

    workers  number of processes, 0: one for each CPU core
    """
    from tqdm import tqdm  # not needed for --help

    done = _rendered(render, indices, count_workers(workers, len(indices)))
    for _ in tqdm(done, total=len(indices), unit=unit, disable=not indices):
        pass


def _rendered(render: Callable[[int], None], indices: list[int], workers: int) -> Iterator[None]:
    """Call `render` for each of `indices` in `workers` processes; yield as each is done."""
    if workers == 1:
        for index in indices:
            render(index)
            yield
        return
    use_fresh_kernels()  # before the workers, which would remove each other's
    with open_pool(workers, start_worker) as pool:
        jobs = [pool.submit(render, index) for index in indices]
        try:
            for job in as_completed(jobs):
                yield job.result()
        finally:
            pool.shutdown(cancel_futures=True)
