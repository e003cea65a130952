"""What one visitor does: images, training, questions and downloads, all in a private folder."""

from __future__ import annotations

import os
import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from rmadapter import UserError, load
from rmadapter.artifacts import RunFolder, Saved, atomic, thumbnail
from rmadapter.data import image_files, load_image, typed_name, unpack_zip
from rmadapter.runs import add_names, can_add_names, caveat, classify_by_names
from rmadapter_studio.copies import copy_run
from rmadapter_studio.images import (
    IMAGES,
    MAX_BYTES,
    MAX_CLASSES,
    MAX_IMAGES,
    MAX_ZIP_BYTES,
    ImageStore,
    called,
)
from rmadapter_studio.jobs import Job
from rmadapter_studio.labelling import Labelling
from rmadapter_studio.project import Project
from rmadapter_studio.promises import look
from rmadapter_studio.scores import read_scores, record_of
from rmadapter_studio.shared import MAX_PROMPTS, Shared

METHODS = ("block-ridge", "rmadapter-plus")
TARGETS = ("onnx", "web")
BUSY = "Something is already running: wait for it, or stop it."
NO_MODEL = "There is no classifier yet: train one, or use the names alone."
# of a stranger's run: 5 to 35 s of processor time with pocket, by their length
MAX_PROMPTS_OF_STRANGERS = 1_000
MAX_SECONDS_OF_STRANGERS = 120.0  # until they are given up
TOO_LONG = "The names of this model take too long to read here: try again later, or use fewer."
PROJECT = "project"  # folder of a visitor's own images to label
ANSWER_SIDE = 320  # pixels of the longer side of an image shown beside its answers


class Base(NamedTuple):
    """An opened run, whose own images are not in the store.

    Attributes:
        run: Folder of the run.
        data: Where the images are, "" if unknown.
    """

    run: Path
    data: str


class Session:
    """One visitor's work. Methods raise UserError with a message for the page, and then leave
    everything as it was."""

    def __init__(self, folder: Path, shared: Shared) -> None:
        self.folder = folder
        self.shared = shared
        self.images = ImageStore(folder)
        self.run: Path | None = None
        self.saved: Saved | None = None
        self.takes_names = False  # whether classes can be added to the model by name
        self.base: Base | None = None
        self.job: Job | None = None
        self.exports: dict[str, Path] = {}  # by target
        self.lock = threading.RLock()  # a browser may send several requests at once
        self._labelling: Labelling | None = None  # of the visitor's own project
        self._untrusted = False  # whether a stranger made the model, or the run that it continues
        self._left = False  # whether the visitor was removed
        self._count = 0
        self._project_bytes = 0

    @property
    def busy(self) -> bool:
        return self.job is not None and not self.job.ended

    @property
    def empty(self) -> bool:
        """Whether nothing would be lost with it."""
        return not (self.images.classes or self.run or self.job or self._labelling)

    @property
    def given(self) -> int:
        """The digits of the number of bytes that the visitor sent and that are in use, which names
        and the server's own runs do not add to; 0 for none."""
        sent = self.images.bytes + self._project_bytes
        if self.base and not self.base.data:  # a run that they uploaded
            sent += sum(file.stat().st_size for file in self.base.run.glob("*"))
        return len(str(sent)) if sent else 0

    @property
    def labelling(self) -> Labelling | None:
        """The project that is being labelled, if there is one."""
        return self.shared.labelling or self._labelling

    def close(self) -> None:
        """End all work; the folder can be removed then."""
        self._left = True
        self.stop()
        if self._labelling:
            self._labelling.fitting.close()

    def state(self) -> dict[str, object]:
        """Return everything that the page shows except images."""
        with self.lock:
            classes = self.images.classes.items()
            return {
                "classes": [
                    {"label": label, "images": len(images), "shown": self.images.shown(label)}
                    for label, images in classes
                ],
                "project": self._project_state(),
                "base": self.base and {"run": self.base.run.name, "grows": bool(self.base.data)},
                "runs": [*self.shared.run_folders()],
                "methods": METHODS,
                "targets": TARGETS,
                "exports": [*self.exports],
                "advice": caveat(self.shared.backbone.name),
                "model": self._model_state(),
                "job": self._job_state(),
            }

    def _project_state(self) -> dict[str, object] | None:
        if self.labelling is None:
            return None
        project = self.labelling.project
        counts = [count for count in project.counts().values() if count]
        return {
            "folder": project.folder.resolve().name if self.shared.project else "",
            "images": len(project.images),
            "labelled": sum(counts),
            "classes": len(counts),
        }

    def _model_state(self) -> dict[str, object] | None:
        if self.saved is None or self.run is None:
            return None
        labels = [str(label) for label in self.saved.labels]
        title = self.saved.fitted.method.title
        return {
            "run": self.run.name,
            "labels": labels,
            "method": title,
            "takes_names": self.takes_names,
            **self.saved.decider().possible(),
            "added": len(labels) - len(self.saved.fitted.classes),
        }

    def _job_state(self) -> dict[str, object] | None:
        job = self.job
        if job is None:
            return None
        return {
            "what": job.what,
            "state": job.state,
            "message": job.message,
            "share": job.share,
            "notes": job.notes,
            "place": self.shared.jobs.place(job),
        }

    # Labelling

    def label_image(self, file: Path, name: str) -> None:
        """Add an image without a label, of a name that its owner gave it, by moving its file."""
        with self.lock:
            size = file.stat().st_size
            if self._project_bytes + size > MAX_BYTES:
                raise UserError(
                    f"{name}: this page takes at most {MAX_BYTES / 1e9:.0f} GB of images"
                )
            self._own_labelling().add_image(file, name)
            self._project_bytes += size

    def label_zip(self, archive: Path) -> list[str]:
        """Add the images of a zip without labels; return a sentence for each that is left out."""
        bad = []
        with self._unzipped(archive) as inside:
            for file in image_files(inside):
                try:
                    self.label_image(file, file.relative_to(inside).as_posix())
                except UserError as error:
                    bad.append(str(error))
        return bad

    @contextmanager
    def _unzipped(self, archive: Path) -> Iterator[Path]:
        """Yield a folder with what a zip holds, which is then removed. Errors name the zip."""
        folder = self._new("unpacked")
        try:
            with called((archive, archive.name), (folder, archive.name)):
                yield unpack_zip(archive, folder, MAX_ZIP_BYTES, 2 * MAX_IMAGES)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _own_labelling(self) -> Labelling:
        """Return the project that is being labelled; the visitor's own is made if there is none."""
        if self.labelling is None:
            folder = self.folder / PROJECT
            folder.mkdir(exist_ok=True)
            self._labelling = self.shared.label(Project(folder))
            self._labelling.fitting.start()
        assert self.labelling is not None
        return self.labelling

    # Images and runs

    def remove(self, label: str) -> None:
        """Remove a class with its images, which nothing may be reading."""
        with self.lock:
            self._check_idle()
            self.images.remove(label)

    def add_image(self, file: Path, label: str, name: str) -> None:
        """Add an image of a class, of a name that its owner gave it, by moving its file."""
        with self.lock:
            self.images.add(file, label, name)

    def add_zip(self, archive: Path) -> dict[str, object]:
        """Add a zip of class folders, or of a run from this page; return the name of the run, ""
        for none, and a sentence for each image that is left out."""
        with self.lock:
            self._check_idle()
            with self._unzipped(archive) as inside:
                for run in (inside, inside / "model"):
                    if RunFolder(run).model.is_file():
                        return {"opened": archive.stem, "bad": self._open_zip(run, inside)}
                return {"opened": "", "bad": self.images.add_folder(inside)}

    def _open_zip(self, run: Path, inside: Path) -> list[str]:
        """Open the run of a zip, and add the images beside it, if there are any."""

        def start() -> None:
            self._open(run, "", untrusted=True)

        if not (inside / IMAGES).is_file() or RunFolder(inside).model.is_file():
            start()
            return []
        bad = self.images.add_folder(inside, start)
        self.base = None
        return bad

    def open(self, name: str) -> None:
        """Open a copy of one of the server's own runs. After one that was trained on the labels of
        the project, a training begins anew."""
        with self.lock:
            self._check_idle()
            runs = self.shared.run_folders()
            if name not in runs:
                raise UserError(f"unknown run {name!r:.80}")
            record = record_of(runs[name], Path.cwd())
            self._open(runs[name], _absolute(record.task.data) if record else "")
            if name in self.shared.kept():
                self.base = None

    def _open(self, run: Path, data: str, untrusted: bool = False) -> None:
        """Open a copy of a run, and remove all images.

        Args:
            run: Folder of the run.
            data: As in `Base`.
            untrusted: Whether a stranger made the run.
        """
        out = self._new("model")
        try:
            with self._called(out):
                copy_run(run, out, untrusted)
                self._use(out, untrusted)
        except BaseException:
            shutil.rmtree(out, ignore_errors=True)
            raise
        self.images.clear()
        self.base = Base(out, data)

    # Models

    def train(self, method: str) -> None:
        """Train on all images; an opened run goes on with its own method."""
        with self.lock:
            if method not in METHODS:
                raise UserError(f"unknown method {method!r:.80}; known are {', '.join(METHODS)}")
            self._check_idle()
            if self.base and not self.base.data:
                raise UserError(
                    "the images of this run are not here, and it cannot learn more without them"
                )
            data = self._training_data()
            out = self._new("model")
            words = ["fit", data, "--method", method]
            if self.base:
                old = ["--run-data", self.base.data, "--allow-outside"]
                words = ["add", self.base.run.name, data, *old]
            untrusted = self._untrusted and bool(self.base)
            is_kept = self.shared.project is not None and data != IMAGES

            def use() -> None:
                if is_kept:
                    self.shared.keep(out)
                self._use(out, untrusted)

            self.start("Training", [*words, "--shots", "0"], out, use)

    def _training_data(self) -> str:
        """Write what to train on, and return its path for a command in the visitor's folder: the
        labelled project, or else the images of each class."""
        if self.labelling is None or not self.labelling.project.labels:
            self.images.write()
            return IMAGES
        folder = self.labelling.project.folder
        return str(folder.resolve()) if self.shared.project else folder.name

    def use_names(self) -> None:
        """Make a zero-shot classifier from the class names alone; nothing is trained."""
        with self.lock:
            self._check_idle()
            typed = self.labelling.project.classes if self.labelling else []
            labels = [*(self.images.classes or typed)]
            if len(labels) < 2:
                raise UserError(
                    "add at least two classes: a classifier needs something to tell apart"
                )
            out = self._new("model")
            with self._backbone(untrusted=False):
                classify_by_names(self.shared.backbone, labels, out)
            self._use(out)
            self.base = None

    def add(self, names: Sequence[str]) -> None:
        """Add classes to the model by name alone."""
        with self.lock:
            self._check_idle()
            saved, _ = self._model()
            out = self._new("model")
            if len(saved.labels) + len(names) > MAX_CLASSES:
                raise UserError(f"this page takes at most {MAX_CLASSES:,} classes")
            with self._backbone(self._untrusted):
                add_names(saved, [*map(typed_name, names)], out)
            self._use(out, self._untrusted)

    def predict(self, file: Path, name: str) -> dict[str, object]:
        """Return what is said of an image, which errors call by its owner's name: all classes with
        their probabilities, the most probable first, and what `look` says; and a small copy as a
        data: address."""
        saved, _ = self._model()
        with called((file, name)), self._backbone(self._untrusted):
            image = load_image(file)
            table, seen = look(saved, image)
            src = thumbnail(image, ANSWER_SIDE)
        shares = zip(saved.labels, table.tolist(), strict=True)
        classes = [
            {"label": str(label), "probability": probability}
            for label, probability in sorted(shares, key=lambda share: -share[1])
        ]
        return {"classes": classes, "src": src, **seen}

    def scores(self) -> dict[str, object] | None:
        _, run = self._model()
        with self._called(run):
            return read_scores(run, self.folder)

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
                raise UserError(f"unknown target {to!r:.80}; known are {', '.join(TARGETS)}")
            self._check_idle()
            _, run = self._model()
            out = self._new(to)
            words = ["export", run.name, "--to", to]
            self.start("Exporting", words, out, lambda: self.exports.update({to: out}))

    def zipped(self, what: str) -> Path:
        """Zip the "model", the model with its "images", or an export by its target."""
        with self.lock:
            if what not in (*TARGETS, "model", "images"):
                raise UserError(f"{what!r:.80}: not one of model, images, {', '.join(TARGETS)}")
            _, run = self._model()
            folder = self.exports.get(what) if what in TARGETS else run
            if folder is None:
                raise UserError(f"{what!r:.80}: not exported yet")
            images: dict[str, Path] = {}
            if what == "images":
                self.images.write()
                images = {name: self.folder / name for name in (IMAGES, *self.images.files())}
            path = self.folder / f"rmadapter-{what}.zip"
            write_zip(path, folder, "model" if folder is run else what, images)
            return path

    # Internal

    @contextmanager
    def _backbone(self, untrusted: bool) -> Iterator[None]:
        """Hold the backbone for a model, which a stranger may have made. Its texts are given up
        when their time is over, or the visitor is removed."""
        end = time.monotonic() + MAX_SECONDS_OF_STRANGERS

        def check() -> None:
            if self._left or (untrusted and time.monotonic() > end):
                raise UserError(TOO_LONG)

        with self.shared.held(MAX_PROMPTS_OF_STRANGERS if untrusted else MAX_PROMPTS, check):
            yield

    def _called(self, run: Path) -> AbstractContextManager[None]:
        """Name no paths of this machine, of a run and the backbone, in errors of the block."""
        backbone = self.shared.backbone.name
        name = PureWindowsPath(backbone).name or backbone
        return called((f"{run}{os.sep}", ""), (run, "the run"), (backbone, name))

    def _check_idle(self) -> None:
        if self.busy:
            raise UserError(BUSY)

    def _model(self) -> tuple[Saved, Path]:
        """Return the model that answers, and its folder."""
        if self.saved is None or self.run is None:
            raise UserError(NO_MODEL)
        return self.saved, self.run

    def _new(self, what: str) -> Path:
        """Name a new folder; models and exports that nothing uses any more are removed."""
        with self.lock:
            # the job comes first: once it has ended, one of the others has its folder
            writing = self.job.out if self.job and not self.job.ended else None
            used = {writing, self.run, self.base and self.base.run, *self.exports.values()}
            for kind in ("model", *TARGETS):
                for folder in [*self.folder.glob(f"{kind}-*")]:
                    if folder not in used:
                        shutil.rmtree(folder, ignore_errors=True)
            self._count += 1
            return self.folder / f"{what}-{self._count}"

    def _use(self, run: Path, untrusted: bool = False) -> None:
        """Load a model, which a stranger may have made, and answer with it from now on."""
        with self.lock, self._backbone(untrusted):
            saved = load(run, self.shared.backbone)
            if saved.fitted.remembers:
                raise UserError(
                    "this page classifies each image by itself, but "
                    f"{saved.fitted.method.title} learns from earlier images: use another method"
                )
            takes_names = can_add_names(saved)
            self.saved, self.takes_names, self._untrusted = saved, takes_names, untrusted
            self.run = run
            self.exports = {}

    def start(
        self, what: str, words: Sequence[str], out: Path, on_success: Callable[[], object]
    ) -> None:
        """Start a job, which runs in the visitor's folder."""
        backbone = self.shared.backbone.name
        if os.path.exists(os.path.expanduser(backbone)):
            backbone = _absolute(backbone)
        options = ["--out", out.name, "--backbone", backbone, "--json"]
        self.job = Job(what, [*words, *options], self.folder, out, on_success)
        self.shared.jobs.add(self.job)


def _absolute(path: str) -> str:
    return str(Path(os.path.expanduser(path)).absolute())


def write_zip(path: Path, folder: Path, name: str, others: Mapping[str, Path]) -> None:
    """Write a zip atomically.

    Args:
        path: The zip.
        folder: Folder whose files it holds.
        name: Folder in the zip that they are below.
        others: Other files by their names in the zip.
    """
    files = [file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")]
    members = {f"{name}/{file.name}": file for file in files} | dict(others)
    with (
        atomic(path, sync=False) as temporary,
        # files may be older than 1980, where a clock may stand and zip begins
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive,
    ):
        for member, file in sorted(members.items()):
            archive.write(file, member)
