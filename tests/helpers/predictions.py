"""What depthdist predict writes, and what it should write."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image


def predict_by_formula(model, rgb):
    """Return (H, W) mm by the formulas of the recipe, from the bare network."""
    network, record = model
    small = np.asarray(
        Image.fromarray(rgb).resize((record.width, record.height), Image.Resampling.BICUBIC),
        np.float64,
    )
    pixels = (small / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.no_grad():
        found = network.net(
            pixel_values=torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
        ).predicted_depth
        found = (
            F.interpolate(found[None], size=rgb.shape[:2], mode="bicubic", align_corners=False)[
                0, 0
            ]
            .double()
            .numpy()
        )
    low, high = 1 / record.far_mm, 1 / record.near_mm
    return 1 / (low + np.clip(found, 0, None) * (high - low))


def result_names(folder):
    return sorted(p.name for p in folder.iterdir() if p.name != "done.jsonl")
