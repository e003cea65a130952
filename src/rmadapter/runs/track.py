"""Log runs to experiment trackers, which can fail without ending a run."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias

from rmadapter.errors import UserError
from rmadapter.runs.trackers import TRACKERS, Tracker, trackers_in
from rmadapter.support.files import read_json, write_json
from rmadapter.support.terminal import note, silenced

if TYPE_CHECKING:
    from rmadapter.artifacts.record import Record
    from rmadapter.training.shots import Callback, Figures

Flat: TypeAlias = dict[str, str | float]


class Tracking:
    """A run in experiment trackers, within a `with` block.

    A tracker that fails is left out from then on, with a note. Runs belong to the project
    rmadapter, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME names another.

    Args:
        trackers: Names out of tensorboard, mlflow and wandb, in a list or with commas;
            without any, nothing is tracked.
        name: Name of the run.
        folder: Folder for the event files of TensorBoard; the others have their own places.
        settings: Values to show with the run.
        state: File that keeps the id of the run until the block succeeds: another `Tracking` with
            it continues the run in the trackers, and may log steps again.

    Raises:
        UserError: A tracker is unknown or not installed.

    Example:
        >>> from rmadapter import FewShotClassifier, Tracking
        >>> model = FewShotClassifier("tiny", method="clip-adapter", epochs=3)
        >>> with Tracking("tensorboard", "first", "runs/first") as tracked:
        ...     model = model.fit("colors", callbacks=tracked.callbacks)
        ...     tracked.log({"accuracy": model.score("colors")})
    """

    def __init__(
        self,
        trackers: str | Sequence[str],
        name: str,
        folder: str | Path = "runs",
        settings: Mapping[str, object] | None = None,
        state: Path | None = None,
    ) -> None:
        self.names = trackers_in(trackers)
        self.name, self.folder, self.state = name, Path(folder), state
        self.settings = _flat(settings or {}, ".")
        self._open: dict[str, Tracker] = {}
        self._before = self._step = 0  # steps of earlier trainings, and those of this one

    def __enter__(self) -> Tracking:
        if self.names:
            run_id = self._run_id()
            for name in self.names:
                self._try(name, partial(self._start, name, run_id))
        return self

    @property
    def callbacks(self) -> tuple[Callback, ...]:
        """Return what follows a training, for `FewShotClassifier.fit`; nothing without a tracker.

        The steps of a second training count on from those of the first.
        """
        from rmadapter.training.shots import Callback

        return (Callback(self._on_step, self._on_epoch),) if self.names else ()

    def log(self, figures: Mapping[str, float]) -> None:
        """Log figures of the whole run, at its last step.

        Args:
            figures: Numbers by name.
        """
        named = {_name(name): float(value) for name, value in figures.items()}
        # Changing the filters of warnings at each step would repeat those that are shown once.
        self._each(lambda tracker: tracker.log(named, self._total), output=False)

    def add_record(self, record: Record, page: Path | None = None) -> None:
        """Log the figures of a record.

        Args:
            record: Record of the finished run.
            page: Page of HTML to keep with the run.
        """
        self.log(_figures(record))
        if page is not None:
            self._each(lambda tracker: tracker.add_page(page, self._total))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        reason = ""
        if error is not None:
            reason = _short(error) if isinstance(error, Exception) else "stopped"
        self._each(lambda tracker: tracker.finish(reason))
        self._open = {}
        if error is None and self.state:
            with suppress(OSError):
                self.state.unlink(missing_ok=True)

    @property
    def _total(self) -> int:
        """Return the number of the last step, counted over all trainings."""
        return self._before + self._step

    def _run_id(self) -> str:
        """Return the id of the run that an earlier process began with the same key, or a new one,
        which is kept."""
        new = {"id": secrets.token_hex(4), "key": self.settings.get("key", "")}
        if self.state:
            # there is no file, or it is damaged, or not of this project
            with suppress(UserError, KeyError, TypeError):
                kept = read_json(self.state)
                if kept["key"] == new["key"] and re.fullmatch("[0-9a-f]{8}", kept["id"]):
                    return str(kept["id"])
            with suppress(OSError, UserError):  # a full disk is no reason to end a run
                self.state.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.state, new)
        return str(new["id"])

    def _start(self, name: str, run_id: str) -> None:
        self._open[name] = TRACKERS[name](self.name, run_id, self.settings, self.folder)

    def _on_step(self, figures: Figures) -> None:
        step = int(figures["step"])
        if step <= self._step:  # of another training, such as that on the next fold
            self._before += self._step
        self._step = step
        self.log({f"train/{name}": x for name, x in figures.items() if name != "step"})

    def _on_epoch(self, figures: Figures) -> None:
        means = figures.keys() - {"step", "epoch", "lr"}
        self.log({f"epoch/{name}": figures[name] for name in means})

    def _each(self, action: Callable[[Tracker], None], output: bool = True) -> None:
        for name, tracker in [*self._open.items()]:
            self._try(name, partial(action, tracker), output)

    def _try(self, name: str, action: Callable[[], None], output: bool = True) -> None:
        """Run what a tracker does; leave the tracker out from then on if it fails.

        Args:
            name: Name of the tracker.
            action: What it does.
            output: Whether to silence its warnings and what it prints, not only its log.
        """
        try:
            with silenced(output=output):
                action()
        except Exception as error:
            self._open.pop(name, None)
            note(f"{name} failed, and the run goes on without it: {_short(error)}")


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _name(text: str) -> str:
    """Return a name that every tracker accepts."""
    return re.sub(r"[^\w./ -]", "_", text)


def _flat(values: Mapping[str, object], separator: str, parent: str = "") -> Flat:
    """Return the values of a tree by the names on the way to them, without empty ones."""
    flat: Flat = {}
    for key, value in values.items():
        name = _name(f"{parent}{key}")
        if isinstance(value, Mapping):
            flat |= _flat(value, separator, f"{name}{separator}")
        elif value not in (None, "", [], ()):
            flat[name] = value if isinstance(value, str | int | float) else str(value)
    return flat


def _figures(record: Record) -> dict[str, float]:
    """Return every figure of a record."""
    facts = ("parameters", "step_seconds", "peak_mb", "peak_gpu_mb", "temperature")
    figures = {
        "accuracy": record.metrics,
        "zero-shot": {name: record.metric(name, zero_shot=True) for name in record.metrics},
        "seconds": record.seconds,
        **{name: getattr(record, name) for name in facts},
    }
    if record.judgement:
        fitted = record.judgement.fitted
        figures |= {"macro_f1": fitted.macro_f1, "calibration_error": fitted.calibration_error}
    return {name: float(value) for name, value in _flat(figures, "/").items()}


def settings_to_track(record: Record) -> dict[str, object]:
    """Return what a record says of a run before it has begun."""
    kept = {"task", "precision", "versions", "command", "key", "split_digest"}
    method, backbone = record.method, record.backbone
    return {
        "method": method.name,
        **{f"method.{name}": value for name, value in method.settings.items()},
        "backbone": backbone.name,
        "backbone.digest": backbone.digest,
        **record.model_dump(mode="json", include=kept),
    }
