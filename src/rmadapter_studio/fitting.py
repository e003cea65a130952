"""Encode the images of a project and fit to its labels, in a thread of its own."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from rmadapter.backbones import Backbone
from rmadapter.data.duplicates import looks, pairs
from rmadapter.data.image_set import ImageReader, ImageSet
from rmadapter.errors import UserError
from rmadapter.settings import Machine
from rmadapter.training.cache import Cache
from rmadapter_studio.project import Project
from rmadapter_studio.quick import Encoded, Judged, Quick, fit

STEP = 16  # images encoded at once: others, and new labels, wait for no more
DISK = 1_000.0  # GB: the features of a project are few, and other commands remove old ones


class Point(NamedTuple):
    """A point of the learning curve."""

    labelled: int
    judged: Judged


class Fitting:
    """What follows from the labels of a project. Methods may be called by several threads; nothing
    is computed before `start`.

    known: the encoded images, and what is known of them. bad: why images cannot be read, by name.
    curve: accuracies as labels grew. trouble: why the last fit failed, or "". done: number of the
    last change that was fitted to. lock: of the backbone. keep: whether features may be kept on
    disk for the next start.
    """

    def __init__(
        self,
        project: Project,
        backbone: Backbone,
        lock: Callable[[], AbstractContextManager[None]],
        keep: bool = False,
    ) -> None:
        self.project, self.backbone = project, backbone
        empty = Encoded((), np.empty((0, backbone.embedding_size)), np.empty(0, int))
        self.known = (empty, fit(empty, backbone, (), {}))
        self.bad: dict[str, str] = {}
        self.curve: list[Point] = []
        self.trouble = ""
        self.done = 0
        self._wanted = 0  # number of the last change
        self._lock = lock
        machine = Machine(disk_cache=DISK if keep else 0.0)
        self._cache = Cache(backbone, machine, hold=False, progress=False)
        self._looks = looks([])
        self._links: list[tuple[int, int]] = []
        self._change = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="rmadapter-labels", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread, after the batch that it is at."""
        with self._change:
            self._ended = True
            self._change.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def changed(self) -> None:
        """Have the thread look at the project again."""
        with self._change:
            self._wanted += 1
            self._change.notify_all()

    @property
    def busy(self) -> bool:
        return self._waiting() > 0 or self.done < self._wanted

    def _waiting(self) -> int:
        """Return the number of images to encode."""
        encoded = self.known[0]
        return len({*self.project.images} - {*encoded.names} - self.bad.keys())

    def _work(self) -> None:
        with self._change:
            self._wanted += 1  # labels from before
        while not self._ended:
            try:
                if self.done < self._wanted:
                    self._fit()
                elif self._waiting():
                    self._encode()
                else:
                    with self._change:
                        if not self._ended and self.done == self._wanted:
                            self._change.wait()
            except UserError as error:
                self.trouble = str(error)
                self.done = self._wanted
            except Exception:
                traceback.print_exc()
                self.trouble = "Internal error; see the server's terminal."
                return

    def _fit(self) -> None:
        wanted, encoded = self._wanted, self.known[0]
        with self.project.lock:
            classes, labels = tuple(self.project.classes), dict(self.project.labels)
        with self._lock():
            quick = fit(encoded, self.backbone, classes, labels)
        self.known = (encoded, quick)
        judged, labelled = quick.accuracy(), int((quick.labels >= 0).sum())
        if judged and not self._waiting():
            # after an undo, later points no longer hold
            before = [one for one in self.curve if one.labelled < labelled]
            self.curve = [*before, Point(labelled, judged)]
        self.trouble = ""
        self.done = wanted

    def _encode(self) -> None:
        """Encode the next images, and link them with their near-duplicates."""
        encoded, quick = self.known
        seen = {*encoded.names} | self.bad.keys()
        names = [name for name in self.project.images if name not in seen][:STEP]
        reader = ImageReader()
        paths = {name: self.project.path(name) for name in names}
        errors = reader.read([*paths.values()], self.backbone.preprocess)
        good = []
        for name, error in zip(names, errors, strict=True):
            if error:
                self.bad[name] = error.replace(str(paths[name]), name)
            else:
                good.append(name)
        if not good:
            return
        files = tuple(paths[name] for name in good)
        images = ImageSet(files, (0,) * len(good), ("image",), reader=reader)
        with self._lock():
            features = self._cache.features(images)[0]
        unit = F.normalize(features.float(), dim=-1).cpu().numpy()
        fresh, start = looks(reader.thumbprints(files)), len(self._looks)
        self._looks = np.concatenate([self._looks, fresh])
        self._links += [(start + i, j) for i, j in pairs(fresh, self._looks)]
        count = len(self._looks)
        links = np.array(self._links, int).reshape(-1, 2)
        graph = coo_matrix((np.ones(len(links)), (links[:, 0], links[:, 1])), (count, count))
        together = np.asarray(connected_components(graph, directed=False)[1])
        both = np.concatenate([encoded.unit, unit])
        with self._change:
            self._wanted += 1  # first, so that it is never taken for done
        # answers of before until the next fit; images without an answer have none
        self.known = (Encoded((*encoded.names, *good), both, together), _padded(quick, len(good)))


def _padded(quick: Quick, more: int) -> Quick:
    """Add images without answers: all classes are equally probable."""
    classes = quick.table.shape[1]
    table = np.concatenate([quick.table, np.full((more, classes), 1 / max(classes, 1))])
    labels = np.concatenate([quick.labels, np.full(more, -1)])
    return Quick(quick.classes, table, labels, np.concatenate([quick.judged, np.zeros(more, bool)]))
