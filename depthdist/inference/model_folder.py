"""The folder that `--run` names, and what kind of model is in it; without loading the model."""

from __future__ import annotations

import re
from pathlib import Path

from depthdist.core.settings import expand_user

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def find_local_folder(name: str) -> Path | None:
    """Return the folder that `name` is, None if it is a hub id; ValueError if it is neither."""
    path = expand_user(name)
    if path.is_dir():
        return path
    if path.exists() or not HUB_ID.fullmatch(name):
        raise ValueError(
            f"--run {name}: no such folder, and not a hub id (owner/name): expected a run, an"
            " adapter's folder or a hub id"
        )
    return None


def find_model_folder(name: str) -> Path:
    """Return the folder that `name` is, or the local copy of the hub's repository of that id.

    ValueError if it is neither, or if the hub cannot be reached.
    """
    folder = find_local_folder(name)
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as err:  # the hub's client raises a dozen types
        raise ValueError(
            f"--run {name}: no such folder, and the hub has no such model or cannot be reached"
            f" ({str(err).splitlines()[0][:160]})"
        ) from err
