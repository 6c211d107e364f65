"""TensorBoard's other tabs: settings beside scores, point clouds, and an overview of curves.

    curves = EventFile(run / "tensorboard", first_step=0)
    curves.add(session_start("runs/mine", {"lr": 5e-5, "lora": "qkv"}, BEST), step=0)
    curves.add(overview({"Overview": {"loss": ["train/loss", "eval/loss"]}}))
    curves.add(point_cloud("validation/truth", vertices, colors, view, "1 unit is 1 m"), step=6)
    curves.add(session_end(), step=90)

They are summaries for the same file as the curves. torch's `add_hparams` would open a second run of
TensorBoard's, and the functions of tensorboard.plugins would load TensorFlow where it is installed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from torch.utils.tensorboard.summary import custom_scalars, hparams, mesh


class Score(NamedTuple):
    """A curve whose last point is a column of the hparams tab."""

    tag: str
    title: str


def session_start(
    name: str, settings: Mapping[str, bool | float | str], scores: Sequence[Score], began: float
) -> Summary:
    """Return what gives a run its row in the hparams tab.

    name      of the row; runs of one name become one row
    settings  the row's columns; a setting has one type in all runs
    scores    columns that show the last point of a curve
    began     seconds since 1970

    TensorBoard shows the first one that stands in a run's files, and ignores later ones.
    """
    started = plugin_data_pb2.SessionStartInfo(group_name=name, start_time_secs=began)
    columns = []
    for setting, value in settings.items():
        kind, field = _kind_of(value)
        setattr(started.hparams[setting], field, value)
        columns.append(api_pb2.HParamInfo(name=setting, type=kind))
    metrics = [
        api_pb2.MetricInfo(name=api_pb2.MetricName(tag=score.tag), display_name=score.title)
        for score in scores
    ]
    experiment = api_pb2.Experiment(hparam_infos=columns, metric_infos=metrics)
    return Summary(
        value=[
            _hparams_value(metadata.EXPERIMENT_TAG, experiment=experiment),
            _hparams_value(metadata.SESSION_START_INFO_TAG, session_start_info=started),
        ]
    )


def session_end() -> Summary:
    """Return what marks a run as finished in the hparams tab."""
    _, _, ended = hparams({}, {})
    return ended


def _kind_of(value: bool | float | str) -> tuple[Any, str]:
    """Return a setting's type in the hparams tab, and the field that holds its value."""
    if isinstance(value, bool):
        return api_pb2.DATA_TYPE_BOOL, "bool_value"
    if isinstance(value, (int, float)):
        return api_pb2.DATA_TYPE_FLOAT64, "number_value"
    return api_pb2.DATA_TYPE_STRING, "string_value"


def _hparams_value(tag: str, **content: Any) -> Summary.Value:
    about = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**content))
    return Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)


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
