"""A folder of images that are being labelled: which class each image is of, and what was skipped.

Images are never moved or changed. Labels are in metadata.csv of the folder, in the form of Hugging
Face's ImageFolder, which every command reads; project.json has what that table cannot say.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeGuard

from rmadapter import UserError
from rmadapter.artifacts import exclusive, read_json, write_json
from rmadapter.data import (
    Row,
    check_unlabelled,
    image_files,
    is_catch_all,
    is_text,
    locate,
    prompt_names,
    typed_name,
    write_imagefolder,
)
from rmadapter_studio.images import MAX_CLASSES

TABLE, FACTS = "metadata.csv", "project.json"
COLUMNS = ("file_name", "label", "split")  # that the table may have
ADDED = "added"  # folder of images that came later, by the page
NONE = "none"  # label of images of none of the classes
SKIPPED = ""  # in place of a label
VERSION = 1
MAX_IMAGES = 20_000
MAX_STEPS = 1_000  # that can be undone
URL = re.compile(r"[a-z][a-z0-9+.]+:/", re.IGNORECASE)


class Step(NamedTuple):
    """What a step changed, to undo it.

    Attributes:
        before: Marks of images before, None for an image without.
        after: Marks of the same images after it.
        old_classes: All classes before.
        new_classes: All classes after it.
        by: Who did it.
    """

    before: Mapping[str, str | None]
    after: Mapping[str, str | None]
    old_classes: tuple[str, ...]
    new_classes: tuple[str, ...]
    by: str


class Project:
    """The labels of a folder of images. Every change is on disk before the method returns.

    Images are named by their paths relative to the folder, with forward slashes. Methods may be
    called by several threads. `by` is who changes something; each person undoes their own steps.

    Args:
        folder: The folder.

    Raises:
        UserError: No folder, one that holds labels in another format, or damaged files.

    Attributes:
        images: The images in the folder.
        left_out: Why files cannot be labelled.
        classes: All labels.
        marks: The label of each image, or `SKIPPED`. Some may not be in the folder at the moment:
            they are kept.
        lock: Held during a change, after which those who wait for it are notified.
        version: Grows with each change.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(os.path.expanduser(folder))
        self.images: tuple[str, ...] = ()
        self.left_out: tuple[str, ...] = ()
        self.classes: list[str] = []
        self.marks: dict[str, str] = {}
        self._steps: list[Step] = []
        self._last_numbers: dict[str, int] = {}  # that follow names which were taken
        self._seen: list[object] | None = None  # state of both files when they were read
        self.lock = threading.Condition()
        self.version = 0
        if not os.path.isdir(self.folder):
            raise UserError(f"{folder}: not a folder; give one with images to label")
        check_unlabelled(self.folder, TABLE)
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
        names = [path.relative_to(self.folder).as_posix() for path in image_files(self.folder)]
        reasons = {name: reason for name in names if (reason := unlistable(name))}
        good = [name for name in names if name not in reasons]
        if len(good) > MAX_IMAGES:
            raise UserError(
                f"{self.folder}: holds {len(good):,} images, and at most {MAX_IMAGES:,} can be "
                "labelled at once; label a part of them in a folder of its own"
            )
        with self.lock:
            self.images = tuple(good)
            self.left_out = tuple(f"{name!r:.80}: {why}" for name, why in reasons.items())
            self._notify()

    @property
    def labels(self) -> dict[str, str]:
        """The label of each image that has one."""
        with self.lock:
            return {name: mark for name, mark in self.marks.items() if mark != SKIPPED}

    @property
    def skipped(self) -> set[str]:
        """The images that were set aside."""
        with self.lock:
            return {name for name, mark in self.marks.items() if mark == SKIPPED}

    def path(self, name: str) -> Path:
        """Return the path of an image."""
        return self.folder / name

    def rows(self) -> list[Row]:
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
        return next((label for label in self.classes if is_catch_all(label)), NONE)

    # Changes

    def add_classes(self, names: Iterable[str], by: str = "") -> list[str]:
        """Add classes, and return their labels; those of existing classes that are the same in a
        prompt. Raises UserError as `typed_name`, and for too many."""
        with self.lock, self._changing(by):
            labels = [self._add_class(name) for name in names]
            if len(self.classes) > MAX_CLASSES:
                raise UserError(f"a project has at most {MAX_CLASSES:,} classes")
        return labels

    def remove_class(self, label: str, by: str = "") -> None:
        """Remove a class; its images have no label then. Raises UserError if there is none."""
        with self.lock, self._changing(by):
            if label not in self.classes:
                raise UserError(f"{label!r:.80}: no such class")
            self.classes.remove(label)
            for name, own in self.labels.items():
                if own == label:
                    del self.marks[name]

    def label(self, names: Collection[str], label: str, by: str = "") -> None:
        """Label images; "" takes their labels away. Raises UserError for an unknown image, and as
        `add_classes`."""
        with self.lock, self._changing(by):
            self._check_known(names)
            mark = self._add_class(label) if label else None
            for name in names:
                self._set(name, mark)

    def skip(self, names: Collection[str], by: str = "") -> None:
        """Set images aside without a label. Raises UserError for an unknown image."""
        with self.lock, self._changing(by):
            self._check_known(names)
            for name in names:
                self._set(name, SKIPPED)

    def undo(self, by: str = "") -> list[str]:
        """Undo the last step of a person, and return the images that this changed: what others have
        marked since stays. Raises UserError if there is no step."""
        with self.lock:
            step = next((step for step in reversed(self._steps) if step.by == by), None)
            if step is None:
                raise UserError("there is nothing to undo")
            with self._changing(by, keep=False):
                names = [name for name, mark in step.after.items() if mark == self.marks.get(name)]
                for name in names:
                    self._set(name, step.before[name])
                added = {*step.new_classes} - {*step.old_classes} - {*self.marks.values()}
                self.classes = [label for label in self.classes if label not in added]
                for i, label in enumerate(step.old_classes):
                    if label not in step.new_classes and label not in self.classes:
                        self.classes.insert(i, label)
            self._steps = [other for other in self._steps if other is not step]
            return names

    def add_image(self, file: Path, name: str) -> str:
        """Move a file into the folder as a new image, and return its name there.

        Args:
            file: The file.
            name: A safe file name, to which a number is added if it is taken.

        Raises:
            UserError: Too many images, or a disk that refuses.
        """
        with self.lock:
            if len(self.images) >= MAX_IMAGES:
                raise UserError(f"{name}: at most {MAX_IMAGES:,} images can be labelled at once")
            home = self.folder / ADDED
            target, number = home / name, self._last_numbers.get(name, 1)
            try:
                home.mkdir(exist_ok=True)
                if home.is_symlink():
                    raise UserError(f"{home}: a link; images are added to a folder alone")
                while os.path.lexists(target):
                    number += 1
                    target = home / f"{Path(name).stem}-{number}{Path(name).suffix}"
                self._last_numbers[name] = number
                shutil.move(file, target)
            except OSError as error:
                reason = error.strerror or error
                raise UserError(f"{name}: cannot be kept in {home} ({reason})") from None
            added = f"{ADDED}/{target.name}"
            self.images = (*self.images, added)
            self._notify()
            return added

    # Internal

    def _notify(self) -> None:
        self.version += 1
        self.lock.notify_all()

    def _check_known(self, names: Collection[str]) -> None:
        known = {*self.images}
        for name in names:
            if name not in known:
                raise UserError(f"{name!r:.80}: no such image; it may have been moved away")

    def _add_class(self, name: str) -> str:
        label = typed_name(name, self.classes)
        if label not in self.classes:
            self.classes.append(label)
        return label

    def _set(self, name: str, mark: str | None) -> None:
        self.marks.pop(name, None)
        if mark is not None:
            self.marks[name] = mark

    @contextmanager
    def _changing(self, by: str, keep: bool = True) -> Iterator[None]:
        """Write what the block changes; if it or the disk fails, all is as before. Files that were
        edited meanwhile are read first.

        Args:
            by: Who changes something.
            keep: Whether the step can be undone.
        """
        if self._stamp() != self._seen:
            self._read()
        classes, marks = [*self.classes], dict(self.marks)
        labels, skipped = self.labels, self.skipped
        try:
            yield
            self.classes += [one for one in {*self.labels.values()} if one not in self.classes]
            if self.labels != labels:
                self._write_table()
            if self.classes != classes or self.skipped != skipped:
                self._write_facts()
        except BaseException:
            self.classes, self.marks, self._seen = classes, marks, None
            raise
        self._seen = self._stamp()
        self._notify()
        names = [name for name in marks | self.marks if marks.get(name) != self.marks.get(name)]
        if keep and (names or classes != self.classes):
            before = {name: marks.get(name) for name in names}
            after = {name: self.marks.get(name) for name in names}
            step = Step(before, after, tuple(classes), tuple(self.classes), by)
            self._steps = [*self._steps, step][-MAX_STEPS:]

    def _write_table(self) -> None:
        file = self.folder / TABLE
        if self.labels:
            write_imagefolder(file, self.labels)
        else:
            file.unlink(missing_ok=True)  # a table without rows is refused

    def _write_facts(self) -> None:
        facts = {"project": VERSION, "classes": self.classes, "skipped": sorted(self.skipped)}
        write_json(self.folder / FACTS, facts)

    def _stamp(self) -> list[object]:
        """Return what changes when another program writes one of the files."""
        stamps: list[object] = []
        for name in (TABLE, FACTS):
            with suppress(OSError):
                status = (self.folder / name).stat()
                stamps.append((name, status.st_ino, status.st_size, status.st_mtime_ns))
        return stamps

    def _read(self) -> None:
        seen = self._stamp()
        labels = self._read_table()
        classes, skipped = self._read_facts()
        together = [*dict.fromkeys([*classes, *labels.values()])]
        prompt_names(together, where=f"{self.folder}: ")  # raises for Cat and cat
        self.classes = together
        self.marks = dict.fromkeys(skipped, SKIPPED) | labels
        self._seen = seen

    def _read_table(self) -> dict[str, str]:
        file = self.folder / TABLE
        if not os.path.lexists(file):
            return {}
        splits = locate(file, columns={"image": COLUMNS[0]}).read().splits
        others = [name for name in _columns(file) if name not in COLUMNS]
        if others:
            raise UserError(
                f"{file}: has the column {others[0]!r:.80}, which labelling here would lose; "
                f"rename the file, or leave only {COLUMNS[0]} and label"
            )
        labels: dict[str, str] = {}
        for split, rows in splits.items():
            if split not in ("all", "train"):
                raise UserError(
                    f"{file}: has images of the split {split!r}, which labelling here would lose; "
                    "leave only those of train"
                )
            for row in rows:
                name = row.image.relative_to(self.folder).as_posix()
                if labels.setdefault(name, row.label) != row.label:
                    raise UserError(f"{file}: {name!r:.80} has two labels; keep one")
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
        return [" ".join(name.split()) for name in classes], skipped


def unlistable(name: str) -> str:
    """Return why a table cannot name an image, or ""."""
    if not is_text(name):
        return "its name is not UTF-8; rename it"
    if name != name.strip():
        return "its name begins or ends with a space; rename it"
    if URL.match(name):
        return "its name looks like a web address; rename it"
    return ""


def _columns(table: Path) -> list[str]:
    with open(table, newline="", encoding="utf-8-sig") as file:
        first = file.readline()
        delimiter = max(",;\t", key=first.count)
        return [name.strip() for name in next(csv.reader([first], delimiter=delimiter))]


def _are_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
