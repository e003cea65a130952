"""Log runs to experiment trackers.

A tracker gets each step once, also of a run that is resumed; it can fail without ending the run.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rmadapter.errors import UserError
from rmadapter.runs.trackers import TRACKERS, Start, Tracker, trackers_in
from rmadapter.support.files import read_json, write_json
from rmadapter.support.terminal import note, silenced

if TYPE_CHECKING:
    from rmadapter.artifacts.record import Record
    from rmadapter.training.shots import Callback, Figures

SECONDS_BETWEEN_MESSAGES = 1.0  # between two messages to a tracker


class Tracking:
    """A run in experiment trackers, within a `with` block.

    A tracker that fails is left out from then on, with a note. Runs belong to the project
    rmadapter, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME names another.

    Args:
        trackers: Names out of tensorboard, mlflow, wandb and trackio, in a list or with commas;
            without any, nothing is tracked.
        name: Name of the run.
        folder: Folder for the event files of TensorBoard; the others have their own places.
        settings: Values to show with the run.
        state: File by which another `Tracking` goes on with this run if the block ends by an
            error; what was logged by then is not logged again.

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
        self.settings = _flat(settings or {})
        self._id, self._done = "", 0  # of an earlier process: the last step that it has logged
        self._open: dict[str, Tracker] = {}
        self._rows: dict[int, dict[str, float]] = {}  # to be sent
        self._sent = 0.0
        self._before = self._step = 0  # steps of earlier trainings, and those of this one

    def __enter__(self) -> Tracking:
        if self.names:
            resumed = self._load()
            self._keep(self._done)
            start = Start(self.name, self._id, self.settings, self.folder, resumed)
            for name in self.names:
                self._try(name, partial(self._start, name, start))
        return self

    @property
    def callbacks(self) -> tuple[Callback, ...]:
        """Return what follows a training, for `FewShotClassifier.fit`; nothing without a tracker.

        The steps of a second training count on from those of the first.
        """
        from rmadapter.training.shots import Callback

        return (Callback(self._on_step, self._on_epoch),) if self.names else ()

    def log(self, figures: Mapping[str, float]) -> None:
        """Log figures of the whole run.

        Args:
            figures: Numbers by name.
        """
        named = {_name(name): float(value) for name, value in figures.items()}
        self._send()
        self._each(lambda one: one.log_results(named, self._total))

    def add_record(self, record: Record, page: Path | None = None) -> None:
        """Log the figures of a record.

        Args:
            record: Record of the finished run.
            page: Page of HTML to keep with the run.
        """
        self.log(_figures(record))
        if page is not None:
            self._each(lambda one: one.add_page(page, self._total))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._send()
        reason = ""
        if error is not None:
            text = " ".join(str(error).split())[:1000] or type(error).__name__
            reason = text if isinstance(error, Exception) else "stopped"
        self._each(lambda one: one.finish(reason))
        self._open = {}
        if error is None and self.state:
            with suppress(OSError):
                self.state.unlink(missing_ok=True)

    # The state, and what is passed on

    @property
    def _key(self) -> str | float:
        return self.settings.get("key", "")

    @property
    def _total(self) -> int:
        """Return the number of the last step, counted over all trainings."""
        return max(self._before + self._step, self._done)

    def _load(self) -> bool:
        """Read what an earlier process has logged; return whether there was one."""
        with suppress(UserError, KeyError, TypeError, ValueError, OverflowError):
            kept = read_json(self.state) if self.state else {}
            if kept["key"] == self._key and re.fullmatch("[0-9a-f]{8}", kept["id"]):
                self._id, self._done = kept["id"], int(kept["step"])
                return True
        self._id = secrets.token_hex(4)
        return False

    def _keep(self, step: int) -> None:
        if self.state:
            with suppress(OSError, UserError):  # no reason to end a training
                self.state.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.state, {"id": self._id, "key": self._key, "step": step})

    def _start(self, name: str, start: Start) -> None:
        self._open[name] = TRACKERS[name](start)

    def _on_step(self, figures: Figures) -> None:
        step = int(figures["step"])
        if step <= self._step:  # of another training, such as that on the next fold
            self._before += self._step
        self._step = step
        self._add({f"train/{name}": x for name, x in figures.items() if name != "step"})

    def _on_epoch(self, figures: Figures) -> None:
        means = figures.keys() - {"step", "epoch", "lr"}
        self._add({f"epoch/{name}": figures[name] for name in means})

    def _add(self, figures: Figures) -> None:
        step = self._before + self._step
        if step > self._done:
            named = {_name(name): float(value) for name, value in figures.items()}
            self._rows.setdefault(step, {}).update(named)
            if time.monotonic() - self._sent > SECONDS_BETWEEN_MESSAGES:
                self._send()

    def _send(self) -> None:
        """Pass the rows on; first keep that they were, since none may be logged twice."""
        rows, self._rows = self._rows, {}
        if rows:
            self._keep(max(rows))
            self._each(lambda one: one.log(rows))
        self._sent = time.monotonic()

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for name, tracker in [*self._open.items()]:
            self._try(name, partial(action, tracker))

    def _try(self, name: str, action: Callable[[], None]) -> None:
        try:
            with silenced(output=True):
                action()
        except Exception as error:
            self._open.pop(name, None)
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            note(f"{name} failed, and the run goes on without it: {reason}")


def _name(text: str) -> str:
    """Return a name that every tracker accepts."""
    return re.sub(r"[^\w./ -]", "_", text)


def _flat(values: Mapping[str, object], before: str = "") -> dict[str, str | float]:
    """Return the values of a tree by dotted names, without empty ones."""
    flat: dict[str, str | float] = {}
    for key, value in values.items():
        name = _name(f"{before}{key}")
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{name}.")
        elif value not in (None, "", [], ()):
            flat[name] = value if isinstance(value, str | int | float) else str(value)
    return flat


def _figures(record: Record) -> dict[str, float]:
    """Return every figure of a record."""
    figures: dict[str, float | None] = {}
    for name, accuracy in record.metrics.items():
        place = name.replace("/", "_")
        figures[f"accuracy/{place}"] = accuracy
        figures[f"zero-shot/{place}"] = record.metric(name, zero_shot=True)
    figures |= {f"seconds/{name}": value for name, value in record.seconds.items()}
    if record.judgement:
        fitted = record.judgement.fitted
        figures |= {"macro_f1": fitted.macro_f1, "calibration_error": fitted.calibration_error}
    for name in ("parameters", "step_seconds", "peak_mb", "peak_gpu_mb", "temperature"):
        figures[name] = getattr(record, name)
    return {name: value for name, value in figures.items() if value is not None}


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
