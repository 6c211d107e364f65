"""The whole way once, on built-in captures: render, shard, train, add detail, evaluate, predict.

  depthdist demo

Writes data/tires_raw, data/tires, data/tires_held_out and RUN, here. Finished steps are not
repeated: the same command continues after a stop. Without a GPU there are fewer captures, and the
network sees them smaller; that takes ten minutes on two cores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from depthdist.commands.subcommands import flags, run_python, run_shown
from depthdist.core.command_line import parse
from depthdist.core.environment import count_workers
from depthdist.core.settings import Size, range_problems
from depthdist.runs.run_folder import RUN_FILE, open_run
from depthdist.synthetic.tires.plan import NATIVE_SIZE
from depthdist.training.detail.settings import MULTIPLE, DetailSettings

RAW = Path("data/tires_raw")
DATA = Path("data/tires")
HELD_OUT = Path("data/tires_held_out")  # of another seed: other crates, tires and poses
FAR_MM = 3950  # nothing in the crate is farther: no pixel there is a stray


@dataclass(frozen=True)
class DemoSettings:
    """Demo."""

    run: Path = Path("runs/demo")
    "Folder of the run."
    model: str | None = None
    """Base model, as `depthdist train` takes it. Default: the one that RUN began with, else Depth
    Anything V2 Small where the model hub can be reached, else built-in."""
    pairs: int | None = None
    "Number of captures. Default: 58, without a GPU 30."
    capture: Size = NATIVE_SIZE
    "Height and width of the captures."
    size: Size | None = None
    """Height and width of the images that the network sees. Default: 756x1260; of built-in
    294x476; without a GPU 154x252."""
    epochs: int | None = None
    "Times that every training capture is seen. Default: 15; built-in 10; without a GPU 8."
    detail_steps: int | None = None
    "Optimizer steps of the detail stage. Default: 6000; without a GPU 1000."

    def problems(self) -> list[str]:
        """Return what is wrong with the values that no step says before work begins."""
        return range_problems(
            self,
            ("pairs", self.pairs is None or self.pairs >= 1, ">= 1"),
            ("epochs", self.epochs is None or self.epochs >= 1, ">= 1"),
            ("detail_steps", self.detail_steps is None or self.detail_steps >= 1, ">= 1"),
        )


class Recipe(NamedTuple):
    """What a model is trained with on this machine.

    gpus  processes; None for one a GPU
    """

    pairs: int
    size: Size
    epochs: int
    lr: float
    detail_steps: int
    held_out: int
    gpus: int | None


def main(argv: list[str] | None = None) -> None:
    """Do every step that is not done yet, and print where to look."""
    (settings,) = parse((__doc__ or "").strip(), DemoSettings, argv=argv)
    from depthdist.core.environment import pick_device
    from depthdist.models.detail import DETAIL_FILE, DETAIL_FOLDER
    from depthdist.models.hub import default_reachable_model

    run = settings.run
    model = settings.model or begun_with(run) or default_reachable_model()
    on_gpu = pick_device().type == "cuda"
    recipe = choose_recipe(model, on_gpu)
    pairs, size = settings.pairs or recipe.pairs, settings.size or recipe.size
    epochs = settings.epochs or recipe.epochs
    device = "on a GPU" if on_gpu else "without a GPU, so with smaller images: some minutes"
    print(f"trains {model} on {pairs} captures of {settings.capture} seen at {size}, {device}")

    for raw, num, seed in ((RAW, pairs, 0), (HELD_OUT, recipe.held_out, 1)):
        captures = flags(pairs=num, size=settings.capture, seed=seed, sheet=True)
        run_python("-m", "depthdist.synthetic", raw, *captures)
    sharding = flags(size=size, rgb_size="camera", rgb="png", split="session", far=FAR_MM)
    run_shown("shard", RAW, DATA, *sharding)
    learning = flags(recipe="near", lora="linear", epochs=epochs, lr=recipe.lr)
    learning += flags(detail=True, detail_steps=settings.detail_steps or recipe.detail_steps)
    crop = min(settings.capture) // MULTIPLE * MULTIPLE
    learning += [] if crop >= DetailSettings.detail_crop else flags(detail_crop=crop)
    learning += [] if recipe.gpus is None else flags(gpus=recipe.gpus)
    run_shown("train", DATA, *flags(run=run, model=model), *learning)

    detail, evaluation = run / DETAIL_FOLDER / DETAIL_FILE, run / "evaluation.json"
    unless_newer(evaluation, detail, lambda: run_shown("evaluate", *flags(run=run, details=on_gpu)))
    relief = run / "relief.json"
    unless_newer(relief, detail, lambda: run_shown("relief", *flags(run=run, captures=HELD_OUT)))
    report = run / "report.html"
    unless_newer(report, evaluation, lambda: run_shown("report", "run", run))
    data_report = DATA.with_name("tires-report.html")
    unless_newer(data_report, DATA / "index.json", lambda: run_shown("report", "data", DATA))
    predictions = run / "predictions"
    run_shown("predict", HELD_OUT / "images", *flags(run=run, out=predictions))
    print(
        f"""
Where to look
  {RAW}/truth/sheet.png       the captures: image and depth
  {run}/relief.png        a tread: image | its true relief | the adapter's | with detail
  {predictions}/*_figure.png   RGB | ground truth | prediction | error, in mm
  {report}         the run: table with intervals, grooves, images, curves
  {data_report}       the data: depth, holes, sessions, near-duplicates, what looks wrong
  depthdist serve {run}          a page: drop an image, read and measure mm, turn it in 3-D
  tensorboard --logdir {run.parent}         curves, images and point clouds: http://localhost:6006

Your own captures
  depthdist train FOLDER --run runs/mine"""
    )


def begun_with(run: Path) -> str | None:
    """Return the model that the run began with, None where there is no run."""
    return str(open_run(run).settings["model"]) if (run / RUN_FILE).exists() else None


def choose_recipe(model: str, on_gpu: bool) -> Recipe:
    """Return the recipe for this model; built-in is small, and takes larger steps."""
    is_small = model == "built-in"
    if not on_gpu:
        lr, processes = 1e-3 if is_small else 5e-5, min(2, count_workers(0, 2))
        return Recipe(30, Size(154, 252), 8, lr, detail_steps=1000, held_out=3, gpus=processes)
    if is_small:
        return Recipe(58, Size(294, 476), 10, 1e-3, detail_steps=6000, held_out=12, gpus=None)
    return Recipe(58, Size(756, 1260), 15, 5e-5, detail_steps=6000, held_out=12, gpus=None)


def unless_newer(result: Path, source: Path, step: Callable[[], None]) -> None:
    """Do the step that makes `result`, unless that is newer than what it is made from."""
    if result.exists() and result.stat().st_mtime > source.stat().st_mtime:
        print(f"{result}: made before")
    else:
        step()
