"""Label the images of a project in the page: proposals that follow each label.

Images have numbers instead of names in requests, so that no request can name a file.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict, cast

from rmadapter.artifacts.page import small_jpeg
from rmadapter.data.decode import image_error, load_image
from rmadapter.data.formats.write import SUFFIXES, coco, label_studio, table, zip_folders
from rmadapter.errors import UserError, quoted
from rmadapter.metrics import wilson
from rmadapter.support.files import atomic, write_json, write_text
from rmadapter_studio.fitting import Fitting
from rmadapter_studio.images import safe_name
from rmadapter_studio.quick import (
    ORDERS,
    SURE,
    Encoded,
    Judged,
    Quick,
    choose,
    neighbours,
    strangest,
)

MOST_CARDS = 200  # of one request
SIDES = {"small": 320, "large": 1280}  # pixels of the longer side
MOST_KEPT = 400  # small pictures in memory
VIEWS = ("open", "labelled", "skipped", "suspects", "mistakes", "confused", "unfamiliar")
PAIRS, BEHIND = 15, 4  # confusions that the page lists; small pictures of each
GONE = "This image is no longer in the folder."
Body = Mapping[str, object]


class Answer(TypedDict):
    label: str
    probability: float


class Card(TypedDict):
    """An image on the page. copies: near-duplicates that are labelled with it. label: "" for none.
    score: of the order, None if it has none. answers: the most probable labels first. suggested: a
    better label of a suspect, or the answer of a mistake, else ""."""

    id: str
    name: str
    copies: list[str]
    label: str
    skipped: bool
    score: float | None
    answers: list[Answer]
    suggested: str


class Confusion(TypedDict):
    """Judged images with a label that have another one as their answer. shown: some of them."""

    label: str
    answer: str
    images: int
    shown: list[str]


class Near(TypedDict):
    """A labelled image near another one. similarity: cosine of their features."""

    id: str
    label: str
    similarity: float


class Labelling:
    """The labels of a project and what follows from them. Methods may be called by several threads;
    they raise UserError with a message for the page.

    Nothing is computed before `start`. by: as in `Project`.
    """

    def __init__(self, fitting: Fitting) -> None:
        self.project, self.fitting = fitting.project, fitting
        self._ids: dict[str, str] = {}  # number -> name
        self._pictures: OrderedDict[str, bytes] = OrderedDict()
        self._number()

    def start(self) -> None:
        self.fitting.start()

    def close(self) -> None:
        """End the thread of `fitting`, after the batch that it is at."""
        self.fitting.close()

    # What the page shows

    def state(self, by: str = "") -> dict[str, object]:
        """Return counts, classes and what is being computed."""
        # before the results, so that these are no older than it says
        busy, version = self.fitting.busy, self.fitting.done
        project, (encoded, quick), bad = self.project, self.fitting.known, self.fitting.bad
        of_class = quick.of_class()
        with project.lock:
            counts, skipped, missing = project.counts(), len(project.skipped), project.missing
        classes = []
        for label, count in counts.items():
            right, judged = of_class.get(label, (0, 0))
            low, high = wilson(right, judged) if judged else (0.0, 100.0)
            numbers = {"images": count, "right": right, "judged": judged, "low": low, "high": high}
            classes.append({"label": label, **numbers})
        return {
            "folder": project.folder.resolve().name,
            "images": len(project.images),
            "encoded": len(encoded.names) + len(bad),
            "labelled": sum(counts.values()),
            "skipped": skipped,
            "missing": len(missing),
            "bad": [*project.left_out, *bad.values()],
            "classes": classes,
            "none": project.none_label(),
            "orders": [order for order in ORDERS if quick.table.shape[1] or order != SURE],
            "undoable": project.undoable(by),
            "fitting": busy,
            "version": version,
            "trouble": self.fitting.trouble,
            "accuracy": judged_json(quick.accuracy()),
            "suspects": len(quick.suspects()),
            "mistakes": len(quick.wrong()),
            "confusions": self._confusions(encoded, quick),
            "curve": [
                {"labelled": one.labelled, **(judged_json(one.judged) or {})}
                for one in self.fitting.curve
            ],
        }

    def _confusions(self, encoded: Encoded, quick: Quick) -> list[Confusion]:
        wrong = quick.wrong()
        confusions: list[Confusion] = []
        for label, answer, images in quick.confusions()[:PAIRS]:
            rows = [one.row for one in wrong if (one.label, one.answer) == (label, answer)]
            numbers = [number_of(encoded.names[row]) for row in rows]
            shown = [number for number in numbers if number in self._ids][:BEHIND]
            confusions.append({"label": label, "answer": answer, "images": images, "shown": shown})
        return confusions

    def cards(
        self, view: str, order: str = "", label: str = "", answer: str = "", n: int = 24,
        start: int = 0,
    ) -> list[Card]:  # fmt: skip
        """Return images to show.

        view: "open", those without label, in an order of `quick.ORDERS`; "unfamiliar", the same by
        their strangeness; "labelled", those of a class, the least probable first; "skipped";
        "suspects", those whose label looks wrong; "mistakes", labelled ones whose answer is another
        label, the surest first; or "confused", those of a label and an answer. start: number of
        images to pass over, except of open ones.
        """
        if view not in VIEWS:
            raise UserError(f"view: one of {', '.join(VIEWS)}")
        if not (1 <= n <= MOST_CARDS and start >= 0):
            raise UserError(f"n: from 1 to {MOST_CARDS}")
        encoded, quick = self.fitting.known
        place = {name: row for row, name in enumerate(encoded.names)}
        if view == "open":
            return self._open_cards(encoded, quick, place, order, n)
        with self.project.lock:
            here = {*self.project.images}
            labels = {name: own for name, own in self.project.labels.items() if name in here}
            done = labels.keys() | self.project.skipped
            skipped = sorted(self.project.skipped & here)
        suggested: dict[str, str] = {}
        scores: dict[str, float] = {}
        if view == "labelled":
            names = sorted(name for name, own in labels.items() if own == label)
            names.sort(key=lambda name: _share(quick, place.get(name), label))
        elif view == "skipped":
            names = skipped
        elif view == "unfamiliar":
            rows = [row for name, row in place.items() if name in here and name not in done]
            scores = {encoded.names[row]: score for row, score in strangest(encoded, quick, rows)}
            names = [*scores]
        else:
            suggested = _better(encoded, quick, view, label, answer)
            # a label may have changed since
            fitted = {name: quick.classes[quick.labels[place[name]]] for name in suggested}
            names = [name for name in suggested if labels.get(name) == fitted[name]]
        return [
            self._card(name, place, quick, (), scores.get(name), suggested.get(name, ""))
            for name in names[start : start + n]
        ]

    def _open_cards(
        self, encoded: Encoded, quick: Quick, place: Mapping[str, int], order: str, n: int
    ) -> list[Card]:
        with self.project.lock:
            done = self.project.labels.keys() | self.project.skipped | self.fitting.bad.keys()
            names = [name for name in self.project.images if name not in done]
        if order == SURE and not quick.table.shape[1] and len(self.project.classes) > 1:
            # the first proposals are being made, as after a restart
            return [self._card(name, place, quick, (), None) for name in names[:n]]
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
        encoded, quick = self.fitting.known
        place = {name: row for row, name in enumerate(encoded.names)}
        named = {number: self._ids.get(number, "") for number in numbers}
        return {number: _answers(quick, place.get(name)) for number, name in named.items()}

    def near(self, number: str) -> list[Near]:
        """Return the labelled images nearest to an image."""
        [name] = self._names([number])
        encoded, quick = self.fitting.known
        if name not in encoded.names:
            return []
        found = neighbours(encoded, quick, encoded.names.index(name))
        near: list[Near] = []
        for other, cosine in found:
            shown, label = number_of(encoded.names[other]), quick.classes[quick.labels[other]]
            if shown in self._ids:
                near.append({"id": shown, "label": label, "similarity": round(cosine, 4)})
        return near

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

    def add_classes(self, names: Sequence[str], by: str = "") -> None:
        with self._changing():
            self.project.add_classes(names, by)

    def remove_class(self, label: str, by: str = "") -> None:
        with self._changing():
            self.project.remove_class(label, by)

    def label(self, numbers: Sequence[str], label: str, by: str = "") -> None:
        """Label images; "" takes their labels away."""
        with self._changing():
            self.project.label(self._names(numbers), label, by)

    def skip(self, numbers: Sequence[str], by: str = "") -> None:
        with self._changing():
            self.project.skip(self._names(numbers), by)

    def undo(self, by: str = "") -> list[Card]:
        """Undo a person's last step; return the images that this changed, at most MOST_CARDS."""
        with self._changing():
            names = self.project.undo(by)
        encoded, quick = self.fitting.known
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
        self.fitting.changed()


def _answers(quick: Quick, row: int | None) -> list[Answer]:
    if row is None or row >= len(quick.table) or not quick.table.shape[1]:
        return []
    return [{"label": label, "probability": share} for label, share in quick.best(row)]


def _better(encoded: Encoded, quick: Quick, view: str, label: str, answer: str) -> dict[str, str]:
    """Return another label of each image of a view of labelled images, by name."""
    if view == "suspects":
        return {encoded.names[row]: better for row, better, _ in quick.suspects()}
    wrong = quick.wrong()
    if view == "confused":
        wrong = [one for one in wrong if (one.label, one.answer) == (label, answer)]
    return {encoded.names[one.row]: one.answer for one in wrong}


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
        _text(body, "answer", ""), _number(body, "n", 24), _number(body, "start", 0),
    )  # fmt: skip


ACTIONS: dict[str, Callable[[Labelling, Body, str], object]] = {
    "state": lambda labelling, _, by: labelling.state(by),
    "cards": lambda labelling, body, _: _cards(labelling, body),
    "answers": lambda labelling, body, _: labelling.answers(_list(body, "ids")),
    "near": lambda labelling, body, _: labelling.near(_text(body, "id")),
    "classes": lambda labelling, body, by: labelling.add_classes(_list(body, "names"), by),
    "remove": lambda labelling, body, by: labelling.remove_class(_text(body, "label"), by),
    "set": lambda labelling, body, by: labelling.label(
        _list(body, "ids"), _text(body, "label"), by
    ),
    "skip": lambda labelling, body, by: labelling.skip(_list(body, "ids"), by),
    "undo": lambda labelling, _, by: labelling.undo(by),
    "scan": lambda labelling, *_: labelling.scan(),
}
