"""Point clouds of a validation capture for TensorBoard: ground truth, and prediction beside it.

    cloud = CaptureCloud.of(depth_mm, mask, rgb, meta)  # which points, where from, what color
    cloud.vertices(depth_mm)                            # (N, 3), the ground truth
    cloud.beside(depth_mm, pred_mm, "validation 000")   # both, for TensorBoard's mesh tab

The points are always those of the same pixels, in a frame that follows from the ground truth alone,
so the clouds of all evaluations lie one over the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary

from depthdist.geometry.camera import pinhole_from_fov, pixel_rays, points_from_depth
from depthdist.runs.tensorboard_plugins import point_cloud

MAX_POINTS = 20_000
DEFAULT_FOV = 55.0  # degrees from left to right, where the camera is not known
VIEW_FOV = 40.0  # of the viewer; a small angle, for little perspective
VIEW_TURN = (18.0, 14.0)  # degrees that the viewer stands to the right of the camera, and above it
VIEW_DISTANCE = 3.0  # from the nearer points of both clouds, times the extent of one
GAP = 1.1  # between the middles of both clouds, times the extent of one
TITLE = "ground truth (left), prediction (right)"
Array = np.ndarray


@dataclass(frozen=True)
class CaptureCloud:
    """The points of a capture that are shown.

    pixels     (N,) numbers of the pixels, row by row
    rays       (N, 2) X / Z and Y / Z of each
    colors     (N, 3) uint8
    center_mm  (3,) point of the camera's frame that becomes the origin, amid the ground truth
    extent_mm  the ground truth's longer side, across the view
    front_mm   how far its nearer points lie before the origin
    unit_mm    mm that become 1
    is_camera_known  whether the rays are the capture's own, not those of DEFAULT_FOV
    """

    pixels: Array
    rays: Array
    colors: Array
    center_mm: Array
    extent_mm: float
    front_mm: float
    unit_mm: float
    is_camera_known: bool

    @classmethod
    def of(
        cls, depth_mm: Array, mask: Array, rgb: Array, meta: dict[str, Any]
    ) -> CaptureCloud | None:
        """Return the cloud of a capture, None where nothing was measured.

        depth_mm  (H, W) mm;  mask  (H, W) bool;  rgb  (h, w, 3) uint8;  meta  its meta.json
        """
        valid = np.flatnonzero(mask)
        if not len(valid):
            return None
        if len(valid) > MAX_POINTS:
            chosen = np.random.default_rng(0).choice(len(valid), MAX_POINTS, replace=False)
            valid = valid[np.sort(chosen)]
        rays = pixel_rays(meta, mask.shape)
        is_camera_known = rays is not None
        if rays is None:
            rays = pixel_rays(pinhole_from_fov(mask.shape, DEFAULT_FOV), mask.shape)
            assert rays is not None
        rays = rays.reshape(-1, 2)[valid]
        xyz = points_from_depth(depth_mm.reshape(-1)[valid].astype(np.float64), rays)
        low, near, center, high = np.percentile(xyz, [1, 10, 50, 99], axis=0)
        extent_mm = max(float((high - low)[:2].max()), 1.0)
        rows, columns = np.divmod(valid, mask.shape[1])
        scale = np.array(rgb.shape[:2]) / mask.shape
        colors = rgb[
            ((rows + 0.5) * scale[0]).astype(int), ((columns + 0.5) * scale[1]).astype(int)
        ]
        return cls(
            pixels=valid,
            rays=rays,
            colors=colors,
            center_mm=center,
            extent_mm=extent_mm,
            front_mm=float(center[2] - near[2]),
            unit_mm=10.0 ** round(np.log10(extent_mm)),
            is_camera_known=is_camera_known,
        )

    def vertices(self, depth_mm: Array) -> Array:
        """Return (N, 3) float32 of a depth map (H, W) mm: X right, Y up, Z towards the viewer."""
        xyz = points_from_depth(depth_mm.reshape(-1)[self.pixels].astype(np.float64), self.rays)
        return ((xyz - self.center_mm) / self.unit_mm * [1, -1, -1]).astype(np.float32)

    def beside(self, depth_mm: Array, pred_mm: Array, name: str) -> Summary:
        """Return TensorBoard's summary of ground truth (H, W) mm and, to its right, prediction.

        One cloud holds both, as the tab gives a cloud no title and turns each for itself; of a tag
        it shows what stands before "/".
        """
        apart = np.array([GAP * self.extent_mm / self.unit_mm / 2, 0, 0], np.float32)
        vertices = [self.vertices(depth_mm) - apart, self.vertices(pred_mm) + apart]
        return point_cloud(
            f"{TITLE}/{name}",
            np.concatenate(vertices),
            np.concatenate([self.colors, self.colors]),
            self.view(),
            self.describe(name),
        )

    def view(self) -> dict[str, Any]:
        """Return three.js's camera and material: both clouds, from beside the camera."""
        extent = self.extent_mm / self.unit_mm
        distance = VIEW_DISTANCE * extent + self.front_mm / self.unit_mm
        turn, lift = np.radians(VIEW_TURN)
        toward = [np.sin(turn) * np.cos(lift), np.sin(lift), np.cos(turn) * np.cos(lift)]
        camera = {
            "cls": "PerspectiveCamera",
            "fov": VIEW_FOV,
            "near": extent / 100,
            "far": extent * 100,
            "position": [float(distance * part) for part in toward],
            "lookAt": [0, 0, 0],
        }
        material = {"cls": "PointsMaterial", "size": extent / 40}
        return {"camera": camera, "material": material}

    def describe(self, stem: str) -> str:
        """Return what the cloud shows, as a sentence below it."""
        camera = (
            ""
            if self.is_camera_known
            else (
                f"; its camera is not known, so the rays are those of a pinhole that sees"
                f" {DEFAULT_FOV:g} degrees from left to right"
            )
        )
        return (
            f"{stem}: {len(self.pixels):,} pixels, the same in ground truth and prediction; 1 unit"
            f" is {self.unit_mm:g} mm{camera}"
        )
