"""Find images of a data set that look wrong, and write them as a list and as a page.

Every training image is judged by models trained on the others.
"""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from rmadapter.artifacts.page import neighbour_cards, thumbnail, write_html
from rmadapter.artifacts.predictions import Nearest, Neighbour, nearest
from rmadapter.backbones.packaged import POCKET_3
from rmadapter.data.decode import ImageSource, image_error, load_image
from rmadapter.data.duplicates import groups, pairs
from rmadapter.data.fewshot import FewShot
from rmadapter.data.formats.registry import locate
from rmadapter.data.image_set import Transform, relative
from rmadapter.data.names import Label
from rmadapter.data.read import ImageSet, read_images
from rmadapter.errors import UserError
from rmadapter.methods import DEFAULT
from rmadapter.runs.folds import FOLDS, Folds, split
from rmadapter.runs.lab import Lab
from rmadapter.runs.labels import Doubt, doubted_labels
from rmadapter.runs.request import Request
from rmadapter.runs.run import learn
from rmadapter.support.files import csv_text, inert, inert_path, user_path, write_text
from rmadapter.support.terminal import track

WRONG = "wrong label"
# of the logit of another class over that of the label, chosen in docs/studies/suspects.md
MIN_MARGIN = 1.5
# there, mean of 14 sets: of the labels called wrong, where these were random
RIGHT_ALARMS = (
    "of such alarms of a linear probe, with pocket-3, half were right where 5 % of the labels had "
    "been made wrong, two thirds where 10 % had, and a quarter where 1 % had; they found just "
    "under half of these"
)
MEANINGS = {  # kinds of reasons, the worst first
    "broken": "Files that cannot be read.",
    "two labels": "The same or nearly the same picture under different labels: at least one of "
    "them is wrong.",
    WRONG: "Another class reaches the probability that its own images have on average, and is "
    f"clearly ahead of the label. The clearest cases come first: {RIGHT_ALARMS}.",
    "same file": "Byte-for-byte copies of another training image of the same class, so of no use.",
    "nearly the same": "An image of the same class resized, mirrored or from the same burst.",
    "one colour": "Hardly anything to see.",
    "tiny": "Far smaller than the other images.",
    "blurred": "Far less sharp than the other images.",
    "unlike": "The 1 % of all images that are farthest from others, as the untouched model sees "
    "them.",
}
KINDS = tuple(MEANINGS)
MAX_NEIGHBOURS = 5  # neighbours of a suspect
COLUMNS = ("image", "given", "suggested", "confidence", "reasons", "neighbours", "decision")
MAX_CARDS = 60  # suspects of one kind on the page
NEIGHBOURS = 10
SHARPNESS_SIDE = (
    256  # pixels of the longer side to which an image is reduced to measure its sharpness
)
# modified z-score of an outlier (Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993)
OUTLIER_SCORE = 3.5
TINY, HALF = 64, 0.5  # tiny: a shorter side below TINY pixels and below HALF of the set's median
NTH, SHARE = 5, 0.01
FLAT = 4.0  # of 255: standard deviation of the channel that varies most

Split = TypeVar("Split")


@dataclass(frozen=True)
class Suspect:
    """An image to check.

    Attributes:
        image: Its name, as from `ImageSet.name`.
        given: Its label.
        reasons: What is suspicious; each begins with one of KINDS.
        suggested, confidence: Another label and its probability, from models that did not learn
            from this image; None if the label is not suspicious.
        neighbours: The nearest images that are not copies of this one.
        row: Index among the images; None if broken.
    """

    image: str
    given: Label
    reasons: tuple[str, ...]
    suggested: Label | None = None
    confidence: float | None = None
    neighbours: tuple[Neighbour, ...] = ()
    row: int | None = None

    def json(self) -> dict[str, object]:
        facts = {name: value for name, value in vars(self).items() if name != "row"}
        return {**facts, "neighbours": [near.json() for near in self.neighbours]}


@dataclass(frozen=True, eq=False)
class Suspects:
    """The suspects of a data set.

    Attributes:
        images: All readable images.
        judged: Number of labels that were judged.
        suspects: Images to check, the worst first.
    """

    images: ImageSet
    judged: int
    suspects: tuple[Suspect, ...]

    @property
    def total(self) -> int:
        """Number of training images, broken ones included."""
        return len(self.images) + sum(one.row is None for one in self.suspects)

    def counts(self) -> dict[str, int]:
        """Count the suspects with each kind of reason."""
        kinds = [{kind(reason) for reason in one.reasons} for one in self.suspects]
        counts = {name: sum(name in each for each in kinds) for name in KINDS}
        return {name: count for name, count in counts.items() if count}


def find_suspects(
    data: str | Path | ImageSet,
    method: str = DEFAULT,
    settings: Mapping[str, object] | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    outside: bool = False,
    progress: bool = True,
    lab: Lab | None = None,
) -> Suspects:
    """Find training images that look wrong; nothing is written.

    An image looks wrong if models of the other images contradict its label, if it is a duplicate,
    or if it is broken, blurred, tiny, of one colour, or unlike all others.
    docs/reference/curate.md has the rules, docs/studies/suspects.md how well they work.

    Args:
        data: A folder of class folders, a table, or images in memory; of data with splits, train is
            used.
        method: Method whose models judge labels, as for `fit --method`.
        settings: Settings of that method, as for `--set`.
        columns: Names of columns, as for `read_images`.
        outside: Whether a table may name images outside its folder.
        progress: Whether to show bars on stderr.
        lab: A lab, which may hold a loaded backbone.

    Returns:
        `images`, all readable ones; `judged`, how many labels were judged; `suspects`, the worst
        first, each with its `image`, `given` label, `reasons`, `suggested` label and `confidence`.

    Raises:
        UserError: As for `read_images`; no training images; an unknown setting.

    Example:
        >>> from rmadapter import find_suspects, read_images
        >>> images = read_images("colors")["train"]
        >>> twice = images.subset([*range(24), 0])  # the first image again
        >>> suspects = find_suspects(twice, settings={"backbone": "tiny"}).suspects
        >>> suspects[0].image, suspects[0].reasons
        ('train/blue/0.png', ('same file as train/blue/0.png',))
    """
    broken: list[Suspect] = []
    read = partial(read_images, skip_bad=True, outside=outside, columns=columns, progress=progress)
    if isinstance(data, ImageSet):
        images = data
    else:
        path = user_path(data)
        images = training(read(path, check=False), path)
    values = {"backbone": POCKET_3, **(settings or {}), "shots": 0}
    request = Request.make(values, method, data="it")
    lab = lab or Lab(request.machine, progress=progress)
    transform = lab.backbone(request.task.backbone).preprocess
    if isinstance(data, ImageSet):
        images.read(transform, progress)
    else:
        good = _undamaged(images, transform, progress)
        # a class whose images are all damaged is left out
        images = training(read(path), path) if good is None else good
        broken = _broken(path, images, columns, outside)
    lab.add("it", {"train": images})
    few = lab.draw(request.task)
    images = few.train
    looked = images.looks(progress)
    together = groups(looked, images.groups)
    rows, table = _unseen(request, few, lab, together)
    features = lab.train_cache(request.task).features(images)[0].float().cpu().numpy()
    near = nearest(features, count=NEIGHBOURS, groups=together)
    wrong = _wrong_labels(rows, table, np.array(images.labels))
    odd = odd_reasons(measure(images.images, progress))
    unlike = outliers(near.cosines)
    suspects = []
    for i, copies in enumerate(copy_reasons(images, looked)):
        label = wrong.get(i)
        reasons = [*copies, *odd[i], *["unlike all other images"] * bool(unlike[i])]
        if label or reasons:
            suspect = _suspect(images, i, label, reasons, near)
            suspects.append((suspect, label.margin if label else 0.0))
    suspects.sort(key=lambda pair: (_severity(pair[0].reasons[0]), -pair[1]))
    return Suspects(images, len(rows), (*broken, *(one for one, _ in suspects)))


def training(splits: Mapping[str, Split], path: Path) -> Split:
    """Return the training split of `read_images` or `Listing`. Raises UserError if there is
    none."""
    train = splits.get("train", splits.get("all"))
    if not train:
        raise UserError(
            f"{path}: no training images, only {', '.join(splits)}; add a train split to the data"
        )
    return train


def kind(reason: str) -> str:
    """Return the kind that a reason begins with."""
    return next(kind for kind in KINDS if reason.startswith(kind))


def _severity(reason: str) -> int:
    return KINDS.index(kind(reason))


def _undamaged(images: ImageSet, transform: Transform, progress: bool) -> ImageSet | None:
    """Decode each image once for all that follows, and leave out those that cannot be decoded; None
    if a class has no others."""
    errors = images.reader.read(images.images, transform, progress)
    good = images.subset(row for row, error in enumerate(errors) if not error)
    return good if {*good.labels} == {*images.labels} else None


def _broken(
    path: Path, images: ImageSet, columns: Mapping[str, str] | None, outside: bool
) -> list[Suspect]:
    """List the training files that cannot be read.

    Args:
        path: Path of the data set.
        images: The readable ones.
        columns, outside: As for `find_suspects`.
    """
    readable = {*images.images}
    suspects = []
    for row in training(locate(path, columns, outside=outside).read().splits, path):
        if row.image not in readable and not row.image.is_dir():
            reason = image_error(row.image).removeprefix(f"{row.image}: ")
            name = relative(row.image, images.root)
            suspects.append(Suspect(name, row.label, (f"broken: {reason}",)))
    return suspects


def _unseen(
    request: Request, few: FewShot, lab: Lab, together: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of M images, and the probabilities [M, C] that models which did not see them
    give: left out by the method itself, or by four folds.

    Args:
        request: Method and task.
        few: The images.
        lab: Lab that holds the backbone.
        together: Group numbers [N] of the images.
    """
    task, method, images = request.task, request.method, few.train
    if not method.traits.leaves_out:
        parts = split(images, FOLDS, task.seed, together=together)
        folds = Folds(task, few, lab, images, parts)
        table = folds.answers(method, request.name).table if folds else np.empty((0, 0))
        return np.array(folds.rows, int), table.astype(float)
    left_out = learn(method, images, task, few, lab).left_out
    assert left_out is not None
    rows = np.flatnonzero(left_out.judged)
    return rows, left_out.table[rows]


def _wrong_labels(rows: np.ndarray, table: np.ndarray, labels: np.ndarray) -> dict[int, Doubt]:
    """Return a doubt for each row whose label looks wrong.

    Args:
        rows: Rows of M images.
        table: Probabilities [M, C] by models that did not see them.
        labels: Labels of all images.
    """
    if not len(rows):
        return {}
    doubts = doubted_labels(table, labels[rows])
    return {int(rows[doubt.row]): doubt for doubt in doubts if doubt.margin >= MIN_MARGIN}


def _suspect(
    images: ImageSet, row: int, label: Doubt | None, reasons: list[str], near: Nearest
) -> Suspect:
    neighbours = []
    for j, cosine in zip(
        near.rows[row, :MAX_NEIGHBOURS].tolist(), near.cosines[row].tolist(), strict=False
    ):
        if np.isfinite(cosine):
            written = images.written[images.labels[j]]
            neighbours.append(Neighbour(images.name(j), images.images[j], written, cosine))
    ordered = sorted([*[WRONG] * (label is not None), *reasons], key=_severity)
    suggested = None if label is None else images.written[label.better]
    confidence = None if label is None else label.probability
    written = images.written[images.labels[row]]
    return Suspect(
        images.name(row), written, tuple(ordered), suggested, confidence, tuple(neighbours), row
    )


# Rules for images, whatever their label


def measure(images: Sequence[ImageSource], progress: bool = False) -> np.ndarray:
    """Measure images.

    Sharpness is the variance of the Laplacian of the grey image with values in 0..255 (Pech-Pacheco
    et al., ICPR 2000), spread the standard deviation of the channel that varies most. Raises as
    `load_image` does.

    Args:
        images: N images.
        progress: Whether to show a bar on stderr.

    Returns:
        [N, 3] with the pixels of the shorter side, the sharpness and the spread.
    """
    with ThreadPoolExecutor() as pool:
        rows = track(pool.map(_measure, images), len(images), "looking at images", progress)
        return np.array([*rows]).reshape(-1, 3)


def _measure(source: ImageSource) -> tuple[float, float, float]:
    image = load_image(source)
    shorter = min(image.size)
    spread = np.asarray(image, np.float32).std((0, 1)).max()
    image.thumbnail((SHARPNESS_SIDE, SHARPNESS_SIDE), Image.Resampling.BICUBIC)
    grey = np.asarray(image.convert("L"), np.float32)
    middle = grey[1:-1, 1:-1]
    edges = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * middle
    return shorter, float(edges.var()) if edges.size else 0.0, float(spread)


def odd_reasons(measures: np.ndarray) -> list[list[str]]:
    """List what is wrong with each of N images.

    Args:
        measures: [N, 3], as from `measure`.
    """
    shorter, sharpness, spread = measures.T
    usual = np.median(shorter) if len(shorter) else 0.0
    flat = spread < FLAT
    tiny = (shorter < TINY) & (shorter < HALF * usual)
    blurred = (modified_z(np.log(np.maximum(sharpness, 1e-3))) < -OUTLIER_SCORE) & ~flat
    kinds = (("one colour", flat), ("tiny", tiny), ("blurred", blurred))
    return [[name for name, flags in kinds if flags[i]] for i in range(len(measures))]


def modified_z(values: np.ndarray) -> np.ndarray:
    """Return each value's distance [N] from the median in units of a standard deviation that is
    robust to outliers (see OUTLIER_SCORE)."""
    if not len(values):
        return values
    middle = np.median(values)
    spread = np.median(np.abs(values - middle))
    return 0.6745 * (values - middle) / spread if spread > 0 else np.zeros(len(values))


def outliers(cosines: np.ndarray) -> np.ndarray:
    """Flag [N] the SHARE of images that is farthest from its 5th neighbour (Ramaswamy et al.,
    SIGMOD 2000); of 100 images or more, some always are.

    Args:
        cosines: [N, k] to neighbours, nearest first; -inf, for no neighbour, is not far.
    """
    far = 1 - cosines[:, min(NTH, cosines.shape[1]) - 1]
    far[~np.isfinite(far)] = -np.inf
    flags = np.zeros(len(far), bool)
    flags[np.argsort(-far, kind="stable")[: int(SHARE * len(far))]] = True
    return flags & (far > 0)


def copy_reasons(images: ImageSet, looks: np.ndarray) -> list[list[str]]:
    """Name the other image that each of N images duplicates.

    Among copies with one label, all but the first are named; with two labels, all are, since either
    may be wrong.

    Args:
        images: The N images.
        looks: As from `duplicates.looks`.
    """
    others: dict[int, list[int]] = defaultdict(list)
    for i, j in pairs(looks, looks):
        if i != j and (j < i or images.labels[i] != images.labels[j]):
            others[i].append(j)
    reasons: list[list[str]] = [[] for _ in images.images]
    for i, rows in others.items():
        other = next((j for j in rows if images.labels[j] != images.labels[i]), rows[0])
        same = images.contents[i] == images.contents[other]
        reason = f"{'same file' if same else 'nearly the same'} as {images.name(other)}"
        if images.labels[other] != images.labels[i]:
            reason = f"two labels: {reason}, labelled {images.written[images.labels[other]]}"
        reasons[i] = [reason]
    return reasons


# The list and the page


def write_csv(path: Path, suspects: Suspects) -> None:
    """Write one row per suspect atomically, the worst first. An empty decision keeps the image as
    it is."""
    rows = []
    for one in suspects.suspects:
        near = "; ".join(f"{n.image} ({n.label}, {n.similarity:.2f})" for n in one.neighbours)
        guess = ["", ""]
        if one.confidence is not None:
            guess = [label_cell(one.suggested), f"{one.confidence:.3f}"]
        cells = [inert("; ".join(one.reasons)), inert(near), ""]
        rows.append([image_cell(one.image), label_cell(one.given), *guess, *cells])
    write_text(path, csv_text(COLUMNS, rows))


def image_cell(name: str) -> str:
    return _readable(inert_path(name))


def label_cell(label: Label | None) -> str:
    return _readable(inert(str(label)))


def _readable(text: str) -> str:
    """Return text as it is read back: file names that are not UTF-8 get backslashes."""
    return text.encode(errors="backslashreplace").decode()


def write_page(
    path: Path,
    suspects: Suspects,
    data: str,
    method: str,
    table: Path,
    options: Sequence[str] = ("--out", "CLEAN"),
) -> None:
    """Write the page atomically; it needs no network and no script.

    Args:
        path: The page.
        suspects: Suspects to show.
        data, method: Names to show.
        table: The list of the suspects.
        options: Options of the command that applies the list.
    """
    write_html(
        path,
        "suspects.html.j2",
        data=data,
        method=method,
        table=table.name,
        command=shlex.join(["rmadapter", "suspects", data, "--apply", str(table), *options]),
        total=len(suspects.suspects),
        images=suspects.total,
        judged=suspects.judged,
        sections=list(_sections(suspects)),
    )


def _sections(suspects: Suspects) -> Iterator[dict[str, object]]:
    """Group suspects by their worst reason."""
    for title, meaning in MEANINGS.items():
        group = [one for one in suspects.suspects if kind(one.reasons[0]) == title]
        if group:
            cards = [_card(suspects.images, one) for one in group[:MAX_CARDS]]
            yield {"title": title, "meaning": meaning, "count": len(group), "cards": cards}


def _card(images: ImageSet, one: Suspect) -> dict[str, object]:
    neighbours = neighbour_cards(one.neighbours)
    for card in neighbours:
        card["suggested"] = one.suggested is not None and card["label"] == one.suggested
    return {
        **vars(one),
        "src": "" if one.row is None else thumbnail(images.images[one.row]),
        "confidence": None if one.confidence is None else 100 * one.confidence,
        "neighbours": neighbours,
    }
