"""A folder of images that are being labelled: which class each image is of, and what was skipped.

Images are never moved or changed. Labels are in metadata.csv of the folder, in the form of Hugging
Face's ImageFolder, which every command reads; project.json has what that table cannot say.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeGuard

from rmadapter.artifacts.checkpoint import MOST_CLASSES
from rmadapter.data.formats import class_folders, imagefolder
from rmadapter.data.formats.base import SPLITS, URL, Row, Rows, image_files
from rmadapter.data.formats.imagefolder import FILE
from rmadapter.data.formats.registry import find_format
from rmadapter.data.formats.tables import header, scan_table
from rmadapter.data.names import CATCH_ALL, key, typed_name
from rmadapter.errors import UserError, is_text, quoted
from rmadapter.support.files import (
    csv_text,
    inert_path,
    read_json,
    state_of,
    user_path,
    write_json,
    write_text,
)
from rmadapter.support.locks import exclusive

TABLE, FACTS = "metadata.csv", "project.json"
ADDED = "added"  # folder of images that came later, by the page
NONE = "none"  # label of images of none of the classes
VERSION = 1
MOST_IMAGES = 20_000
MOST_STEPS = 1_000  # that can be undone
UNKNOWN = ("?", "?")  # instead of the state of both files


class Mark(NamedTuple):
    """What is known of an image. label: "" for none."""

    label: str = ""
    skipped: bool = False


class Step(NamedTuple):
    """What a step changed, to undo it: marks of images, and all classes, before and after. by: who
    did it."""

    before: Mapping[str, Mark]
    after: Mapping[str, Mark]
    old_classes: tuple[str, ...]
    new_classes: tuple[str, ...]
    by: str


class Project:
    """The labels of a folder of images. Every change is on disk before the method returns.

    Images are named by their paths relative to the folder, with forward slashes. `labels` may name
    images that are not in the folder at the moment: they are kept. `left_out` says why files cannot
    be labelled. Methods may be called by several threads. by: who changes something; each person
    undoes their own steps.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open a folder. Raises UserError if it is none, if it holds labels in another format, and
        for damaged files."""
        self.folder = user_path(folder)
        self.images: tuple[str, ...] = ()
        self.left_out: tuple[str, ...] = ()
        self.classes: list[str] = []
        self.labels: dict[str, str] = {}
        self.skipped: set[str] = set()
        self._steps: list[Step] = []
        self._seen: tuple[str, str] = ("", "")
        self.lock = threading.RLock()
        if not self.folder.is_dir():
            raise UserError(f"{folder}: not a folder; give one with images to label")
        if self.folder.resolve().parts[:2] in class_folders.ENDLESS:
            raise UserError(f"{folder}: a folder of the system, which holds no images")
        self._check_format()
        self._read()
        self.scan()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder, so that no other process labels its images. Raises UserError if one
        does, or if nothing can be written there."""
        with exclusive(self.folder):
            yield

    # What there is

    def scan(self) -> None:
        """Search the folder for images again. Raises UserError if there are too many."""
        ignored: Counter[str] = Counter()
        names = [
            path.relative_to(self.folder).as_posix()
            for path in image_files(self.folder, set(), ignored)
        ]
        reasons = {name: reason for name in names if (reason := unlistable(name))}
        good = [name for name in names if name not in reasons]
        if len(good) > MOST_IMAGES:
            raise UserError(
                f"{self.folder}: holds {len(good):,} images, and at most {MOST_IMAGES:,} can be "
                "labelled at once; label a part of them in a folder of its own"
            )
        with self.lock:
            self.images = tuple(good)
            self.left_out = tuple(f"{quoted(name)}: {why}" for name, why in reasons.items())

    def path(self, name: str) -> Path:
        """Return the path of an image."""
        return self.folder / name

    def rows(self) -> Rows:
        """Return the labelled images that are in the folder, sorted by name."""
        with self.lock:
            here = {*self.images}
            labels = sorted(self.labels.items())
            return [Row(label, self.path(name)) for name, label in labels if name in here]

    def counts(self) -> dict[str, int]:
        """Return the number of labelled images of each class."""
        with self.lock:
            found = Counter(self.labels.values())
            return {label: found[label] for label in self.classes}

    @property
    def missing(self) -> list[str]:
        """Return the labelled images that are not in the folder."""
        with self.lock:
            return sorted(self.labels.keys() - {*self.images})

    def undoable(self, by: str = "") -> bool:
        return any(step.by == by for step in self._steps)

    def none_label(self) -> str:
        """Return the label of images of none of the classes: that of a class that is called so."""
        return next((label for label in self.classes if key(label) in CATCH_ALL), NONE)

    # Changes

    def add_classes(self, names: Iterable[str], by: str = "") -> list[str]:
        """Add classes, and return their labels; those of existing classes that are the same in a
        prompt. Raises UserError as `typed_name`, and for too many."""
        typed = [typed_name(name) for name in names]
        with self.lock, self._changing(by):
            labels = [self._add_class(name) for name in typed]
            if len(self.classes) > MOST_CLASSES:
                raise UserError(f"a project has at most {MOST_CLASSES:,} classes")
        return labels

    def remove_class(self, label: str, by: str = "") -> None:
        """Remove a class; its images have no label then. Raises UserError if there is none."""
        with self.lock, self._changing(by):
            if label not in self.classes:
                raise UserError(f"{quoted(label)}: no such class")
            self.classes.remove(label)
            self._mark([name for name, own in self.labels.items() if own == label], Mark())

    def label(self, names: Collection[str], label: str, by: str = "") -> None:
        """Label images; "" takes their labels away. Raises UserError for an unknown image, and as
        `add_classes`."""
        label = typed_name(label) if label else ""
        with self.lock, self._changing(by):
            self._check_known(names)
            self._mark(names, Mark(self._add_class(label) if label else ""))

    def skip(self, names: Collection[str], by: str = "") -> None:
        """Set images aside without a label. Raises UserError for an unknown image."""
        with self.lock, self._changing(by):
            self._check_known(names)
            self._mark(names, Mark("", True))

    def undo(self, by: str = "") -> list[str]:
        """Undo the last step of a person, and return the images that this changed: what others have
        marked since stays. Raises UserError if there is no step."""
        with self.lock:
            place = max((i for i, step in enumerate(self._steps) if step.by == by), default=-1)
            if place < 0:
                raise UserError("there is nothing to undo")
            step = self._steps[place]
            with self._changing(by, keep=False):
                names = [name for name, mark in step.after.items() if mark == self._mark_of(name)]
                for name in names:
                    self._set(name, step.before[name])
                added = {*step.new_classes} - {*step.old_classes} - {*self.labels.values()}
                self.classes = [label for label in self.classes if label not in added]
                for i, label in enumerate(step.old_classes):
                    if label not in step.new_classes and label not in self.classes:
                        self.classes.insert(i, label)
            del self._steps[place]
            return names

    def add_image(self, file: Path, name: str) -> str:
        """Move a file into the folder as a new image, and return its name there. name: a safe file
        name, to which a number is added if it is taken. Raises UserError if there are too many
        images, or the disk refuses."""
        with self.lock:
            if len(self.images) >= MOST_IMAGES:
                raise UserError(f"{name}: at most {MOST_IMAGES:,} images can be labelled at once")
            home = self.folder / ADDED
            target, number = home / name, 1
            try:
                home.mkdir(exist_ok=True)
                while os.path.lexists(target):
                    number += 1
                    target = home / f"{Path(name).stem}-{number}{Path(name).suffix}"
                shutil.move(file, target)
            except OSError as error:
                reason = error.strerror or error
                raise UserError(f"{name}: cannot be kept in {home} ({reason})") from None
            added = f"{ADDED}/{target.name}"
            self.images = (*self.images, added)
            return added

    # Internal

    def _check_known(self, names: Collection[str]) -> None:
        known = {*self.images}
        for name in names:
            if name not in known:
                raise UserError(f"{quoted(name)}: no such image; it may have been moved away")

    def _add_class(self, name: str) -> str:
        label = next((known for known in self.classes if key(known) == key(name)), "")
        if not label:
            self.classes.append(name)
        return label or name

    def _mark(self, names: Iterable[str], mark: Mark) -> None:
        for name in names:
            self._set(name, mark)

    def _set(self, name: str, mark: Mark) -> None:
        self.labels.pop(name, None)
        self.skipped.discard(name)
        if mark.label:
            self.labels[name] = mark.label
        if mark.skipped:
            self.skipped.add(name)

    @contextmanager
    def _changing(self, by: str, keep: bool = True) -> Iterator[None]:
        """Write what the block changes; if it or the disk fails, all is as before. Files that were
        edited meanwhile are read first. keep: whether the step can be undone."""
        if self._stamp() != self._seen:
            self._read()
        classes, labels, skipped = [*self.classes], dict(self.labels), {*self.skipped}
        try:
            yield
            self.classes += [one for one in {*self.labels.values()} if one not in self.classes]
            if self.labels != labels:
                self._write_table()
            if self.classes != classes or self.skipped != skipped:
                facts = {"project": VERSION, "classes": self.classes}
                write_json(self.folder / FACTS, {**facts, "skipped": sorted(self.skipped)})
        except BaseException:
            self.classes, self.labels, self.skipped = classes, labels, skipped
            self._seen = UNKNOWN
            raise
        self._seen = self._stamp()
        names = {*labels, *skipped, *self.labels, *self.skipped}
        before = {name: Mark(labels.get(name, ""), name in skipped) for name in names}
        changed = {name: mark for name, mark in before.items() if mark != self._mark_of(name)}
        if keep and (changed or classes != self.classes):
            after = {name: self._mark_of(name) for name in changed}
            step = Step(changed, after, tuple(classes), tuple(self.classes), by)
            self._steps = [*self._steps, step][-MOST_STEPS:]

    def _mark_of(self, name: str) -> Mark:
        return Mark(self.labels.get(name, ""), name in self.skipped)

    def _write_table(self) -> None:
        """Write the labels; no table if there are none, since one without rows is refused."""
        file = self.folder / TABLE
        if not self.labels:
            file.unlink(missing_ok=True)
            return
        # ImageFolder takes a first folder called test for a split, unless a column says otherwise
        has_splits = any(_first_folder(name) in SPLITS for name in self.labels)
        split = ["train"] * has_splits
        rows = [[inert_path(name), label, *split] for name, label in sorted(self.labels.items())]
        write_text(file, csv_text([FILE, "label", *["split"] * has_splits], rows))

    def _stamp(self) -> tuple[str, str]:
        """Return what changes when another program writes one of the files."""
        stamps = ["", ""]
        for place, name in enumerate((TABLE, FACTS)):
            with suppress(OSError):
                stamps[place] = state_of((self.folder / name).stat())
        return stamps[0], stamps[1]

    def _read(self) -> None:
        seen = self._stamp()
        labels = self._read_table()
        classes, skipped = self._read_facts()
        for label in labels.values():
            if label not in classes:
                classes.append(label)
        self.classes, self.labels, self._seen = classes, labels, seen
        self.skipped = {name for name in skipped if name not in labels}

    def _read_table(self) -> dict[str, str]:
        file = self.folder / TABLE
        if not os.path.lexists(file):
            return {}
        others = [name for name in header(file) if name not in (FILE, "label", "split")]
        if others:
            raise UserError(
                f"{file}: has the column {quoted(others[0])}, which labelling here would lose; "
                f"rename the file, or leave only {FILE} and label"
            )
        labels: dict[str, str] = {}
        for split, rows in scan_table(file, columns={"image": FILE}).items():
            if split not in ("all", "train"):
                raise UserError(
                    f"{file}: has images of the split {split!r}, which labelling here would lose; "
                    "leave only those of train"
                )
            for row in rows:
                name = row.image.relative_to(self.folder).as_posix()
                if labels.setdefault(name, row.label) != row.label:
                    raise UserError(f"{file}: {quoted(name)} has two labels; keep one")
        return labels

    def _read_facts(self) -> tuple[list[str], list[str]]:
        file = self.folder / FACTS
        if not os.path.lexists(file):
            return [], []
        facts = read_json(file)
        if not isinstance(facts, dict) or facts.get("project") != VERSION:
            raise UserError(f"{file}: not of this program; rename it")
        classes, skipped = facts.get("classes"), facts.get("skipped")
        if not (_are_texts(classes) and _are_texts(skipped)) or len({*classes}) != len(classes):
            raise UserError(f"{file}: damaged; delete it, which keeps all labels")
        return [typed_name(name) for name in classes], skipped

    def _check_format(self) -> None:
        """Raise UserError for a folder whose labels another format has, which would be read in
        place of these."""
        known = find_format(self.folder)
        ours = os.path.lexists(self.folder / TABLE)
        if known is class_folders or (known is imagefolder and ours):
            return
        raise UserError(
            f"{self.folder}: already holds labels, which every command reads; give a folder of "
            "images without labels"
        )


def unlistable(name: str) -> str:
    """Return why a table cannot name an image, or ""."""
    if not is_text(name):
        return "its name is not UTF-8; rename it"
    if name != name.strip():
        return "its name begins or ends with a space; rename it"
    if URL.match(name):
        return "its name looks like a web address; rename it"
    return ""


def _first_folder(name: str) -> str:
    first, slash, _ = name.partition("/")
    return first.casefold() if slash else ""


def _are_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
