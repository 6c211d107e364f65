"""What TensorBoard's own code reads from runs for its tabs."""

from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams.api_pb2 import ListSessionGroupsRequest, Status
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler


def board(run: Path) -> EventAccumulator:
    """Everything in a run's event files."""
    everything = {"images": 0, "scalars": 0, "tensors": 0}
    return EventAccumulator(str(run / "tensorboard"), size_guidance=everything).Reload()


def hparams_rows(runs: Path) -> list[dict[str, Any]]:
    """The rows of the hparams tab: name, status, settings, scores with their steps."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(runs)).Reload()
    tb = TBContext(
        data_provider=MultiplexerDataProvider(multiplexer, str(runs)), multiplexer=multiplexer
    )
    context, request = Context(tb), RequestContext()
    experiment = context.experiment_from_metadata(
        request, "", True, context.hparams_metadata(request, ""), []
    )
    wanted = ListSessionGroupsRequest(
        start_index=0, slice_size=100, allowed_statuses=range(4), include_metrics=True
    )
    wanted.col_params.extend(
        ListSessionGroupsRequest().col_params.add(metric=info.name)
        for info in experiment.metric_infos
    )
    rows = []
    for group in Handler(request, context, "", wanted).run().session_groups:
        (session,) = group.sessions
        rows.append(
            {
                "name": group.name,
                "status": Status.Name(session.status),
                "settings": {name: _plain(value) for name, value in group.hparams.items()},
                "scores": {
                    score.name.tag: (score.training_step, score.value)
                    for score in group.metric_values
                },
            }
        )
    return rows


def _plain(value: Any) -> Any:
    return getattr(value, value.WhichOneof("kind"))
