"""Completion stages of random weights, beside real adapters."""

from pathlib import Path


def write_completion(run: Path, camera: tuple[int, int], *, gain: float = 1.0) -> Path:
    """RUN/completion/best for RUN/best; its head has random weights, 0 with a gain of 0."""
    import torch

    from depthdist.models.completion import CompletionRecord
    from depthdist.models.completion_network import CompletionNetwork
    from depthdist.models.stage_files import adapter_sha256, save_stage

    widths = (16, 16)
    network = CompletionNetwork(widths).begin(0)
    generator = torch.Generator().manual_seed(0)
    network.head.weight.data.normal_(std=gain, generator=generator)
    record = CompletionRecord(
        adapter_sha256(run / "best"), widths, camera, 7, filled_sigma=1.5, predicted_sigma=2.0
    )
    folder = run / "completion/best"
    folder.parent.mkdir(exist_ok=True)
    save_stage("completion", network.state_dict(), record, folder)
    return folder
