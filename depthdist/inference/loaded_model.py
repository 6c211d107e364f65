"""A trained model in Python: images in, depth in millimetres out.

model = load("runs/mine")
result = model.predict("a.png")
results = model.predict(["a.png", pil_image, array], batch=4)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np
from PIL import Image, ImageOps

from depthdist.captures.capture_file import CaptureArrays, flat_numbers, read_capture
from depthdist.captures.formats.registry import BY_SUFFIX
from depthdist.captures.layouts import find_captures, is_image
from depthdist.captures.read_options import camera_problems
from depthdist.captures.readers import METRES_BELOW_MM
from depthdist.core.environment import pick_device, quiet_libraries
from depthdist.core.errors import BadFile, naming_arguments, one_line
from depthdist.core.settings import Size, did_you_mean
from depthdist.geometry.measured import is_measured
from depthdist.inference import image_sources
from depthdist.inference.depth_result import DepthResult
from depthdist.inference.image_sources import InputImage, find_rays, to_fill
from depthdist.inference.model_folder import find_local_folder, find_model_folder
from depthdist.inference.settings import ExternalAdapterSettings
from depthdist.models.settings import REFINEMENTS, Refinement

if TYPE_CHECKING:
    import torch

    from depthdist.inference.predictor import Depth, Predictor

ImageLike = str | Path | Image.Image | np.ndarray | CaptureArrays
Intrinsics = Sequence[float]  # fx, fy, cx, cy
EXPECTED = "a path, a PIL image, a uint8 array (H, W, 3) or (H, W), or a capture of read_capture()"
WIDE_MODES = ("I", "F")  # of Pillow: more than 8 bits a channel


def load(
    run: str | Path,
    *,
    device: torch.device | str | None = None,
    refine: Refinement | None = None,
    flip: bool = False,
    intrinsics: Intrinsics | None = None,
    fov: float | None = None,
    near_mm: float | None = None,
    far_mm: float | None = None,
    size: tuple[int, int] | None = None,
    target: Literal["inverse", "linear"] = "inverse",
    base: str | None = None,
) -> LoadedModel:
    """Load a trained model, ready to predict.

    run         folder of a run, of an adapter (a run's best/, or one that plain peft saved), of an
                exported model, or a hub id
    device      of torch; by default the GPU where there is one
    refine      detail from the image at its full size: "detail" (the run's detail stage),
                "guided", "tiles" or "plain" (none); by default "detail" where the run has it,
                else "plain"
    flip        average with the prediction of the mirrored image: takes twice the time
    intrinsics  fx, fy, cx, cy of the images' camera in pixels, for points: column + 0.5 =
                fx X / Z + cx; `predict` may have others
    fov         the same by the horizontal field of view, degrees

    Only for models without a depthdist.json, which records all that:

    near_mm, far_mm  depth range of its normalization, mm
    size             (height, width) of its training images, multiples of 14
    target           what it learned: normalized 1 / depth ("inverse"), or depth ("linear")

    base        where the base model is now, if not where it was in training

    ValueError says what is missing or wrong, in one line a problem.
    """
    given = {"size": Size(*size)} if size else {}
    external = ExternalAdapterSettings(near_mm, far_mm, target=target, base=base, **given)
    camera = Camera.given(intrinsics, fov)
    with naming_arguments():
        problems = [*external.problems(), *camera_problems(*camera)]
        for name, value, known in (
            ("refine", refine, REFINEMENTS),
            ("target", target, ("inverse", "linear")),
        ):
            if value is not None and value not in known:
                hint = did_you_mean(str(value), known)
                problems.append(f"{name} is {value!r}: expected {', '.join(known)}{hint}")
        if problems:
            raise ValueError("\n".join(problems))
        find_local_folder(str(run))  # raises the error, before the libraries are imported
        with quiet_libraries():
            from depthdist.inference.external_model import load_model
            from depthdist.inference.predictor import Predictor
            from depthdist.models.completion import load_completion
            from depthdist.models.refiner import load_refiner

            chosen = pick_device() if device is None else check_device(device)
            refiner = load_refiner(refine, find_model_folder(str(run)))
            completion = load_completion(find_model_folder(str(run)))
            model, record = load_model(str(run), external)
            predictor = Predictor(model, record, chosen, refiner, flip, completion)
    return LoadedModel(str(run), predictor, camera)


def check_device(device: torch.device | str) -> torch.device:
    """Return a device by its name; ValueError where nothing can be computed on it here."""
    import torch

    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as err:  # the second where torch has no CUDA
        raise ValueError(f"device is {device}: cannot be used here ({one_line(err)})") from err


class Camera(NamedTuple):
    """The camera of images without points of their own; empty and None where nothing says it."""

    intrinsics: tuple[float, ...] = ()
    fov: float | None = None

    @classmethod
    def given(cls, intrinsics: Intrinsics | None, fov: float | None) -> Camera:
        """Return the camera that arguments say; an array is as good as a tuple."""
        return cls(flat_numbers(intrinsics), fov)


class LoadedModel:
    """A trained model on its device; `load` makes it.

    run        what `load` was given
    record     what training recorded: near_mm, far_mm, size, step, epoch ...
    device     where it computes
    refine     how it refines: what `load` was given, or chose
    has_completion  whether a completion stage fills, and says how sure a depth is

    Several threads may predict with one model at a time.
    """

    def __init__(self, run: str, predictor: Predictor, camera: Camera):
        self.run = run
        self.record = predictor.record
        self.device = predictor.device
        self.refine = predictor.refiner.refinement
        self.has_completion = predictor.completion is not None
        self._predictor = predictor
        self._camera = camera

    def __repr__(self) -> str:
        range_text = f"{self.record.near_mm:.0f} .. {self.record.far_mm:.0f} mm"
        return f"LoadedModel({self.run!r}, {range_text}, on {self.device})"

    @overload
    def predict(
        self,
        image: list[Any] | tuple[Any, ...],
        *,
        batch: int = 1,
        sigma: bool = False,
        refuse: float | None = None,
        intrinsics: Intrinsics | None = None,
        fov: float | None = None,
    ) -> list[DepthResult]: ...

    @overload
    def predict(
        self,
        image: ImageLike,
        *,
        batch: int = 1,
        sigma: bool = False,
        refuse: float | None = None,
        intrinsics: Intrinsics | None = None,
        fov: float | None = None,
    ) -> DepthResult: ...

    def predict(
        self,
        image: ImageLike | list[Any] | tuple[Any, ...],
        *,
        batch: int = 1,
        sigma: bool = False,
        refuse: float | None = None,
        intrinsics: Intrinsics | None = None,
        fov: float | None = None,
    ) -> DepthResult | list[DepthResult]:
        """Return the depth of an image; of a list of images, a list in its order.

        image       a path, a PIL image, an array (H, W, 3) or (H, W) uint8, or a capture of
                    `read_capture`. Paths and PIL images are brought upright as their EXIF
                    orientation says
        batch       images that the network gets at a time; they may differ in size
        sigma       say how sure each pixel is, `result.sigma_mm`; needs a run with a completion
                    stage
        refuse      leave out what is less sure than so many mm: NaN in `result.depth_mm`; needs the
                    same
        intrinsics  fx, fy, cx, cy of the camera in pixels of the image, for points
        fov         the same by the horizontal field of view, degrees

        Where points lie beside an image (or in a capture), their rays are used, not those of
        `intrinsics` and `fov`, and their depth is `truth_mm`. Points that do not fit give a
        warning, and so does an image of another aspect than those of training, or of another
        width than those of its detail stage.

        ValueError: not an image, another shape or type, a file that cannot be read.
        """
        with naming_arguments():
            problems = []
            if not isinstance(batch, Integral) or batch < 1:
                problems.append(f"batch is {batch!r}: expected a whole number >= 1")
            problems += self._sigma_problems(sigma, refuse)
            camera = self._camera_of(intrinsics, fov, problems)
        images: Sequence[Any] = image if isinstance(image, (list, tuple)) else [image]
        results = []
        for start in range(0, len(images), batch):
            some = images[start : start + batch]
            inputs = [to_input_image(one) for one in some]
            depths = self._predictor(inputs, sigma, refuse)
            for given, source, depth in zip(inputs, some, depths):
                self._warn(given)
                results.append(self._result(given, source, depth, camera))
        return results if isinstance(image, (list, tuple)) else results[0]

    def fill(
        self,
        image: ImageLike,
        points_mm: np.ndarray | None = None,
        *,
        denoise: bool = False,
        refuse: float | None = None,
        intrinsics: Intrinsics | None = None,
        fov: float | None = None,
    ) -> DepthResult:
        """Return what was measured of an image, as it is, with depth in its holes.

        image            as in `predict`
        points_mm        what was measured: (H, W, 3) X, Y, Z or depth (H, W) in mm, NaN or 0 where
                         nothing was; by default the points beside the image, or in the capture
        denoise          measured pixels that stand alone in space (flying pixels) are filled too
        refuse           as in `predict`, for holes: NaN where they stay
        intrinsics, fov  as in `predict`, for points where `points_mm` is depth alone

        `result.truth_mm` is what was measured, `result.measured` where. The run's completion stage
        fills the holes, and says how sure it is: `result.sigma_mm`, 0 where measured. Without one a
        hole gets the prediction, moved to what was measured around it. There is no step at a rim.

        ValueError: as in `predict`; nothing beside the image; `points_mm` of another shape.
        """
        with naming_arguments():
            camera = self._camera_of(intrinsics, fov, self._sigma_problems(False, refuse))
        given = to_input_image(image)
        origin = Path(image).expanduser() if isinstance(image, (str, Path)) else Path("the image")
        if points_mm is not None:
            given = with_points(given, points_mm)
        given = to_fill(given, origin, denoise)
        (depth,) = self._predictor([given], refuse_mm=refuse)
        self._warn(given)
        return self._result(given, image, depth, camera)

    def _sigma_problems(self, sigma: bool, refuse: float | None) -> list[str]:
        """Return what is wrong with the arguments that say how sure a depth is to be."""
        found = []
        if refuse is not None and not (isinstance(refuse, Real) and 0 < refuse < math.inf):
            found.append(f"refuse is {refuse!r}: expected more than 0 mm")
        if (sigma or refuse is not None) and self._predictor.completion is None:
            name = "sigma" if sigma else "refuse"
            found.append(
                f"{name}: {self.run} has no completion stage, which says how sure a depth is;"
                " `depthdist completion RUN` trains it"
            )
        return found

    def _camera_of(
        self, intrinsics: Intrinsics | None, fov: float | None, problems: list[str]
    ) -> Camera:
        """Return the given camera, else that of `load`; ValueError names it and other problems."""
        camera = Camera.given(intrinsics, fov)
        problems = [*camera_problems(*camera), *problems]
        if problems:
            raise ValueError("\n".join(problems))
        return self._camera if camera == Camera() else camera

    def _warn(self, given: InputImage) -> None:
        remarks = self._predictor.remarks(given).values()
        for text in (given.note, *(f"the image {remark}" for remark in remarks)):
            if text:
                warnings.warn(text, stacklevel=3)

    def _result(
        self, given: InputImage, source: ImageLike, depth: Depth, camera: Camera
    ) -> DepthResult:
        return DepthResult(
            depth.depth_mm,
            given.rgb,
            find_rays(given, *camera),
            given.truth_mm,
            self.record.bounds,
            Path(source).expanduser() if isinstance(source, (str, Path)) else None,
            depth.sigma_mm,
        )


def with_points(image: InputImage, points_mm: np.ndarray) -> InputImage:
    """Return the image with other points (H, W, 3), or depth (H, W), in mm, as measured."""
    points = np.asarray(points_mm)
    expected = f"{image.size} or {(*image.size, 3)}, the image's"
    if points.dtype.kind not in "fiu" or points.shape not in (image.size, (*image.size, 3)):
        raise ValueError(
            f"points_mm is {points.dtype} of shape {points.shape}; expected numbers of shape"
            f" {expected}"
        )
    points = points.astype(np.float32)
    depth_mm = points if points.ndim == 2 else points[..., 2]
    measured = depth_mm[is_measured(depth_mm)]
    if not len(measured):
        raise ValueError("points_mm holds no measured pixel; expected depth in mm, above 0")
    if (median := float(np.median(measured))) < METRES_BELOW_MM:
        raise ValueError(f"points_mm looks like metres: the median is {median:.4g}; expected mm")
    if points.ndim == 3:
        return image_sources.to_input_image(image.rgb, points)
    return InputImage(image.rgb, image.size, points)


def to_input_image(image: ImageLike) -> InputImage:
    """Return what the predictor takes; ValueError says what was found and what is expected."""
    if isinstance(image, (str, Path)):
        path = Path(image).expanduser()
        if path.is_dir():
            raise BadFile(path, "is a folder; expected an image, or a list of images")
        if is_image(path) or path.suffix.lower() not in BY_SUFFIX or not path.exists():
            return image_sources.read_capture(path, find_captures([path]).get(path))
        image = read_capture(path)  # a camera's file that holds both
    if isinstance(image, CaptureArrays):
        return image_sources.to_input_image(image.rgb, image.points_mm)
    if isinstance(image, Image.Image):
        if image.mode.partition(";")[0] in WIDE_MODES:
            raise ValueError(
                f"the image's mode is {image.mode}, more than 8 bits a channel; expected 8 bits, or"
                " the path of its file"
            )
        image = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    if not isinstance(image, np.ndarray):
        raise ValueError(f"image is of type {type(image).__name__}; expected {EXPECTED}")
    is_rgb = image.ndim == 3 and image.shape[2] == 3
    if image.dtype != np.uint8 or not (is_rgb or image.ndim == 2) or 0 in image.shape:
        raise ValueError(f"the image is {image.dtype} of shape {image.shape}; expected {EXPECTED}")
    rgb = image if is_rgb else np.repeat(image[..., None], 3, axis=2)
    return InputImage(np.array(rgb, order="C"), (rgb.shape[0], rgb.shape[1]))
