"""Depth in mm with fine detail, by the two networks in this folder: a coarse one and its detail.

python detail.py IMAGE ...         # writes IMAGE_depth.npy: (H, W) float32, mm

from detail import DetailedDepth   # the same from Python
depth_mm = DetailedDepth("this/folder")(PIL.Image.open("image.png"))
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from safetensors.torch import load_file
from transformers import AutoModelForDepthEstimation

from depthdist.models.detail_network import DetailNetwork


class DetailedDepth:
    """The networks of a folder: an image -> depth (H, W) float32, mm."""

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        self.record = json.loads((folder / "depthdist.json").read_bytes())
        stage = json.loads((folder / "detail.json").read_bytes())
        weights = (folder / "model.safetensors").read_bytes()
        if hashlib.sha256(weights).hexdigest() != stage["adapter"]:
            raise ValueError(f"{folder}: detail.safetensors belongs to another model.safetensors")
        self.coarse = AutoModelForDepthEstimation.from_pretrained(folder).eval()
        self.detail = DetailNetwork(stage["widths"]).eval()
        self.detail.load_state_dict(load_file(folder / "detail.safetensors"))

    @torch.no_grad()
    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return the depth of an image of any size; best of that in detail.json's `camera`."""
        record = self.record
        image = ImageOps.exif_transpose(image).convert("RGB")
        small = image.resize((record["width"], record["height"]), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(small)) / 255  # (h, w, 3)
        pixels = (pixels - torch.tensor(record["mean"])) / torch.tensor(record["std"])
        d = self.coarse(pixel_values=pixels.permute(2, 0, 1)[None]).predicted_depth[None]
        size = image.height, image.width
        d = F.interpolate(d, size, mode="bicubic", align_corners=False)[0].clamp(min=0)
        near, far = record["near_mm"], record["far_mm"]
        if record["target"] == "linear":
            z = far - d * (far - near)
        else:
            z = 1 / (1 / far + d * (1 / near - 1 / far))
        log_z = self.detail(torch.from_numpy(np.array(image))[None], z.clamp(min=1).log())
        return log_z[0].exp().clamp(1, far).numpy()


if __name__ == "__main__":
    predict = DetailedDepth(Path(__file__).parent)
    for name in sys.argv[1:]:
        depth_mm = predict(Image.open(name))
        out = Path(name).with_name(Path(name).stem + "_depth.npy")
        np.save(out, depth_mm)
        print(f"{out}: {depth_mm.min():.1f} .. {depth_mm.max():.1f} mm")
