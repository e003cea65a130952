"""Measure what four ideas for few images would bring, before any of them is built.

    python research/scripts/four_ideas.py --root DATA --out research/results/four_ideas.jsonl
    python research/scripts/four_ideas.py --out research/results/four_ideas.jsonl --tables \\
        --page research/studies/four_ideas.md

On the sets for choosing, with features of `pocket-3` in bfloat16, and quick classifiers of them in
the place of RMAdapter+:

- `forecast`: how accurate a model of twice or four times as many images will be, by a power law
  through the errors with a quarter, half and three quarters of those at hand;
- `stream`: a conformal test martingale on the distances of images from the class means, which
  should notice when images are no longer like those that calibrated;
- `find`: images of a class in the order of their similarity to its name, or to an example;
- `weights`: images weighted by how much a model that did not see them doubts their label.

Finished sets are kept: repeat the command to resume.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from all_images import LEFT_OUT
from PIL import ImageFilter
from sklearn.linear_model import LogisticRegression
from studies import CHOOSE_ALL, Lines, append_lines, make_parser, markdown, read_lines, show

from rmadapter.data.decode import load_image
from rmadapter.data.fewshot import split_digest
from rmadapter.methods.parts.features import unit
from rmadapter.prompts import zero_shot_weights
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.settings import Machine
from rmadapter.support.machine import versions
from rmadapter.support.terminal import track

BACKBONE, METHOD = "pocket-3", "linear-probe"
IDEAS = ("forecast", "stream", "find", "weights")
DRAWS = 6  # of the images at hand
PENALTY = 0.3  # of ridge regression
STREAMS, LENGTH, SHARE = 100, 100, 0.3  # of a stream: its images, and how many of them are others
ALARM = 20.0  # of a martingale: reached by at most one stream in twenty
POWERS = np.linspace(0.05, 0.95, 19)
BLUR = 3.0  # radius in pixels, of images that were made 224 pixels wide
FOUND = 4  # images of each class
PENALTIES = {"fit": 30.0, "doubt": 3.0}  # scikit-learn's C
LEAST = 0.1  # weight

Rng = np.random.Generator
Facts = dict[str, Any]


class Features(NamedTuple):
    """Unit features [N, e] and labels [N] of a set, and of its classes' names [C, e]."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    blurred: np.ndarray
    names: np.ndarray

    @property
    def classes(self) -> int:
        return int(self.train_labels.max()) + 1


def first_of_each(labels: np.ndarray, order: np.ndarray, count: int) -> np.ndarray:
    """Return the first `count` rows of each class in an order."""
    parts = [order[labels[order] == label][:count] for label in np.unique(labels)]
    return np.concatenate(parts)


def ridge(x: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the weights [e, C] of ridge regression of the labels."""
    targets = np.eye(classes)[labels] - 1 / classes
    solved: np.ndarray = np.linalg.solve(x @ x.T + PENALTY * np.eye(len(x)), targets)
    return x.T @ solved


def right_of_others(
    x: np.ndarray, labels: np.ndarray, classes: int, known: np.ndarray, others: np.ndarray
) -> np.ndarray:
    """Return which others [M] ridge regression of some rows is right about."""
    weights = ridge(x[known], labels[known], classes)
    right: np.ndarray = (x[others] @ weights).argmax(1) == labels[others]
    return right


def folds_of(labels: np.ndarray, rng: Rng, count: int = 4) -> np.ndarray:
    """Return the fold [N] of each row, drawn within each class."""
    folds = np.empty(len(labels), int)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        folds[rows] = np.arange(len(rows)) % count
    return folds


# Forecasts


def power_law(sizes: Sequence[float], errors: Sequence[float]) -> Callable[[float], float]:
    """Return the error as a power of the number of images, through some errors in percent, which
    never grows."""
    slope, start = np.polyfit(np.log(sizes), np.log(np.maximum(errors, 1.0)), 1)
    slope = min(slope, 0.0)
    start = start if slope else float(np.log(np.maximum(errors, 1.0)).mean())
    return lambda size: float(np.exp(start + slope * np.log(size)))


def forecast(one: Features, rng: Rng) -> list[Facts]:
    """Forecast accuracies by the images at hand, and measure them, in some draws."""
    return [line for count in (4, 8) for _ in range(DRAWS) for line in _forecast(one, count, rng)]


def _forecast(one: Features, count: int, rng: Rng) -> list[Facts]:
    """Draw so many images of each class; return a line for each larger number that the set has."""
    x, labels, classes = one.train, one.train_labels, one.classes
    order = rng.permutation(len(labels))
    rows = first_of_each(labels, order, count)
    folds = folds_of(labels[rows], rng)
    held = np.zeros(len(rows), bool)
    for fold in range(4):
        own = folds == fold
        held[own] = right_of_others(x, labels, classes, rows[~own], rows[own])
    errors = []
    for part in (count // 4, count // 2):
        draws = [first_of_each(labels, rng.permutation(rows), part) for _ in range(8)]
        rights = [
            right_of_others(x, labels, classes, few, np.setdiff1d(rows, few)) for few in draws
        ]
        errors.append(100 - 100 * float(np.mean([each.mean() for each in rights])))
    law = power_law((count / 4, count / 2, 0.75 * count), (*errors, 100 - 100 * held.mean()))
    spread = 164.5 * float(np.sqrt(held.mean() * (1 - held.mean()) / len(held)))
    now = _accuracies(one, rows)
    recalls = [held[labels[rows] == label].mean() for label in range(classes)]
    lines = []
    for more in (2 * count, 4 * count):
        if more <= np.bincount(labels).min():
            then = _accuracies(one, first_of_each(labels, order, more))
            gains, error = then - now, abs(float(then.mean()) - (100 - law(more)))
            lines.append({
                "images": count, "more": more, "gain": float(gains.mean()), "error": error,
                "unchanged": abs(float(then.mean()) - 100 * float(held.mean())),
                "covered": error <= spread,
                "weakest": bool(gains[int(np.argmin(recalls))] > gains.mean()),
            })  # fmt: skip
    return lines


def _accuracies(one: Features, rows: np.ndarray) -> np.ndarray:
    """Return the accuracy in percent of each class [C] by some images, on the test images."""
    weights = ridge(one.train[rows], one.train_labels[rows], one.classes)
    right = (one.test @ weights).argmax(1) == one.test_labels
    return np.array([100 * right[one.test_labels == label].mean() for label in range(one.classes)])


# Streams


def martingale(calibration: np.ndarray, stream: np.ndarray, rng: Rng) -> np.ndarray:
    """Return a conformal test martingale along a stream of scores: the mean of the power
    martingales of `POWERS` (Vovk, Nouretdinov & Gammerman, ICML 2003). Large scores are strange; a
    score is ranked among those that calibrated and those before it."""
    seen, logs, values = sorted(calibration.tolist()), np.zeros(len(POWERS)), []
    for score in stream.tolist():
        low, high = bisect.bisect_left(seen, score), bisect.bisect_right(seen, score)
        p = (len(seen) - high + rng.random() * (high - low + 1)) / (len(seen) + 1)
        logs += np.log(POWERS) + (POWERS - 1) * np.log(max(p, 1e-12))
        values.append(float(np.exp(logs).mean()))
        seen.insert(high, score)
    return np.array(values)


def distances(means: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return 1 - the cosine of each row to the nearest mean, [N]."""
    far: np.ndarray = 1 - (x @ means.T).max(1)
    return far


def means_of(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the unit mean of each class that has rows."""
    sums = np.stack([x[labels == label].sum(0) for label in np.unique(labels)])
    return sums / np.linalg.norm(sums, axis=1, keepdims=True)


def held_out_distances(x: np.ndarray, labels: np.ndarray, rng: Rng) -> np.ndarray:
    """Return the distance of each row from the means of the other folds, [N]."""
    folds, far = folds_of(labels, rng), np.empty(len(x))
    for fold in np.unique(folds):
        own = folds == fold
        far[own] = distances(means_of(x[~own], labels[~own]), x[own])
    return far


def streams(one: Features, others: Sequence[Features], rng: Rng) -> list[Facts]:
    """Count how many streams of each kind raise the alarm."""
    x, labels = one.train, one.train_labels
    means, calibration = means_of(x, labels), held_out_distances(x, labels, rng)
    known = distances(means, one.test)

    def alarms(draw: Callable[[int], tuple[np.ndarray, np.ndarray]]) -> float:
        raised = [martingale(*draw(number), rng).max() >= ALARM for number in range(STREAMS)]
        return 100 * float(np.mean(raised))

    def halves(_: int) -> tuple[np.ndarray, np.ndarray]:
        mixed = rng.permutation(known)
        return mixed[: len(mixed) // 2], mixed[len(mixed) // 2 :]

    def mixed(usual: np.ndarray, strange: np.ndarray) -> np.ndarray:
        is_strange = rng.random(LENGTH) < SHARE
        return np.where(is_strange, rng.choice(strange, LENGTH), rng.choice(usual, LENGTH))

    def new_class(number: int) -> tuple[np.ndarray, np.ndarray]:
        new = number % one.classes
        rest, is_new = labels != new, one.test_labels == new
        away = distances(means_of(x[rest], labels[rest]), one.test)
        calibrating = held_out_distances(x[rest], labels[rest], rng)
        return calibrating, mixed(away[~is_new], away[is_new])

    def other_set(number: int) -> tuple[np.ndarray, np.ndarray]:
        other = others[number % len(others)]
        return calibration, mixed(known, distances(means, other.test))

    blurred = distances(means, one.blurred)
    return [{
        "exchangeable": alarms(halves),
        "blur": alarms(lambda _: (calibration, mixed(known, blurred))),
        "another set": alarms(other_set),
        "new class": alarms(new_class),
    }]  # fmt: skip


# Finding


def looks_at_random(labels: np.ndarray, rng: Rng) -> int:
    """Return how many images a person looks at until `FOUND` of each class were seen."""
    counts = np.zeros(int(labels.max()) + 1, int)
    for looks, row in enumerate(rng.permutation(len(labels)), 1):
        counts[labels[row]] += 1
        if (counts >= FOUND).all():
            return looks
    return len(labels)


def looks_by_order(labels: np.ndarray, scores: np.ndarray) -> int:
    """Count looks class by class in the order of the scores [N, C]; no image is shown twice."""
    seen, counts = set[int](), np.zeros(scores.shape[1], int)
    for label in range(scores.shape[1]):
        for row in np.argsort(-scores[:, label], kind="stable").tolist():
            if counts[label] >= FOUND:
                break
            if row not in seen:
                seen.add(row)
                counts[labels[row]] += 1
    return len(seen)


def looks_by_example(labels: np.ndarray, x: np.ndarray, rng: Rng) -> int:
    """Count looks at random until a class has an example, then at what is nearest to its
    examples."""
    seen: list[int] = []
    counts, order = np.zeros(int(labels.max()) + 1, int), rng.permutation(len(labels)).tolist()
    while (counts < FOUND).any():
        begun = np.flatnonzero((counts > 0) & (counts < FOUND))
        if len(begun):
            examples = [row for row in seen if labels[row] == begun[0]]
            scores = (x @ x[examples].T).max(1)
            scores[seen] = -np.inf
            row = int(scores.argmax())
        else:
            row = next(row for row in order if row not in seen)
        seen.append(row)
        counts[labels[row]] += 1
    return len(seen)


def find(one: Features, rng: Rng) -> list[Facts]:
    """Count looks by each order, and how well names alone tell the classes apart."""
    x, labels, scores = one.train, one.train_labels, one.train @ one.names.T
    return [{
        "zero-shot": 100 * float((scores.argmax(1) == labels).mean()),
        "random": fmean(looks_at_random(labels, rng) for _ in range(50)),
        "words": looks_by_order(labels, scores),
        "example": fmean(looks_by_example(labels, x, rng) for _ in range(20)),
        "least": FOUND * one.classes,
    }]  # fmt: skip


# Weights


def weights_of(x: np.ndarray, labels: np.ndarray, rng: Rng) -> np.ndarray:
    """Return a weight [N] of each image, 1 on average: the probability of its label over the
    largest one, by logistic regression of the other folds."""
    folds = folds_of(labels, rng)
    weights = np.ones(len(labels))
    for fold in np.unique(folds):
        own = folds == fold
        fitted = LogisticRegression(C=PENALTIES["doubt"], max_iter=1000).fit(x[~own], labels[~own])
        table = fitted.predict_proba(x[own])
        places = np.searchsorted(fitted.classes_, labels[own])
        weights[own] = table[np.arange(len(table)), places] / table.max(1)
    weights = np.maximum(weights, LEAST)
    return weights / weights.mean()


def weighted(one: Features, rng: Rng) -> list[Facts]:
    """Compare plain and weighted fits with right labels, and with one in ten changed."""
    lines = []
    for _ in range(3):
        rows = first_of_each(one.train_labels, rng.permutation(len(one.train)), 16)
        x, labels = one.train[rows], one.train_labels[rows]
        changed, wrong = labels.copy(), rng.permutation(len(labels))[: len(labels) // 10]
        changed[wrong] = (changed[wrong] + rng.integers(1, one.classes, len(wrong))) % one.classes
        facts: Facts = {}
        for name, own in (("right", labels), ("changed", changed)):
            for title, weights in (("plain", None), ("weighted", weights_of(x, own, rng))):
                fitted = LogisticRegression(C=PENALTIES["fit"], max_iter=1000)
                fitted.fit(x, own, sample_weight=weights)
                facts[f"{name} {title}"] = 100 * fitted.score(one.test, one.test_labels)
        lines.append(facts)
    return lines


# Sets


def features_of(lab: Lab, data: str) -> tuple[Features, Facts]:
    """Encode a set; return its features, and what a line says of it."""
    values = {"shots": 0, "seed": 1, "backbone": BACKBONE}
    task = Request.make(values, METHOD, data=data).task
    few, test, backbone = lab.draw(task), lab.splits(data)["test"], lab.backbone(BACKBONE)
    blurred = replace(test, images=tuple(map(_blurred, test.images)))
    names = unit(zero_shot_weights(backbone, few.train.classes, task.templates)).numpy()
    train, tested, changed = (
        unit(cache(task).features(images)[0]).numpy()
        for cache, images in (
            (lab.train_cache, few.train), (lab.test_cache, test), (lab.test_cache, blurred),
        )
    )  # fmt: skip
    labels = np.array(few.train.labels), np.array(test.labels)
    facts = {"data": data, "split_digest": split_digest(few), "backbone": backbone.digest}
    return Features(train, labels[0], tested, labels[1], changed, names), facts


def _blurred(source: Any) -> Any:
    """Return an image of 224 pixels that is out of focus."""
    image = load_image(source)
    image.thumbnail((224, 224))
    return image.filter(ImageFilter.GaussianBlur(BLUR))


def tables(lines: Lines) -> Mapping[str, str]:
    """Return the tables by their names on the page."""
    asked = {name: [one for one in lines if one["idea"] == name] for name in IDEAS}

    def mean(idea: str, key: str, **where: object) -> float:
        chosen = [one for one in asked[idea] if where.items() <= one.items()]
        by_set: dict[str, list[float]] = defaultdict(list)
        for one in chosen:
            by_set[one["data"]].append(float(one[key]))
        return fmean(map(fmean, by_set.values()))

    forecasts = []
    for images, more in sorted({(one["images"], one["more"]) for one in asked["forecast"]}):
        sizes = {"images": images, "more": more}
        points = [mean("forecast", key, **sizes) for key in ("gain", "error", "unchanged")]
        shares = [100 * mean("forecast", key, **sizes) for key in ("covered", "weakest")]
        cells = [f"{value:.1f}" for value in points] + [f"{share:.0f}" for share in shares]
        forecasts.append([f"{images} to {more}", *cells])
    kinds = ("exchangeable", "blur", "another set", "new class")
    looks = []
    for one in sorted(asked["find"], key=lambda one: -one["zero-shot"]):
        counts = [f"{one[order]:.1f}" for order in ("random", "words", "example")]
        looks.append([one["data"], f"{one['zero-shot']:.0f}", *counts, str(one["least"])])
    changes = [
        [name, *(f"{mean('weights', f'{name} {how}'):.1f}" for how in ("plain", "weighted"))]
        for name in ("right", "changed")
    ]
    return {
        "four ideas: forecast": markdown(
            ["images of a class", "gain, points", "error of the forecast", "error of no change",
             "within the interval, %", "weakest class gains more, %"], forecasts,
        ),
        "four ideas: stream": markdown(
            ["streams that raise the alarm, in %", *kinds],
            [["mean of the sets", *(f"{mean('stream', kind):.1f}" for kind in kinds)],
             ["least of a set", *(f"{min(one[kind] for one in asked['stream']):.0f}"
                                  for kind in kinds)]],
        ),
        "four ideas: find": markdown(
            ["looks until four images of each class", "zero-shot accuracy, %", "at random",
             "by the name", "by an example", "possible"], looks,
        ),
        "four ideas: weights": markdown(["labels", "plain fit", "weighted fit"], changes),
    }  # fmt: skip


def main() -> None:
    sets = [name for name in CHOOSE_ALL if name not in LEFT_OUT]
    parser = make_parser(__doc__, sets, seeds=False)
    parser.add_argument("--page", type=Path, help="put the tables into this page")
    args = parser.parse_args()
    lines = read_lines(args.out)
    if args.tables:
        show(tables(lines), args.page)
        return
    known: dict[str, tuple[Features, Facts]] = {}
    for data in track(args.data, len(args.data), "sets"):
        lab = Lab(Machine(precision="bf16"), args.root, keep_features=True, progress=False)
        known[data] = features_of(lab, data)
    done = {one["data"] for one in lines}
    for number, (data, (one, facts)) in enumerate(known.items()):
        if data in done:
            continue
        rng = np.random.default_rng(number)
        others = [features for name, (features, _) in known.items() if name != data]
        found = {
            "forecast": forecast(one, rng),
            "stream": streams(one, others, rng),
            "find": find(one, rng),
            "weights": weighted(one, rng),
        }
        append_lines(args.out, [
            {**facts, "idea": idea, **line, "versions": versions()}
            for idea, own in found.items() for line in own
        ])  # fmt: skip


if __name__ == "__main__":
    main()
