"""Label the images of a project in the page: proposals that follow each label.

Images have numbers instead of names in requests, so that no request can name a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from rmadapter import UserError
from rmadapter.artifacts import small_jpeg
from rmadapter.data import image_error, write_labels
from rmadapter_studio.fitting import Fitting
from rmadapter_studio.images import called, safe_name, with_image_ending
from rmadapter_studio.order import ORDERS, SURE, choose
from rmadapter_studio.project import SKIPPED
from rmadapter_studio.quick import Quick, neighbours, out_of_distribution

MAX_CARDS = 200  # of one request
SIDES = {"small": 320, "large": 1280}  # pixels of the longer side
VIEWS = ("open", "labelled", "skipped", "suspects", "mistakes", "confused", "unfamiliar")
MAX_CONFUSIONS = 15  # that the page lists
PICTURES_PER_CONFUSION = 4
FILES = {
    "csv": "labels.csv",
    "coco": "labels.json",
    "label-studio": "labels.json",
    "folders": "labels.zip",
}
NO_SUCH_IMAGE = "This image is no longer in the folder."


class LabelShare(TypedDict):
    """A label and its probability."""

    label: str
    probability: float


class Card(TypedDict):
    """An image on the page.

    Attributes:
        id: Number that stands for it.
        name: Its name.
        copies: Near-duplicates that are labelled with it.
        label: Its label, "" for none.
        skipped: Whether it was set aside.
        score: Score of the order, None if it has none.
        answers: Its most probable labels.
        suggested: A better label of a suspect, or the answer of a mistake, else "".
    """

    id: str
    name: str
    copies: list[str]
    label: str
    skipped: bool
    score: float | None
    answers: list[LabelShare]
    suggested: str


class Labelling:
    """The labels of a project and what follows from them. Methods may be called by several threads;
    they raise UserError with a message for the page. `by` is who changes something, as in
    `Project`.

    Args:
        fitting: What computes proposals, once it was started.
    """

    def __init__(self, fitting: Fitting) -> None:
        self.project, self.fitting = fitting.project, fitting
        self._names_of: dict[str, str] = {}  # by number
        self._number()

    # What the page shows

    def state(self, by: str = "") -> dict[str, object]:
        """Return counts, classes and what is being computed."""
        # before the results, so that these are no older than it says
        busy, version = self.fitting.busy, self.fitting.done
        project, quick, bad = self.project, self.fitting.known, self.fitting.bad
        with project.lock:
            counts, skipped, missing = project.counts(), len(project.skipped), project.missing
        classes = []
        for label, count in counts.items():
            judged, right, low, high = quick.accuracy(label)
            numbers = {"images": count, "right": right, "judged": judged, "low": low, "high": high}
            classes.append({"label": label, **numbers})
        accuracy = quick.accuracy()
        return {
            "folder": project.folder.resolve().name,
            "images": len(project.images),
            "encoded": len(quick.images.names) + len(bad),
            "labelled": sum(counts.values()),
            "skipped": skipped,
            "missing": len(missing),
            "bad": [*project.left_out, *bad.values()],
            "classes": classes,
            "none": project.none_label(),
            "orders": [order for order in ORDERS if quick.proposes or order != SURE],
            "undoable": project.undoable(by),
            "fitting": busy,
            "version": version,
            "trouble": self.fitting.trouble,
            "accuracy": accuracy._asdict() if accuracy.images else None,
            "suspects": len(quick.suspects()),
            "mistakes": len(quick.wrong()),
            "confusions": self._confusions(quick),
            "curve": [
                {"labelled": point.labelled, **point.accuracy._asdict()}
                for point in self.fitting.curve
            ],
        }

    def _confusions(self, quick: Quick) -> list[dict[str, object]]:
        """Return labels with another answer, the number of their images, and some of these."""
        confusions: list[dict[str, object]] = []
        for label, answer, rows in quick.confusions()[:MAX_CONFUSIONS]:
            numbers = [number_of(quick.images.names[row]) for row in rows]
            shown = [number for number in numbers if number in self._names_of]
            confusions.append({
                "label": label,
                "answer": answer,
                "images": len(rows),
                "shown": shown[:PICTURES_PER_CONFUSION],
            })  # fmt: skip
        return confusions

    def cards(
        self,
        view: str,
        order: str = "",
        label: str = "",
        answer: str = "",
        n: int = 24,
        start: int = 0,
    ) -> list[Card]:
        """Return images to show.

        Args:
            view: "open", those without label, in an order of `ORDERS`; "unfamiliar", the same by
                their out-of-distribution score; "labelled", those of a class, the least probable
                first; "skipped"; "suspects", those whose label looks wrong; "mistakes", labelled
                ones whose answer is another label, the surest first; or "confused", those of a
                label and an answer.
            order: Order of open images.
            label: Label of labelled and confused images.
            answer: Answer of confused images.
            n: Number of images.
            start: Number of images to pass over, except of open ones.
        """
        if view not in VIEWS:
            raise UserError(f"view: one of {', '.join(VIEWS)}")
        if not (1 <= n <= MAX_CARDS and start >= 0):
            raise UserError(f"n: from 1 to {MAX_CARDS}")
        quick = self.fitting.known
        if view == "open":
            return self._open_cards(quick, order, n)
        part = slice(start, start + n)
        with self.project.lock:
            here = {*self.project.images}
            labels, skipped = self.project.labels, self.project.skipped & here
        if view == "labelled":
            names = sorted(name for name, own in labels.items() if own == label and name in here)
            names.sort(key=lambda name: quick.share(name, label))
            return [self._card(quick, name) for name in names[part]]
        if view == "skipped":
            return [self._card(quick, name) for name in sorted(skipped)[part]]
        if view == "unfamiliar":
            open_names = here - labels.keys() - skipped
            rows = [row for name, row in quick.images.row.items() if name in open_names]
            scored = out_of_distribution(quick, rows)[part]
            return [self._card(quick, quick.images.names[row], score) for row, score in scored]
        better = quick.suspects()
        if view != "suspects":
            pair = (label, answer) if view == "confused" else None
            wrong = [one for one in quick.wrong() if pair in (None, (one.label, one.answer))]
            better = {one.row: one.answer for one in wrong}
        suggested = {quick.images.names[row]: other for row, other in better.items()}
        fitted = {quick.images.names[row]: quick.classes[quick.labels[row]] for row in better}
        # a label may have changed since
        names = [name for name in suggested if name in here and labels.get(name) == fitted[name]]
        return [self._card(quick, name, suggested=suggested[name]) for name in names[part]]

    def _open_cards(self, quick: Quick, order: str, n: int) -> list[Card]:
        with self.project.lock:
            done = self.project.marks.keys() | self.fitting.bad.keys()
            names = [name for name in self.project.images if name not in done]
        if order == SURE and not quick.proposes and len(self.project.classes) > 1:
            # the first proposals are being made, as after a restart
            return [self._card(quick, name) for name in names[:n]]
        encoded = quick.images
        rows = [encoded.row[name] for name in names if name in encoded.row]
        cards = []
        for one in choose(quick, rows, order, n, seed=len(done) + 1):
            copies = [number_of(encoded.names[row]) for row in one.copies]
            cards.append(self._card(quick, encoded.names[one.row], one.score, copies))
        rest = [name for name in names if name not in encoded.row]
        return cards + [self._card(quick, name) for name in rest[: n - len(cards)]]

    def answers(self, numbers: Sequence[str]) -> dict[str, list[LabelShare]]:
        """Return the most probable labels of images, by number."""
        quick = self.fitting.known
        return {number: _answers(quick, self._names_of.get(number, "")) for number in numbers}

    def near(self, number: str) -> list[dict[str, object]]:
        """Return the labelled images nearest to an image, by the cosines of their features."""
        [name] = self._names([number])
        quick = self.fitting.known
        if name not in quick.images.row:
            return []
        near: list[dict[str, object]] = []
        for row, cosine in neighbours(quick, quick.images.row[name]):
            shown, label = number_of(quick.images.names[row]), quick.classes[quick.labels[row]]
            if shown in self._names_of:
                near.append({"id": shown, "label": label, "similarity": round(cosine, 4)})
        return near

    def picture(self, number: str, size: str) -> bytes:
        """Return an image as a JPEG of a size of SIDES."""
        [name] = self._names([number])
        if size not in SIDES:
            raise UserError(f"{size!r:.80}: not a size")
        path = self.project.path(name)
        with called((path, name)):
            return small_jpeg(path, SIDES[size])

    def _card(
        self,
        quick: Quick,
        name: str,
        score: float | None = None,
        copies: Sequence[str] = (),
        suggested: str = "",
    ) -> Card:
        mark = self.project.marks.get(name)
        return {
            "id": number_of(name),
            "name": name,
            "copies": [*copies],
            "label": mark or "",
            "skipped": mark == SKIPPED,
            "score": score,
            "answers": _answers(quick, name),
            "suggested": suggested,
        }

    # What the page does

    def add_classes(self, names: Sequence[str], by: str = "") -> None:
        self.project.add_classes(names, by)

    def label(self, numbers: Sequence[str], label: str, by: str = "") -> None:
        """Label images; "" takes their labels away."""
        self.project.label(self._names(numbers), label, by)

    def skip(self, numbers: Sequence[str], by: str = "") -> None:
        self.project.skip(self._names(numbers), by)

    def undo(self, by: str = "") -> list[Card]:
        """Undo a person's last step; return the images that this changed, at most MAX_CARDS."""
        names = self.project.undo(by)
        return [self._card(self.fitting.known, name) for name in names[:MAX_CARDS]]

    def scan(self) -> None:
        """Search the folder for images again."""
        self.project.scan()
        self._number()

    def add_image(self, file: Path, name: str) -> None:
        """Move an image, under the name that its owner gave it, into the folder."""
        with called((file, name)):
            reason = image_error(file, header=True)
            if reason:
                raise UserError(reason)
        added = self.project.add_image(file, with_image_ending(safe_name(name), file))
        self._names_of[number_of(added)] = added

    def take(self, to: str, folder: Path) -> Path:
        """Write the labels to a file in a folder, and return it.

        Args:
            to: A key of FILES. For class folders the file is a zip with the images; paths in others
                are relative to the project.
            folder: The folder.
        """
        if to not in FILES:
            raise UserError(f"{to!r:.80}: not one of {', '.join(FILES)}")
        rows, home = self.project.rows(), self.project.folder
        if not rows:
            raise UserError("no image has a label yet")
        with called((f"{home}/", "")):
            write_labels({"all": rows}, to, folder / FILES[to], home, replace=True)
        return folder / FILES[to]

    def _names(self, numbers: Sequence[str]) -> list[str]:
        names = [self._names_of.get(number, "") for number in numbers]
        if not all(names):
            raise UserError(NO_SUCH_IMAGE)
        return names

    def _number(self) -> None:
        self._names_of = {number_of(name): name for name in self.project.images}


def _answers(quick: Quick, name: str) -> list[LabelShare]:
    row = quick.images.row.get(name)
    if row is None or not quick.proposes:
        return []
    return [{"label": label, "probability": share} for label, share in quick.best(row)]


def number_of(name: str) -> str:
    """Return what stands for an image in requests."""
    return hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:16]
