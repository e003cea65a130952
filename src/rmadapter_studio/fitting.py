"""Encode the images of a project and fit to its labels, in a thread of its own."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

from rmadapter import Backbone, UserError
from rmadapter.runs import Gallery
from rmadapter_studio.project import Project
from rmadapter_studio.quick import Accuracy, Encoded, fit

BATCH = 16  # images encoded at once: others, and new labels, wait for no more


class Point(NamedTuple):
    """A point of the learning curve."""

    labelled: int
    accuracy: Accuracy


class Fitting:
    """What follows from the labels of a project. Methods may be called by several threads; nothing
    is computed before `start`.

    Args:
        project: The project.
        backbone: Backbone that encodes its images.
        lock: Returns what holds the backbone.
        keep: Whether features are kept on disk for the next start.

    Attributes:
        known: What is known of the encoded images.
        bad: Why images cannot be read, by name.
        curve: Accuracies as labels grew.
        trouble: Why the last fit failed, or "".
        done: Number of the last change of labels or encoded images that was fitted to.
    """

    def __init__(
        self,
        project: Project,
        backbone: Backbone,
        lock: Callable[[], AbstractContextManager[None]],
        keep: bool = False,
    ) -> None:
        self.project, self.backbone = project, backbone
        self._gallery = Gallery(backbone, keep)
        empty = Encoded((), self._gallery.features, self._gallery.groups)
        self.known = fit(empty, backbone, (), {})
        self.bad: dict[str, str] = {}
        self.curve: list[Point] = []
        self.trouble = ""
        self.done = 0
        self._lock = lock
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="rmadapter-labels", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread, after the batch that it is at."""
        with self.project.lock:
            self._ended = True
            self.project.lock.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def busy(self) -> bool:
        return bool(self._waiting()) or self.done < self._wanted

    @property
    def _wanted(self) -> int:
        """The number of the last change."""
        return self.project.version + len(self.known.images.names)

    def _waiting(self) -> list[str]:
        """Return the images to encode."""
        seen = self.known.images.row.keys() | self.bad.keys()
        return [name for name in self.project.images if name not in seen]

    def _work(self) -> None:
        while not self._ended:
            try:
                if self.done < self._wanted:
                    self._fit()
                elif self._waiting():
                    self._encode()
                else:
                    with self.project.lock:
                        if not self._ended and self.done == self._wanted:
                            self.project.lock.wait()
            except UserError as error:
                self.trouble = str(error)
                self.done = self._wanted
            except Exception:
                traceback.print_exc()
                self.trouble = "Internal error; see the server's terminal."
                return

    def _fit(self) -> None:
        wanted = self._wanted
        with self.project.lock:
            classes, labels = tuple(self.project.classes), self.project.labels
        with self._lock():
            self.known = fit(self.known.images, self.backbone, classes, labels)
        accuracy, labelled = self.known.accuracy(), int((self.known.labels >= 0).sum())
        if accuracy.images and not self._waiting():
            # after an undo, later points no longer hold
            before = [one for one in self.curve if one.labelled < labelled]
            self.curve = [*before, Point(labelled, accuracy)]
        self.trouble = ""
        self.done = wanted

    def _encode(self) -> None:
        """Encode the next images."""
        names = self._waiting()[:BATCH]
        paths = [self.project.path(name) for name in names]
        errors = self._gallery.add(paths, self._lock())
        good = []
        for name, path, error in zip(names, paths, errors, strict=True):
            if error:
                self.bad[name] = error.replace(str(path), name)
            else:
                good.append(name)
        if good:
            names = [*self.known.images.names, *good]
            images = Encoded(tuple(names), self._gallery.features, self._gallery.groups)
            # answers of before until the next fit; images without an answer have none
            self.known = self.known.beside(images)
