"""Label the images of a project in the page: proposals that follow each label, computed by a thread
of their own.

Images have numbers instead of names in requests, so that no request can name a file.
"""

from __future__ import annotations

import hashlib
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple, TypedDict, cast

import numpy as np
import torch.nn.functional as F
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from rmadapter.artifacts.page import small_jpeg
from rmadapter.backbones import Backbone
from rmadapter.curate.project import Project
from rmadapter.curate.quick import NEEDS_CLASSES, ORDERS, Encoded, Judged, Quick, choose, fit
from rmadapter.data.decode import image_error, load_image
from rmadapter.data.duplicates import looks, pairs
from rmadapter.data.formats.write import SUFFIXES, coco, label_studio, table, zip_folders
from rmadapter.data.image_set import ImageReader, ImageSet
from rmadapter.deploy.app.images import safe_name
from rmadapter.errors import UserError, quoted
from rmadapter.settings import Machine
from rmadapter.support.files import atomic, write_json, write_text
from rmadapter.training.cache import Cache

STEP = 16  # images encoded at once: others, and new labels, wait for no more
MOST_CARDS = 200  # of one request
SIDES = {"small": 320, "large": 1280}  # pixels of the longer side
MOST_KEPT = 400  # small pictures in memory
VIEWS = ("open", "labelled", "skipped", "suspects")
DISK = 1_000.0  # GB: the features of a project are few, and other commands remove old ones
GONE = "This image is no longer in the folder."
Body = Mapping[str, object]


class Answer(TypedDict):
    label: str
    probability: float


class Card(TypedDict):
    """An image on the page. copies: near-duplicates that are labelled with it. label: "" for none.
    score: of the order, None if it has none. answers: the most probable labels first. suggested: a
    better label of a suspect, else "" ."""

    id: str
    name: str
    copies: list[str]
    label: str
    skipped: bool
    score: float | None
    answers: list[Answer]
    suggested: str


class Point(NamedTuple):
    """A point of the learning curve."""

    labelled: int
    judged: Judged


class Labelling:
    """The labels of a project and what follows from them. Methods may be called by several threads;
    they raise UserError with a message for the page.

    lock: of the backbone. keep: whether features may be kept on disk for the next start. Nothing is
    computed before `start`.
    """

    def __init__(
        self,
        project: Project,
        backbone: Backbone,
        lock: Callable[[], AbstractContextManager[None]],
        keep: bool = False,
    ) -> None:
        self.project, self.backbone = project, backbone
        self._lock = lock
        machine = Machine(disk_cache=DISK if keep else 0.0)
        self._cache = Cache(backbone, machine, hold=False, progress=False)
        self._ids: dict[str, str] = {}  # number -> name
        self._bad: dict[str, str] = {}  # name -> why it cannot be read
        empty = Encoded((), np.empty((0, backbone.embedding_size)), np.empty(0, int))
        self._known = (empty, fit(empty, backbone, (), {}))
        self._looks = looks([])
        self._links: list[tuple[int, int]] = []
        self._curve: list[Point] = []
        self._trouble = ""
        self._wanted = self._done = 0  # numbers of the last change, and of the last one fitted to
        self._pictures: OrderedDict[str, bytes] = OrderedDict()
        self._change = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="rmadapter-labels", daemon=True)
        self._number()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread, after the batch that it is at."""
        with self._change:
            self._ended = True
            self._change.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    # What the page shows

    def state(self) -> dict[str, object]:
        """Return counts, classes and what is being computed."""
        # before the results, so that these are no older than it says
        fitting, version = self._waiting() > 0 or self._done < self._wanted, self._done
        project, (encoded, quick) = self.project, self._known
        of_class = quick.of_class()
        with project.lock:
            counts, skipped, missing = project.counts(), len(project.skipped), project.missing
        classes = [
            {"label": label, "images": count, "right": right, "judged": judged}
            for label, count in counts.items()
            for right, judged in [of_class.get(label, (0, 0))]
        ]
        return {
            "folder": project.folder.resolve().name,
            "images": len(project.images),
            "encoded": len(encoded.names) + len(self._bad),
            "labelled": sum(counts.values()),
            "skipped": skipped,
            "missing": len(missing),
            "bad": [*project.left_out, *self._bad.values()],
            "classes": classes,
            "none": project.none_label(),
            "orders": [
                order for order in ORDERS if quick.table.shape[1] or order not in NEEDS_CLASSES
            ],
            "undoable": project.undoable,
            "fitting": fitting,
            "version": version,
            "trouble": self._trouble,
            "accuracy": judged_json(quick.accuracy()),
            "suspects": len(quick.suspects()),
            "curve": [
                {"labelled": one.labelled, **(judged_json(one.judged) or {})} for one in self._curve
            ],
        }

    def cards(
        self, view: str, order: str = "", label: str = "", n: int = 24, start: int = 0
    ) -> list[Card]:
        """Return images to show.

        view: "open", those without label, in an order of `quick.ORDERS`; "labelled", those of a
        class, the least probable first; "skipped"; or "suspects", those whose label looks wrong.
        start: number of images to pass over, except of open ones.
        """
        if view not in VIEWS:
            raise UserError(f"view: one of {', '.join(VIEWS)}")
        if not (1 <= n <= MOST_CARDS and start >= 0):
            raise UserError(f"n: from 1 to {MOST_CARDS}")
        encoded, quick = self._known
        place = {name: row for row, name in enumerate(encoded.names)}
        if view == "open":
            return self._open_cards(encoded, quick, place, order, n)
        suggested: dict[str, str] = {}
        if view == "suspects":
            suspects = [(encoded.names[row], better) for row, better, _ in quick.suspects()]
            suggested = dict(suspects)
        with self.project.lock:
            here = {*self.project.images}
            labels = {name: own for name, own in self.project.labels.items() if name in here}
            names = sorted(self.project.skipped & here)
        if view == "labelled":
            names = sorted(name for name, own in labels.items() if own == label)
            names.sort(key=lambda name: _share(quick, place.get(name), label))
        elif view == "suspects":  # a label may have changed since
            names = [
                name for name, better in suggested.items() if labels.get(name, better) != better
            ]
        shown = names[start : start + n]
        return [self._card(name, place, quick, (), None, suggested.get(name, "")) for name in shown]

    def _open_cards(
        self, encoded: Encoded, quick: Quick, place: Mapping[str, int], order: str, n: int
    ) -> list[Card]:
        with self.project.lock:
            done = self.project.labels.keys() | self.project.skipped | self._bad.keys()
            names = [name for name in self.project.images if name not in done]
        rows = [place[name] for name in names if name in place]
        chosen = choose(encoded, quick, rows, order, n, seed=len(done) + 1)
        cards = [
            self._card(
                encoded.names[one.row], place, quick,
                [encoded.names[row] for row in one.copies], one.score,
            )
            for one in chosen
        ]  # fmt: skip
        rest = [name for name in names if name not in place] if len(cards) < n else []
        return cards + [self._card(name, place, quick, (), None) for name in rest[: n - len(cards)]]

    def answers(self, numbers: Sequence[str]) -> dict[str, list[Answer]]:
        """Return the most probable labels of images, by number."""
        encoded, quick = self._known
        place = {name: row for row, name in enumerate(encoded.names)}
        named = {number: self._ids.get(number, "") for number in numbers}
        return {number: _answers(quick, place.get(name)) for number, name in named.items()}

    def picture(self, number: str, size: str) -> bytes:
        """Return an image as a JPEG. size: a key of SIDES."""
        [name] = self._names([number])
        if size not in SIDES:
            raise UserError(f"{quoted(size)}: not a size")
        kept = self._pictures.get(number) if size == "small" else None
        if kept is None:
            try:
                kept = small_jpeg(load_image(self.project.path(name)), SIDES[size])
            except UserError as error:
                raise UserError(self._told(error, name)) from None
            if size == "small":
                self._pictures[number] = kept
                while len(self._pictures) > MOST_KEPT:
                    self._pictures.popitem(last=False)
        return kept

    def _card(
        self, name: str, place: Mapping[str, int], quick: Quick, copies: Sequence[str],
        score: float | None, suggested: str = "",
    ) -> Card:  # fmt: skip
        return {
            "id": number_of(name),
            "name": name,
            "copies": [number_of(copy) for copy in copies],
            "label": self.project.labels.get(name, ""),
            "skipped": name in self.project.skipped,
            "score": score,
            "answers": _answers(quick, place.get(name)),
            "suggested": suggested,
        }

    # What the page does

    def add_classes(self, names: Sequence[str]) -> None:
        with self._changing():
            self.project.add_classes(names)

    def remove_class(self, label: str) -> None:
        with self._changing():
            self.project.remove_class(label)

    def label(self, numbers: Sequence[str], label: str) -> None:
        """Label images; "" takes their labels away."""
        with self._changing():
            self.project.label(self._names(numbers), label)

    def skip(self, numbers: Sequence[str]) -> None:
        with self._changing():
            self.project.skip(self._names(numbers))

    def undo(self) -> list[Card]:
        """Undo the last step; return the images that it changed, at most MOST_CARDS."""
        with self._changing():
            names = self.project.undo()
        encoded, quick = self._known
        place = {name: row for row, name in enumerate(encoded.names)}
        return [self._card(name, place, quick, (), None) for name in names[:MOST_CARDS]]

    def scan(self) -> None:
        """Search the folder for images again."""
        with self._changing():
            self.project.scan()
            self._number()

    def add_image(self, file: Path, name: str) -> None:
        """Move an image into the folder. name: what its owner called it."""
        reason = image_error(file, header=True)
        if reason:
            raise UserError(reason.replace(str(file), name))
        with self._changing():
            added = self.project.add_image(file, safe_name(name))
            self._ids[number_of(added)] = added

    def take(self, to: str, folder: Path) -> Path:
        """Write the labels to a file in a folder, and return it: a zip with the images for class
        folders, else a file whose paths are relative to the project. to: a key of SUFFIXES."""
        if to not in SUFFIXES:
            raise UserError(f"{quoted(to)}: not one of {', '.join(SUFFIXES)}")
        rows, home = self.project.rows(), self.project.folder
        if not rows:
            raise UserError("no image has a label yet")
        splits = {"all": rows}
        file = folder / f"labels{SUFFIXES[to] or '.zip'}"
        try:
            if to == "csv":
                write_text(file, table(splits, home))
            elif to == "coco":
                write_json(file, coco(rows, home))
            elif to == "label-studio":
                write_json(file, label_studio(rows, home))
            else:
                with atomic(file, sync=False) as part:
                    zip_folders(splits, part)
        except UserError as error:
            raise UserError(str(error).replace(f"{home}/", "")) from None
        return file

    def _names(self, numbers: Sequence[str]) -> list[str]:
        names = [self._ids.get(number, "") for number in numbers]
        if not all(names):
            raise UserError(GONE)
        return names

    def _number(self) -> None:
        self._ids = {number_of(name): name for name in self.project.images}

    def _told(self, error: UserError, name: str) -> str:
        return str(error).replace(str(self.project.path(name)), name)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Have the thread look again after a change."""
        yield
        with self._change:
            self._wanted += 1
            self._change.notify_all()

    # The thread

    def _waiting(self) -> int:
        """Return the number of images to encode."""
        encoded = self._known[0]
        return len({*self.project.images} - {*encoded.names} - self._bad.keys())

    def _work(self) -> None:
        with self._change:
            self._wanted += 1  # labels from before
        while not self._ended:
            try:
                if self._done < self._wanted:
                    self._fit()
                elif self._waiting():
                    self._encode()
                else:
                    with self._change:
                        if not self._ended and self._done == self._wanted:
                            self._change.wait()
            except UserError as error:
                self._trouble = str(error)
                self._done = self._wanted
            except Exception:
                traceback.print_exc()
                self._trouble = "Internal error; see the server's terminal."
                return

    def _fit(self) -> None:
        wanted, encoded = self._wanted, self._known[0]
        with self.project.lock:
            classes, labels = tuple(self.project.classes), dict(self.project.labels)
        with self._lock():
            quick = fit(encoded, self.backbone, classes, labels)
        self._known = (encoded, quick)
        judged, labelled = quick.accuracy(), int((quick.labels >= 0).sum())
        if judged and not self._waiting():
            # after an undo, later points no longer hold
            before = [one for one in self._curve if one.labelled < labelled]
            self._curve = [*before, Point(labelled, judged)]
        self._trouble = ""
        self._done = wanted

    def _encode(self) -> None:
        """Encode the next images, and link them with their near-duplicates."""
        encoded, quick = self._known
        seen = {*encoded.names} | self._bad.keys()
        names = [name for name in self.project.images if name not in seen][:STEP]
        reader = ImageReader()
        paths = {name: self.project.path(name) for name in names}
        errors = reader.read([*paths.values()], self.backbone.preprocess)
        good = []
        for name, error in zip(names, errors, strict=True):
            if error:
                self._bad[name] = error.replace(str(paths[name]), name)
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
        self._known = (Encoded((*encoded.names, *good), both, together), _padded(quick, len(good)))


def _padded(quick: Quick, more: int) -> Quick:
    """Add images without answers: all classes are equally probable."""
    classes = quick.table.shape[1]
    table = np.concatenate([quick.table, np.full((more, classes), 1 / max(classes, 1))])
    labels = np.concatenate([quick.labels, np.full(more, -1)])
    return Quick(quick.classes, table, labels, np.concatenate([quick.judged, np.zeros(more, bool)]))


def _answers(quick: Quick, row: int | None) -> list[Answer]:
    if row is None or row >= len(quick.table) or not quick.table.shape[1]:
        return []
    return [{"label": label, "probability": share} for label, share in quick.best(row)]


def _share(quick: Quick, row: int | None, label: str) -> float:
    """Return the probability of a label; 1 for what is unknown."""
    if row is None or row >= len(quick.table) or label not in quick.classes:
        return 1.0
    return float(quick.table[row, quick.classes.index(label)]) if quick.table.shape[1] else 1.0


def number_of(name: str) -> str:
    """Return what stands for an image in requests."""
    return hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:16]


def judged_json(judged: Judged | None) -> dict[str, float] | None:
    return None if judged is None else judged._asdict()


# Requests


def _text(body: Body, field: str, default: str | None = None) -> str:
    value = body.get(field, default)
    if not isinstance(value, str):
        raise UserError(f"{field} is missing")
    return value


def _number(body: Body, field: str, default: int) -> int:
    value = body.get(field, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"{field} is not a whole number")
    return value


def _list(body: Body, field: str) -> list[str]:
    values = body.get(field)
    if not (isinstance(values, list) and values and all(isinstance(one, str) for one in values)):
        raise UserError(f"{field}: give at least one")
    return cast("list[str]", values)


def _cards(labelling: Labelling, body: Body) -> list[Card]:
    return labelling.cards(
        _text(body, "view"), _text(body, "order", ""), _text(body, "label", ""),
        _number(body, "n", 24), _number(body, "start", 0),
    )  # fmt: skip


ACTIONS: dict[str, Callable[[Labelling, Body], object]] = {
    "state": lambda labelling, _: labelling.state(),
    "cards": _cards,
    "answers": lambda labelling, body: labelling.answers(_list(body, "ids")),
    "classes": lambda labelling, body: labelling.add_classes(_list(body, "names")),
    "remove": lambda labelling, body: labelling.remove_class(_text(body, "label")),
    "set": lambda labelling, body: labelling.label(_list(body, "ids"), _text(body, "label")),
    "skip": lambda labelling, body: labelling.skip(_list(body, "ids")),
    "undo": lambda labelling, _: labelling.undo(),
    "scan": lambda labelling, _: labelling.scan(),
}
