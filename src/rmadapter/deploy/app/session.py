"""What one visitor does: images, training, questions and downloads, all in a folder of their own."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rmadapter.artifacts.checkpoint import Saved, load, save
from rmadapter.artifacts.run_folder import RunFolder, runs_below
from rmadapter.backbones import Backbone
from rmadapter.backbones.choice import advise
from rmadapter.data.names import prompt_names
from rmadapter.deploy.app.images import IMAGES, MOST_CLASSES, Shelf, spelled, unzipped
from rmadapter.deploy.app.jobs import Job, Jobs
from rmadapter.deploy.app.scores import its_record, judged
from rmadapter.deploy.app.zips import bare_paths, copy_run, pack
from rmadapter.errors import UserError, nearest, quoted
from rmadapter.methods import AUTO, load_method
from rmadapter.runs.add import add_names
from rmadapter.support.files import user_path
from rmadapter.task import TEMPLATES
from rmadapter.training.contract import Known

METHODS = {
    AUTO: "Choose for me: tries several and takes the best",
    "linear-probe-pair": "Quick: learns only your classes",
    "rmadapter": "Slow: also accepts new classes by name alone",
}
TARGETS = {"onnx": "for programs (ONNX)", "web": "as a web page"}
BUSY = "Something is already running: wait for it, or stop it."
NO_MODEL = "There is no classifier yet: train one, or use the names alone."


@dataclass(eq=False)
class Shared:
    """What all visitors share. runs: a folder of runs that any of them may open. lock: of the
    backbone, which serves one visitor at a time."""

    backbone: Backbone
    jobs: Jobs
    runs: Path | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def listed(self) -> dict[str, Path]:
        """The runs by name."""
        if self.runs is None:
            return {}
        return {run.name: run for run in runs_below(self.runs)}


class Base(NamedTuple):
    """An opened run, whose own images are not on the shelf. data: where they are, "" if unknown."""

    run: Path
    data: str


class Session:
    """One visitor's work. Methods raise UserError with a message for the page, and then leave
    everything as it was."""

    def __init__(self, folder: Path, shared: Shared) -> None:
        self.folder, self.shared, self.shelf = folder, shared, Shelf(folder)
        self.run: Path | None = None
        self.saved: Saved | None = None
        self.base: Base | None = None
        self.job: Job | None = None
        self.exports: dict[str, Path] = {}  # by target
        self.lock = threading.RLock()  # a browser may send several requests at once
        self._count = 0

    @property
    def busy(self) -> bool:
        return self.job is not None and not self.job.over

    @property
    def empty(self) -> bool:
        """Whether nothing would be lost with it."""
        return not (self.shelf.classes or self.run or self.job)

    def state(self) -> dict[str, Any]:
        """Everything that the page shows except images."""
        with self.lock:
            job, saved, run = self.job, self.saved, self.run
            return {
                "classes": [{"label": label, "images": len(shots)} for label, shots in self.shelf.classes.items()],
                "base": self.base and {"run": self.base.run.name, "grows": bool(self.base.data)},
                "runs": [*self.shared.listed()],
                "methods": METHODS,
                "targets": TARGETS,
                "exports": [*self.exports],
                "advice": advise(self.shared.backbone.name),
                "model": saved
                and run
                and {"run": run.name, "labels": list(map(str, saved.labels)), "method": saved.fitted.method.title},
                "job": job
                and {
                    "what": job.what, "state": job.state, "told": job.told, "share": job.share, "notes": job.notes,
                    "place": self.shared.jobs.place(job),
                },
            }  # fmt: skip

    # Images and runs

    def remove(self, label: str) -> None:
        """Remove a class with its images, which nothing may be reading."""
        with self.lock:
            self._idle()
            self.shelf.remove(label)

    def take_zip(self, archive: Path) -> dict[str, Any]:
        """Take a zip of class folders, or of a run from this page; "bad" has a sentence for each
        image left out."""
        with self.lock:
            self._idle()
            where = self._new("unpacked")
            try:
                inside = unzipped(archive, where)
                places = (inside, inside / "model")
                run = next((path for path in places if RunFolder(path).model.is_file()), None)
                if run is None:
                    return {"opened": "", "bad": self.shelf.take_folder(inside)}
                return {"opened": archive.stem, "bad": self._take_back(run, inside)}
            except UserError as error:
                told = str(error).replace(f"{archive}", archive.name)
                raise UserError(told.replace(f"{where}", archive.name)) from None
            finally:
                shutil.rmtree(where, ignore_errors=True)
                archive.unlink(missing_ok=True)

    def _take_back(self, run: Path, inside: Path) -> list[str]:
        """Open the run of a zip, and take the images beside it, if there are any."""

        def start() -> None:
            self._open(run, "", foreign=True)

        if not (inside / IMAGES).is_file() or RunFolder(inside).model.is_file():
            start()
            return []
        bad = self.shelf.take_folder(inside, start)
        self.base = None
        return bad

    def open(self, name: str) -> None:
        """Open a copy of one of the server's own runs."""
        with self.lock:
            self._idle()
            there = self.shared.listed()
            if name not in there:
                raise UserError(f"unknown run {quoted(name)}{nearest(name, there)}")
            record = its_record(there[name], Path.cwd())
            self._open(there[name], str(user_path(record.task.data).absolute()) if record else "")

    def _open(self, run: Path, data: str, foreign: bool = False) -> None:
        """Open a copy of a run, and clear the shelf. data: as in `Base`. foreign: the run is
        untrusted."""
        out = self._new("model")
        try:
            with bare_paths(out, self.shared.backbone.name):
                copy_run(run, out, foreign)
                self._take(out)
        except BaseException:
            shutil.rmtree(out, ignore_errors=True)
            raise
        self.shelf.clear()
        self.base = Base(out, data)

    # Models

    def train(self, method: str) -> None:
        """Train on all images on the shelf; an opened run goes on with its own method."""
        with self.lock:
            if method not in METHODS:
                raise UserError(f"unknown method {quoted(method)}{nearest(method, METHODS)}")
            self._idle()
            if self.base and not self.base.data:
                raise UserError(
                    "the images of this run are not here, and it cannot learn more without them"
                )
            self.shelf.write()
            out = self._new("model")
            words = ["fit", IMAGES, "--method", method]
            if self.base:
                words = [
                    "add",
                    self.base.run.name,
                    IMAGES,
                    "--old-data",
                    self.base.data,
                    "--allow-outside",
                ]
            self._start("Training", [*words, "--shots", "0"], out, lambda: self._take(out))

    def use_names(self) -> None:
        """Make a zero-shot classifier from the class names alone; nothing is trained."""
        with self.lock:
            self._idle()
            called = prompt_names([*self.shelf.classes])
            if len(called) < 2:
                raise UserError(
                    "give at least two classes: a classifier needs something to tell apart"
                )
            known = Known(tuple(called.values()), TEMPLATES)
            with self.shared.lock:
                fitted = load_method("zero-shot").restore(self.shared.backbone, known, {})
            out = self._new("model")
            save(out, fitted, "zero-shot", tuple(called), known.classes)
            self._take(out)
            self.base = None

    def add(self, names: Sequence[str]) -> None:
        """Add classes to the model by name alone."""
        with self.lock:
            self._idle()
            saved, out = self._model(), self._new("model")
            if len(saved.labels) + len(names) > MOST_CLASSES:
                raise UserError(f"this page takes at most {MOST_CLASSES:,} classes")
            with self.shared.lock:
                add_names(saved, [*map(spelled, names)], out)
            self._take(out)

    def ask(self, image: Path, name: str) -> list[dict[str, Any]]:
        """Classes and probabilities of an image, most probable first. name: what its owner called
        it."""
        saved = self._model()
        try:
            with self.shared.lock:
                table = next(saved.fitted.probabilities([image], saved.names))[0].tolist()
        except UserError as error:
            raise UserError(str(error).replace(str(image), name)) from None
        rows = [
            {"label": str(label), "probability": p}
            for label, p in zip(saved.labels, table, strict=True)
        ]
        return sorted(rows, key=lambda row: -row["probability"])

    def judged(self) -> dict[str, Any] | None:
        self._model()
        assert self.run is not None
        with bare_paths(self.run, self.shared.backbone.name):
            return judged(self.run, self.folder)

    def stop(self) -> None:
        if self.job:
            self.shared.jobs.stop(self.job)

    # Downloads

    def report(self) -> Path:
        if self.run is None or not RunFolder(self.run).page.is_file():
            raise UserError("there is no report: only training writes one")
        return RunFolder(self.run).page

    def export(self, to: str) -> None:
        """Export the model, in a job, to a folder that answers without this package."""
        with self.lock:
            if to not in TARGETS:
                raise UserError(f"unknown target {quoted(to)}{nearest(to, TARGETS)}")
            self._idle()
            self._model()
            assert self.run is not None
            out = self._new(to)
            self._start(
                "Exporting",
                ["export", self.run.name, "--to", to],
                out,
                lambda: self.exports.update({to: out}),
            )

    def zipped(self, what: str) -> Path:
        """A zip of the "model", of the model with its "images", or of an export by its target."""
        with self.lock:
            if what not in (*TARGETS, "model", "images"):
                raise UserError(f"{quoted(what)}: not one of model, images, {', '.join(TARGETS)}")
            self._model()
            assert self.run is not None
            folder = self.exports.get(what) if what in TARGETS else self.run
            if folder is None:
                raise UserError(f"{quoted(what)}: not exported yet")
            more: dict[str, Path] = {}
            if what == "images":
                self.shelf.write()
                more = {name: self.folder / name for name in (IMAGES, *self.shelf.files())}
            path = self.folder / f"rmadapter-{what}.zip"
            pack(path, folder, "model" if folder is self.run else what, more)
            return path

    # Within

    def _idle(self) -> None:
        if self.busy:
            raise UserError(BUSY)

    def _model(self) -> Saved:
        if self.saved is None:
            raise UserError(NO_MODEL)
        return self.saved

    def _new(self, what: str) -> Path:
        """A new folder; models and exports that nothing uses any more are removed."""
        used = {self.run, self.base and self.base.run, *self.exports.values()}
        for old in [path for kind in ("model", *TARGETS) for path in self.folder.glob(f"{kind}-*")]:
            if old not in used:
                shutil.rmtree(old, ignore_errors=True)
        self._count += 1
        return self.folder / f"{what}-{self._count}"

    def _take(self, run: Path) -> None:
        with self.lock, self.shared.lock:
            saved = load(run, self.shared.backbone)
            self.run, self.saved, self.exports = run, saved, {}

    def _start(
        self, what: str, words: Sequence[str], out: Path, then: Callable[[], object]
    ) -> None:
        name = self.shared.backbone.name
        name = (
            str(user_path(name).absolute()) if user_path(name).exists() else name
        )  # a job runs in another folder
        more = ["--out", out.name, "--backbone", name, "--json"]
        self.job = Job(what, [*words, *more], self.folder, out, then)
        self.shared.jobs.add(self.job)
