"""The experiment trackers, each as one small class: TensorBoard, MLflow, Weights & Biases.

Each needs a package of its own, which is imported when a run starts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rmadapter.errors import UserError, quoted
from rmadapter.support.terminal import silenced

if TYPE_CHECKING:
    from rmadapter.training.shots import Figures

PROJECT = "rmadapter"  # of all runs, unless the tracker's own variable names another
MLFLOW_MESSAGE_SECONDS = 1.0  # between two messages, since MLflow answers each before it goes on
MLFLOW_METRICS, MLFLOW_PARAMS = 1000, 100  # most that MLflow takes in a message


class Tracker(Protocol):
    """Log one run to a tracker; any method may raise.

    Args:
        name: Name of the run.
        run_id: Id of the run; a run that is resumed has the same.
        settings: Settings of the run by name.
        folder: Folder for the files of a tracker that has no place of its own.
    """

    def __init__(
        self, name: str, run_id: str, settings: Mapping[str, str | float], folder: Path
    ) -> None: ...

    def log(self, figures: Figures, step: int) -> None:
        """Log figures of a step, or of the whole run at its last step."""

    def add_page(self, page: Path, step: int) -> None:
        """Keep a page of HTML with the run."""

    def finish(self, reason: str) -> None:
        """End the run; a reason says why it failed."""


class TensorBoard:
    """Write event files in the run's folder. They cannot hold a page, so they name its path."""

    def __init__(
        self, name: str, run_id: str, settings: Mapping[str, str | float], folder: Path
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder), flush_secs=10)
        rows = [f"| {name} | {value} |" for name, value in settings.items()]
        self.writer.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *rows]))

    def log(self, figures: Figures, step: int) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def add_page(self, page: Path, step: int) -> None:
        self.writer.add_text("page", str(page.absolute()), step)

    def finish(self, reason: str) -> None:
        if reason:
            self.writer.add_text("failed", reason)
        self.writer.close()


class MLflow:
    """Log to MLFLOW_TRACKING_URI, or to MLflow's local store. A resumed run is found by a tag."""

    def __init__(
        self, name: str, run_id: str, settings: Mapping[str, str | float], folder: Path
    ) -> None:
        from mlflow.entities import Param

        self.waiting: list[Any] = []  # metrics to be sent
        self.sent = 0.0
        self.client, experiment = self.connect()
        tag = "rmadapter.id"
        runs = self.client.search_runs([experiment], f"tags.`{tag}` = '{run_id}'")
        if runs:
            self.run: str = runs[0].info.run_id
            self.client.update_run(self.run, "RUNNING")
            return
        run = self.client.create_run(experiment, run_name=name, tags={tag: run_id})
        self.run = run.info.run_id
        params = [Param(name, str(value)) for name, value in settings.items()]
        for first in range(0, len(params), MLFLOW_PARAMS):
            self.client.log_batch(self.run, params=params[first : first + MLFLOW_PARAMS])

    @staticmethod
    def connect() -> tuple[Any, str]:
        """Return a client and the experiment's number; both the local store and the experiment are
        made if there are none."""
        # no news to MLflow's makers; if a server is gone, do not wait for it for minutes
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow import MlflowClient

        client, name = MlflowClient(), os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        known = client.get_experiment_by_name(name)
        return client, known.experiment_id if known else client.create_experiment(name)

    def log(self, figures: Figures, step: int) -> None:
        from mlflow.entities import Metric

        now = time.time()
        milliseconds = int(1000 * now)
        self.waiting += [Metric(name, x, milliseconds, step) for name, x in figures.items()]
        if now - self.sent > MLFLOW_MESSAGE_SECONDS:
            self.send()
            self.sent = now

    def send(self) -> None:
        """Send the metrics that are waiting."""
        for first in range(0, len(self.waiting), MLFLOW_METRICS):
            metrics = self.waiting[first : first + MLFLOW_METRICS]
            self.client.log_batch(self.run, metrics=metrics)
        self.waiting.clear()

    def add_page(self, page: Path, step: int) -> None:
        self.client.log_artifact(self.run, str(page))

    def finish(self, reason: str) -> None:
        self.send()
        if reason:
            self.client.set_tag(self.run, "reason", reason)
        self.client.set_terminated(self.run, "FAILED" if reason else "FINISHED")


class WandB:
    """Log to Weights & Biases: offline, unless WANDB_MODE or WANDB_API_KEY is set."""

    def __init__(
        self, name: str, run_id: str, settings: Mapping[str, str | float], folder: Path
    ) -> None:
        import wandb

        key = os.environ.get("WANDB_API_KEY")
        mode = os.environ.get("WANDB_MODE") or ("online" if key else "offline")
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=name,
            id=run_id,
            config=dict(settings),
            mode=mode,
            reinit="create_new",
            resume=None if mode == "offline" else "allow",
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )
        # wandb drops what has a smaller `step` than before, which a resumed run may repeat
        self.run.define_metric("*", step_metric="step")

    def log(self, figures: Figures, step: int) -> None:
        self.run.log({**figures, "step": step})

    def add_page(self, page: Path, step: int) -> None:
        import wandb

        self.run.log({"page": wandb.Html(page.read_text("utf-8"), inject=False)})

    def finish(self, reason: str) -> None:
        if reason:
            self.run.summary["reason"] = reason
        self.run.finish(exit_code=int(bool(reason)))


TRACKERS: dict[str, type[Tracker]] = {  # by the name of its package
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
}


def trackers_in(words: str | Sequence[str], on_ray: bool = False) -> tuple[str, ...]:
    """Return the trackers of a list, each once.

    Args:
        words: Names of trackers, in a list or with commas.
        on_ray: Whether Ray does the runs.

    Raises:
        UserError: A tracker is unknown or not installed, or there is any together with Ray.
    """
    parts = words.split(",") if isinstance(words, str) else words
    names = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"--track {quoted(name)}: known are {', '.join(TRACKERS)}")
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # None: a folder of this name, such as ./wandb
            raise UserError(
                f"--track {name} needs the package {name}: run `pip install 'rmadapter[{name}]'`"
            )
    if names and on_ray:
        raise UserError(
            "--track does not work with --ray, whose workers may be on other machines: leave out "
            "one of them"
        )
    return names


def prepare(names: Sequence[str]) -> None:
    """Make what several processes would otherwise make at the same time."""
    if "mlflow" in names:
        with suppress(Exception), silenced(output=True):  # each run says what is wrong
            MLflow.connect()
