"""Say in plain sentences how good a run is: what the screen shows, and how its page begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rmadapter import metrics

if TYPE_CHECKING:
    from rmadapter.artifacts.predictions import Predictions
    from rmadapter.artifacts.record import Judgement

WEAK_POINTS = 10.0  # percentage points below the accuracy from which a class is called weak
MAX_NAMED = 3  # classes, and mistakes, that a sentence names


class Confusion(NamedTuple):
    """Images of one class that are answered with another.

    Attributes:
        true: Class of the images.
        said: The answer.
        n: Number of these images.
        before: How many of them the untouched model answers so.
        total: Number of images of the class.
    """

    true: str
    said: str
    n: int
    before: int
    total: int


def confusions(predictions: Predictions, most: int) -> list[Confusion]:
    """Return the most common mistakes of the adapted model, the largest first.

    Args:
        predictions: Answers on a set.
        most: Number of mistakes at most.
    """
    names, truth = predictions.classes, predictions.true
    true, said, counts = metrics.confusions(truth, predictions.answer.which, len(names))
    total = np.bincount(truth, minlength=len(names))
    found = []
    for place in np.argsort(-counts, kind="stable")[:most]:
        t, s = true[place], said[place]
        before = int(((truth == t) & (predictions.zero_shot.which == s)).sum())
        found.append(Confusion(names[t], names[s], int(counts[place]), before, int(total[t])))
    return found


def how_many_right(judged: Judgement) -> str:
    """Say how many of 100 images are sorted right, with the 95 % interval."""
    ours = judged.fitted
    return (
        f"{ours.accuracy:.0f} of 100 of your images will be sorted right "
        f"({ours.low:.0f} to {ours.high:.0f})"
    )


def weak_classes(judged: Judgement) -> str:
    """Name the classes that are much weaker than all together, the weakest first; "" if there are
    none."""
    ours = judged.fitted
    pairs = [
        (recall, name)
        for recall, name in zip(ours.recalls, judged.classes, strict=True)
        if recall is not None and recall <= ours.accuracy - WEAK_POINTS
    ]
    pairs.sort(key=lambda pair: pair[0])
    named = [f"{name} ({recall:.0f} of 100)" for recall, name in pairs[:MAX_NAMED]]
    more = f" and {len(pairs) - MAX_NAMED} more" if len(pairs) > MAX_NAMED else ""
    return ", ".join(named) + more


def broken_promises(judged: Judgement) -> list[str]:
    """Return a sentence for each error that these images show to be broken: even the lower end of
    the interval of what was missed is above it."""
    return [
        f"a promised error of {promise.error:g} % was not kept: {promise.missed:.1f} % of these "
        f"images were missed ({promise.low:.1f} to {promise.high:.1f})"
        for promise in judged.promises
        if promise.low > promise.error
    ]


def describe_judged(judged: Judgement, mistakes: Sequence[Confusion]) -> list[str]:
    """Return plain sentences that follow `how_many_right`: weak classes, mistakes, what simpler
    models do, and broken promises.

    Args:
        judged: What the run's judgement found.
        mistakes: The most common mistakes, at most `MAX_NAMED`.
    """
    weak = weak_classes(judged)
    lines = [f"weak classes: {weak}" if weak else "no class is much weaker than the others"]
    if mistakes:
        named = [f"{one.true} taken for {one.said} ({one.n} of {one.total})" for one in mistakes]
        lines.append(f"most common mistakes: {', '.join(named)}")
    others = {row.name: f"{row.accuracy:.0f}" for row in judged.rows if row.p is not None}
    if others:
        named = [f"{name} {rate}" for name, rate in others.items()]
        lines.append(f"for comparison, of 100: {', '.join(named)}")
    return lines + broken_promises(judged)
