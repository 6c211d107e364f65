"""TensorBoard's other tabs: settings beside scores, point clouds, and an overview of curves.

    curves = EventFile(run / "tensorboard", first_step=0)
    curves.add(session_start("runs/mine", {"lr": 5e-5, "lora": "qkv"}, time.time()), step=0)
    curves.add(overview({"Overview": {"loss": ["train/loss", "eval/loss"]}}))
    curves.add(point_cloud("clouds/first", vertices, colors, view, "1 unit is 1 m"), step=6)
    curves.add(session_end(), step=90)

They are summaries for the same file as the curves. torch's `add_hparams` would open a second run of
TensorBoard's, and the functions of tensorboard.plugins would load TensorFlow where it is installed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata, plugin_data_pb2
from torch.utils.tensorboard.summary import custom_scalars, hparams, mesh


def session_start(name: str, settings: Mapping[str, bool | float | str], began: float) -> Summary:
    """Return what gives a run its row in the hparams tab.

    name      of the row; runs of one name become one row
    settings  the row's columns, those that differ between runs first; a setting has one type in
              all runs
    began     seconds since 1970

    The columns of scores are the last points of the run's curves, in the order of the alphabet.
    TensorBoard takes the first such summary in a run's files, and ignores later ones.
    """
    started = plugin_data_pb2.SessionStartInfo(group_name=name, start_time_secs=began)
    for setting, value in settings.items():
        if isinstance(value, bool):
            started.hparams[setting].bool_value = value
        elif isinstance(value, str):
            started.hparams[setting].string_value = value
        else:
            started.hparams[setting].number_value = value
    content = plugin_data_pb2.HParamsPluginData(session_start_info=started)
    about = metadata.create_summary_metadata(content)
    tag = metadata.SESSION_START_INFO_TAG
    return Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)])


def session_end() -> Summary:
    """Return what marks a run as finished in the hparams tab."""
    _, _, ended = hparams({}, {})
    return ended


def overview(charts: Mapping[str, Mapping[str, Sequence[str]]]) -> Summary:
    """Return the layout of the custom scalars tab.

    charts  by group and title, the tags of the curves in a chart; one that ends in "*" stands for
            all that begin so
    """
    layout = {}
    for group, of_group in charts.items():
        layout[group] = {
            title: ("Multiline", [_pattern(tag) for tag in tags])
            for title, tags in of_group.items()
        }
    return custom_scalars(layout)


def _pattern(tag: str) -> str:
    """Return the regular expression that a chart finds its curves by."""
    return f"^{re.escape(tag[:-1])}" if tag.endswith("*") else f"^{re.escape(tag)}$"


def point_cloud(
    tag: str, vertices: np.ndarray, colors: np.ndarray, config: dict[str, Any], description: str
) -> Summary:
    """Return points for the mesh tab.

    vertices  (N, 3) float32, X to the right, Y up, Z towards the viewer;  colors  (N, 3) uint8
    config    camera and material, as three.js has them
    """
    return mesh(tag, vertices[None], colors[None], None, config, description=description)
