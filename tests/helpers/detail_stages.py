"""Detail stages of random weights, beside real adapters."""

from pathlib import Path


def write_stage(run: Path, camera: tuple[int, int], *, gain: float = 1.0, seed: int = 0) -> Path:
    """RUN/detail/best for RUN/best; its head has random weights, 0 with a gain of 0."""
    import torch

    from depthdist.models.detail import DetailRecord
    from depthdist.models.detail_network import DetailNetwork
    from depthdist.models.stage_files import adapter_sha256, save_stage

    widths = (16, 16, 16, 16)
    network = DetailNetwork(widths).begin(seed)
    generator = torch.Generator().manual_seed(seed)
    network.head.weight.data.normal_(std=gain, generator=generator)
    record = DetailRecord(adapter_sha256(run / "best"), widths, camera, step=0)
    folder = run / "detail/best"
    folder.parent.mkdir(exist_ok=True)
    save_stage("detail", network.state_dict(), record, folder)
    return folder


def refined_by_hand(run: Path, rgb, stage: Path | None = None):
    """Depth (H, W) mm of an image by the parts of the way: adapter, detail stage, millimetres."""
    import torch

    from depthdist.geometry.depth_range import denormalize_depth
    from depthdist.geometry.image_resizing import resize_rgb
    from depthdist.models.adapter import load_adapter
    from depthdist.models.detail import load_detail, refine_by_detail

    model, record = load_adapter(run / "best")
    detail = load_detail(stage or run / "detail/best", run / "best")
    with torch.no_grad():
        pred = model(torch.from_numpy(resize_rgb(rgb, record.size))[None])[0]
    target = refine_by_detail(detail, pred, torch.from_numpy(rgb), record.bounds)
    return denormalize_depth(target, record.bounds).numpy()
