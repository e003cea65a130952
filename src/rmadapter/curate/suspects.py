"""Find the suspects of a data set: every training image is judged by models trained on the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rmadapter.curate import label_rules as rules
from rmadapter.curate import oddities
from rmadapter.data.decode import complaint
from rmadapter.data.duplicates import groups, looks
from rmadapter.data.formats.sources import open_source
from rmadapter.data.image_set import one_label
from rmadapter.data.names import Label
from rmadapter.data.read import ImageSet, read_images
from rmadapter.errors import UserError
from rmadapter.runs.folds import FOLDS, Folds, split
from rmadapter.runs.request import Request
from rmadapter.runs.run import Lab
from rmadapter.support.files import user_path

METHOD = "linear-probe"
PROBE = {
    "search_steps": 0,
    "C": 3.0,
}  # chosen in docs/suspects.md, and many times faster than a search for C
WRONG = "wrong label"
ORDER = (
    "broken",
    "two labels",
    WRONG,
    "same file",
    "nearly the same",
    "one colour",
    "tiny",
    "blurred",
    "unlike",
)
SHOWN = 5  # neighbours of a suspect


class Neighbour(NamedTuple):
    """row: index among the images. similarity: cosine of the untouched features."""

    row: int
    image: str
    label: Label
    similarity: float


@dataclass(frozen=True)
class Suspect:
    """An image to check.

    image: as from `ImageSet.name`. given: its label. suggested, confidence: another label and its
    probability, from models that did not learn from this image; None if the label is not
    suspicious. reasons: each begins with an entry of ORDER. neighbours: the nearest images that are
    not copies of it. row: index among the images; None if broken.
    """

    image: str
    given: Label
    reasons: tuple[str, ...]
    suggested: Label | None = None
    confidence: float | None = None
    neighbours: tuple[Neighbour, ...] = ()
    row: int | None = None

    def json(self) -> dict[str, Any]:
        near = [
            {name: value for name, value in one._asdict().items() if name != "row"}
            for one in self.neighbours
        ]
        facts = {name: value for name, value in vars(self).items() if name != "row"}
        return {**facts, "neighbours": near}


@dataclass(frozen=True, eq=False)
class Found:
    """images: all readable ones. judged: how many labels were judged. suspects: the worst first."""

    images: ImageSet
    judged: int
    suspects: tuple[Suspect, ...]

    @property
    def total(self) -> int:
        """Number of training images, broken ones included."""
        return len(self.images) + sum(one.row is None for one in self.suspects)

    def counts(self) -> dict[str, int]:
        """Number of suspects with each kind of reason."""
        heads = [{kind(reason) for reason in one.reasons} for one in self.suspects]
        return {kind: n for kind in ORDER if (n := sum(kind in some for some in heads))}


def find_suspects(
    data: str | Path | ImageSet, method: str = METHOD, settings: Mapping[str, Any] | None = None, *,
    columns: Mapping[str, str] | None = None, outside: bool = False, progress: bool = True, lab: Lab | None = None,
) -> Found:  # fmt: skip
    """Find training images with a label that looks wrong, duplicates, and images that are broken,
    blurred, tiny, of one colour or unlike all others. Nothing is written.

    data: a folder of class folders, a table, or images in memory; of data with splits, train is
    used. method, settings: of the models that judge labels, as for `fit --method` and `--set`; the
    linear probe takes C = 3 unless set otherwise. columns, outside: as for `read_images`. lab: may
    hold a loaded backbone. docs/suspects.md describes the rules and how well they work. Raises
    UserError as `read_images` does, for a data set without training images, and for an unknown
    setting.
    """
    if isinstance(data, ImageSet):
        images, broken = data, []
    else:
        path = user_path(data)
        splits = read_images(
            path, skip_bad=True, outside=outside, progress=progress, columns=columns
        )
        images, broken = training(splits, path), _broken(path, splits, columns, outside)
    one_label(images.several, "suspects")
    asked = Request.make(
        {**(PROBE if method == METHOD else {}), **(settings or {}), "shots": 0}, method, data="it"
    )
    lab = lab or Lab(asked.machine, progress=progress)
    lab.add("it", {"train": images})
    images, seen = lab.draw(asked.task).train, looks(images.images, progress)
    together = groups(seen, images.groups)
    folds = Folds(asked.task, lab, images, split(images, FOLDS, asked.task.seed, together=together))
    features = lab.train_cache(asked.task).features(images)[0].float().cpu().numpy()
    near = rules.nearest(features, together)
    wrong, odd = _wrong(folds, asked), oddities.odd(oddities.measure(images.images, progress))
    unlike = oddities.outliers(near.cosines)
    suspects = []
    for i, copies in enumerate(oddities.copies(images, seen)):
        label, reasons = (
            wrong.get(i),
            [*copies, *odd[i], *["unlike all other images"] * bool(unlike[i])],
        )
        if label or reasons:
            suspects.append(
                (_suspect(images, i, label, reasons, near), label.score if label else 0.0)
            )
    suspects.sort(key=lambda pair: (ORDER.index(kind(pair[0].reasons[0])), -pair[1]))
    return Found(images, len(folds.rows), (*broken, *(one for one, _ in suspects)))


def training(splits: Mapping[str, Any], path: Path) -> Any:
    """The training split, from `read_images` or `open_source`. Raises UserError if there is none."""
    found = splits.get("train", splits.get("all"))
    if not found:
        raise UserError(
            f"{path}: no training images: the data has only {', '.join(splits)}; add a train split"
        )
    return found


def _broken(
    path: Path, splits: Mapping[str, ImageSet], columns: Mapping[str, str] | None, outside: bool
) -> list[Suspect]:
    """Training files that cannot be read."""
    images = training(splits, path)
    good, rows = {*images.images}, training(open_source(path, outside, columns).splits, path)
    bad = [row for row in rows if row.image not in good and not row.image.is_dir()]
    named = replace(
        images, images=tuple(row.image for row in bad), labels=(0,) * len(bad), groups=()
    )
    reasons = [complaint(row.image).removeprefix(f"{row.image}: ") for row in bad]
    return [
        Suspect(named.name(i), row.label, (f"broken: {reasons[i]}",)) for i, row in enumerate(bad)
    ]


class _Label(NamedTuple):
    suggested: int
    confidence: float
    score: float


def _wrong(folds: Folds, asked: Request) -> dict[int, _Label]:
    """Row -> suggested label, for images whose label looks wrong."""
    if not len(folds):
        return {}
    rows, labels = np.array(folds.rows), np.array(folds.judged.labels)
    table = folds.answers(asked.method, asked.name).table.astype(float)
    scores, better = rules.logit_margin(table, labels), rules.confident(table, labels)
    return {
        int(row): _Label(int(better[i]), float(table[i, better[i]]), float(scores[i]))
        for i, row in enumerate(rows)
        if better[i] not in (-1, labels[i])
    }


def _suspect(
    images: ImageSet, row: int, label: _Label | None, reasons: list[str], near: rules.Near
) -> Suspect:
    neighbours = tuple(
        Neighbour(int(j), images.name(int(j)), images.written[images.labels[j]], float(cosine))
        for j, cosine in zip(near.rows[row, :SHOWN], near.cosines[row, :SHOWN], strict=True)
        if np.isfinite(cosine)
    )
    ordered = sorted(
        [*[WRONG] * (label is not None), *reasons], key=lambda reason: ORDER.index(kind(reason))
    )
    suggested = None if label is None else images.written[label.suggested]
    confidence = None if label is None else label.confidence
    given = images.written[images.labels[row]]
    return Suspect(images.name(row), given, tuple(ordered), suggested, confidence, neighbours, row)


def kind(reason: str) -> str:
    """The entry of ORDER that a reason begins with."""
    return next(kind for kind in ORDER if reason.startswith(kind))
