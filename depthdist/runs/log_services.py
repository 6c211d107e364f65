"""Send a run's log to other trackers too: Weights & Biases, MLflow, trackio.

    service = LogService("wandb", run, resumed=False)
    service.describe({"lr": 5e-5, "model": "built-in"})
    service.log({"train/loss": 0.5}, step=1)
    service.picture("validation/000", image, step=6)
    service.close(seconds=60)
    print(service.problem())    # the failure that ended it, told once; None while all is well

accelerate's trackers do it. Each service has a thread of its own, so that training neither waits
for a network nor ends with it: after a failure nothing more is sent. RUN/log_to/NAME holds the id
of the service's run, which a resumed run continues.
"""

from __future__ import annotations

import importlib.util
import os
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from depthdist.core.errors import one_line
from depthdist.core.files import write_atomic
from depthdist.core.settings import did_you_mean

if TYPE_CHECKING:
    import numpy as np

PROJECT = "depthdist"  # of the service, where no variable of its own says otherwise
MAX_TEXT = 6000  # characters of a value that MLflow takes


def log_to_problems(names: Sequence[str]) -> list[str]:
    """Return what is wrong with --log-to: unknown names, packages that are not installed."""
    found = []
    for name in names:
        if name not in SERVICES:
            found.append(
                f"--log-to has {name!r}: expected some of {', '.join(SERVICES)} with commas"
                f" between{did_you_mean(name, SERVICES)}"
            )
        elif importlib.util.find_spec(name) is None:
            found.append(f"--log-to {name}: the package is not installed: pip install {name}")
    return found


class Service(ABC):
    """How one service is used: what accelerate's tracker for it does not do alike for all."""

    @abstractmethod
    def open(self, run: Path, known_id: str | None) -> tuple[Any, str]:
        """Return accelerate's tracker of the run, at work, and the id of the service's run.

        known_id  of the run to continue, None for a new one
        """

    def tag(self, name: str) -> str:
        """Return the name of a curve or an image as the service takes it."""
        return name

    @abstractmethod
    def picture(self, tracker: Any, name: str, image: np.ndarray, step: int) -> None:
        """Send an image (h, w, 3) uint8."""


class Wandb(Service):
    """Weights & Biases; its own files go to RUN/wandb unless WANDB_DIR says otherwise."""

    def open(self, run: Path, known_id: str | None) -> tuple[Any, str]:
        """Start or continue a run of wandb's, in WANDB_PROJECT or PROJECT."""
        from accelerate.tracking import WandBTracker

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        folder = os.environ.get("WANDB_DIR", str(run))
        more = {"id": known_id, "resume": "allow"} if known_id else {}
        tracker = WandBTracker(project, name=run.name, dir=folder, **more)
        tracker.start()
        return tracker, tracker.run.id

    def picture(self, tracker: Any, name: str, image: np.ndarray, step: int) -> None:
        """Send an image."""
        tracker.log_images({name: [image]}, step=step)


class Mlflow(Service):
    """MLflow; MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME say where."""

    def open(self, run: Path, known_id: str | None) -> tuple[Any, str]:
        """Start or continue a run of MLflow's."""
        from accelerate.tracking import MLflowTracker

        tracker = MLflowTracker(PROJECT, run_id=known_id, run_name=run.name)
        tracker.start()
        return tracker, tracker.active_run.info.run_id

    def tag(self, name: str) -> str:
        """Return the name without characters that MLflow refuses, such as @."""
        return re.sub(r"[^\w\-. /]", " ", name)

    def picture(self, tracker: Any, name: str, image: np.ndarray, step: int) -> None:
        """Send an image."""
        import mlflow

        mlflow.log_image(image, key=self.tag(name), step=step)


class Trackio(Service):
    """Hugging Face's trackio: a local dashboard, or TRACKIO_SPACE_ID."""

    def open(self, run: Path, known_id: str | None) -> tuple[Any, str]:
        """Start or continue a run of trackio's, which it knows by its name."""
        from accelerate.tracking import TrackioTracker

        name, resume = (known_id, "allow") if known_id else (run.name, "never")
        tracker = TrackioTracker(PROJECT, name=name, resume=resume, embed=False)
        tracker.start()
        return tracker, tracker.run.name

    def picture(self, tracker: Any, name: str, image: np.ndarray, step: int) -> None:
        """Send an image."""
        import trackio

        tracker.log({name: trackio.Image(image)}, step=step)


SERVICES: dict[str, Service] = {"wandb": Wandb(), "mlflow": Mlflow(), "trackio": Trackio()}
"""By the name in --log-to, which is also the name of the package."""


class LogService:
    """One service that a run's log goes to; calls return at once.

    resumed  whether to continue the service's run of before
    """

    def __init__(self, name: str, run: Path, resumed: bool):
        self.name = name
        self.service = SERVICES[name]
        self.run = run
        self.id_file = run / "log_to" / name
        self.resumed = resumed
        self.is_new = True
        self.jobs: SimpleQueue[Callable[[Any], Any] | None] = SimpleQueue()
        self.failure: str | None = None
        self.thread: threading.Thread | None = None

    def describe(self, values: Mapping[str, Any]) -> None:
        """Send settings and versions, once for each run of the service."""
        texts = {name: value for name, value in values.items() if len(str(value)) <= MAX_TEXT}
        self._put(lambda tracker: self.is_new and tracker.store_init_configuration(texts))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send a point of each curve."""
        named = {self.service.tag(name): value for name, value in values.items()}
        self._put(lambda tracker: tracker.log(named, step=step))

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """Send an image (h, w, 3) uint8."""
        self._put(lambda tracker: self.service.picture(tracker, name, image, step))

    def problem(self) -> str | None:
        """Return what ended the service, once; None while it works."""
        failure, self.failure = self.failure, None
        return failure

    def close(self, seconds: float) -> None:
        """Wait at most so long until everything is sent."""
        if self.thread is None:
            return
        self.jobs.put(None)
        self.thread.join(seconds)
        if self.thread.is_alive():
            self.failure = f"{self.name} does not answer: the end of the log is not sent"

    def _put(self, job: Callable[[Any], Any]) -> None:
        if self.thread is None:
            self.thread = threading.Thread(target=self._work, name=self.name, daemon=True)
            self.thread.start()
        if self.thread.is_alive():
            self.jobs.put(job)

    def _work(self) -> None:
        """Send what is put, in its order, until the end or a failure."""
        try:
            tracker = self._open()
            while (job := self.jobs.get()) is not None:
                job(tracker)
            tracker.finish()
        except BaseException as err:  # whatever a network, a server or a library does
            self.failure = f"{self.name} failed, nothing more is sent there: {one_line(err)}"

    def _open(self) -> Any:
        from accelerate.state import PartialState

        PartialState()  # accelerate's log wants it; the process group is there already
        if self.resumed and self.id_file.exists():
            with suppress(Exception):  # it may be deleted there: then a new one
                tracker, _ = self.service.open(self.run, self.id_file.read_text(encoding="utf-8"))
                self.is_new = False
                return tracker
        tracker, its_id = self.service.open(self.run, None)
        self.id_file.parent.mkdir(exist_ok=True)
        write_atomic(self.id_file, its_id.encode())
        return tracker
