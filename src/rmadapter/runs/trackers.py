"""The experiment trackers, each as one small class: TensorBoard, MLflow, Weights & Biases, Trackio.

Each needs a package of its own, which is imported when a run starts.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from rmadapter.errors import UserError, quoted
from rmadapter.support.terminal import silenced

if TYPE_CHECKING:
    from rmadapter.training.shots import Figures

PROJECT = "rmadapter"  # of all runs, unless the tracker's own variable names another


@dataclass(frozen=True)
class Start:
    """What a tracker gets first. id: of the tracked run; the same when it is resumed. folder: for
    the files of a tracker that has no place of its own."""

    name: str
    id: str
    settings: Mapping[str, str | float]
    folder: Path
    resumed: bool = False


class Tracker(Protocol):
    """One run in a tracker; any method may raise. package: what it imports."""

    package: ClassVar[str]

    def __init__(self, start: Start) -> None: ...

    def log(self, rows: Mapping[int, Figures]) -> None:
        """Log the figures of steps, which increase."""

    def log_results(self, figures: Figures, step: int) -> None:
        """Log figures of the whole run. step: the last one."""

    def add_page(self, page: Path, step: int) -> None:
        """Keep a page of HTML with the run."""

    def finish(self, reason: str) -> None:
        """End the run. reason: why it failed, or ""."""


class TensorBoard:
    """Event files in the run's folder. They cannot hold a page, so they name its place."""

    package: ClassVar[str] = "tensorboard"

    def __init__(self, start: Start) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(start.folder))
        own = ("method", "task", "backbone", "precision")
        self.settings = {name: x for name, x in start.settings.items() if name.startswith(own)}
        if not start.resumed:
            rows = [f"| {name} | {value} |" for name, value in start.settings.items()]
            self.writer.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *rows]))

    def log(self, rows: Mapping[int, Figures]) -> None:
        for step, figures in rows.items():
            for name, value in figures.items():
                self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def log_results(self, figures: Figures, step: int) -> None:
        from torch.utils.tensorboard.summary import hparams

        self.log({step: figures})
        for summary in hparams(self.settings, dict(figures)):  # for the tab that compares runs
            self.writer.file_writer.add_summary(summary)

    def add_page(self, page: Path, step: int) -> None:
        self.writer.add_text("page", str(page.absolute()), step)

    def finish(self, reason: str) -> None:
        if reason:
            self.writer.add_text("failed", reason)
        self.writer.close()


class MLflow:
    """A run in MLFLOW_TRACKING_URI, or in MLflow's local store. A resumed one is found by a tag."""

    package: ClassVar[str] = "mlflow"

    def __init__(self, start: Start) -> None:
        self.client, experiment = self.connect()
        tag = "rmadapter.id"
        runs = self.client.search_runs([experiment], f"tags.`{tag}` = '{start.id}'")
        if runs:
            self.run: str = runs[0].info.run_id
            self.client.update_run(self.run, "RUNNING")
            return
        from mlflow.entities import Param

        tags = {tag: start.id}
        self.run = self.client.create_run(experiment, run_name=start.name, tags=tags).info.run_id
        params = [Param(name, str(value)) for name, value in start.settings.items()]
        for first in range(0, len(params), 100):  # the most that MLflow takes at once
            self.client.log_batch(self.run, params=params[first : first + 100])

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

    def log(self, rows: Mapping[int, Figures]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [
            Metric(name, value, now, step)
            for step, figures in rows.items()
            for name, value in figures.items()
        ]
        for first in range(0, len(metrics), 1000):  # the most that MLflow takes at once
            self.client.log_batch(self.run, metrics=metrics[first : first + 1000])

    def log_results(self, figures: Figures, step: int) -> None:
        self.log({step: figures})

    def add_page(self, page: Path, step: int) -> None:
        self.client.log_artifact(self.run, str(page))

    def finish(self, reason: str) -> None:
        if reason:
            self.client.set_tag(self.run, "reason", reason)
        self.client.set_terminated(self.run, "FAILED" if reason else "FINISHED")


class WandB:
    """A run of Weights & Biases: offline, unless WANDB_MODE or WANDB_API_KEY is set."""

    package: ClassVar[str] = "wandb"

    def __init__(self, start: Start) -> None:
        import wandb

        key = os.environ.get("WANDB_API_KEY")
        mode = os.environ.get("WANDB_MODE") or ("online" if key else "offline")
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=start.name,
            id=start.id,
            config=dict(start.settings),
            mode=mode,
            reinit="create_new",
            resume=None if mode == "offline" else "allow",
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )

    def log(self, rows: Mapping[int, Figures]) -> None:
        for step, figures in rows.items():
            self.run.log(dict(figures), step=step)

    def log_results(self, figures: Figures, step: int) -> None:
        self.run.summary.update(dict(figures))

    def add_page(self, page: Path, step: int) -> None:
        import wandb

        self.run.log({"page": wandb.Html(page.read_text("utf-8"), inject=False)}, step=step)

    def finish(self, reason: str) -> None:
        if reason:
            self.run.summary["reason"] = reason
        self.run.finish(exit_code=int(bool(reason)))


class Trackio:
    """A run in Trackio's local database, or in the Space that TRACKIO_SPACE_ID names."""

    package: ClassVar[str] = "trackio"

    def __init__(self, start: Start) -> None:
        import trackio

        name = f"{start.name}-{start.id}"  # by which Trackio finds a run that is resumed
        self.trackio: Any = trackio
        self.run: Any = trackio.init(
            PROJECT, name, config=dict(start.settings), resume="allow", embed=False
        )

    def log(self, rows: Mapping[int, Figures]) -> None:
        for step, figures in rows.items():
            self.run.log(dict(figures), step=step)

    def log_results(self, figures: Figures, step: int) -> None:
        self.log({step: figures})

    def add_page(self, page: Path, step: int) -> None:
        self.run.log_artifact(page, name=f"page-{self.run.name}", type="page")

    def finish(self, reason: str) -> None:
        if reason:
            self.run.alert("failed", reason)
        self.trackio.finish()


TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
    "trackio": Trackio,
}


def trackers_in(words: str | Sequence[str], on_ray: bool = False) -> tuple[str, ...]:
    """Return the trackers of a list, such as one with commas, each once. Raises UserError for an
    unknown one, for one that is not installed, and for any together with --ray."""
    parts = words.split(",") if isinstance(words, str) else words
    names = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"--track {quoted(name)}: known are {', '.join(TRACKERS)}")
        spec = find_spec(TRACKERS[name].package)
        if spec is None or spec.origin is None:  # None: a folder of this name, such as ./wandb
            how = f"run `pip install 'rmadapter[{name}]'`"
            if name == "trackio" and sys.version_info >= (3, 11):
                how = (
                    "its releases ask for an older Pillow than rmadapter, so the extra "
                    "rmadapter[trackio] is for Python 3.10: run `pip install trackio`, then "
                    "`pip install --upgrade pillow`"
                )
            raise UserError(f"--track {name} needs the package {TRACKERS[name].package}: {how}")
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
