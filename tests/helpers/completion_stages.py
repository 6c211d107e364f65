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


def learn(network, inputs, log_pred, depth_mm, hole, steps: int) -> None:
    """Train a network on one batch, `inputs` its channels and guesses."""
    import torch

    from depthdist.losses.completion import CompletionWeights, completion_losses
    from depthdist.models.completion_maps import UNIT

    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(steps):
        losses = completion_losses(
            CompletionWeights(), *network(*inputs), log_pred, depth_mm, hole, UNIT
        )
        optimizer.zero_grad()
        losses["loss"].mean().backward()
        optimizer.step()
