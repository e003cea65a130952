"""Choose a method by folds of the shots, the rule that docs/studies/choice.md measures.

`fit` had it until the study showed that it takes RMAdapter+ nearly always, and that always taking
RMAdapter+ gives the same accuracy.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import numpy as np

from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.runs.folds import CHEAP_COSTS, Folds
from rmadapter.training.contract import Method, NotApplicable
from rmadapter.training.traits import COSTS

# In order of preference, which the choosing sets decided.
CANDIDATES = (
    *("rmadapter-plus", "linear-probe", "linear-probe-pair", "linear-probe-zero-shot"),
    *("tip-adapter-f", "zero-shot", "zero-shot-ensemble"),
)
FEW_IMAGES = 8  # of a class; with fewer, PROBE_FOR_FEW comes before the plain probe
PROBE_FOR_FEW = "linear-probe-pair"
# by chance alone, one of several candidates is often ahead by one standard error
STANDARD_ERRORS = 2


def preferred(candidates: Sequence[str], images: float) -> list[str]:
    """Return the candidates in their order, but `PROBE_FOR_FEW` before the plain probe if a class
    usually has fewer than `FEW_IMAGES` images."""
    names = list(candidates)
    if images < FEW_IMAGES and PROBE_FOR_FEW in names and "linear-probe" in names:
        names.remove(PROBE_FOR_FEW)
        names.insert(names.index("linear-probe"), PROBE_FOR_FEW)
    return names


def methods_for(labels: Sequence[int]) -> dict[str, Method]:
    """Return the candidates for shots with these labels, in order of preference."""
    images = float(np.median(np.bincount(labels)))
    return {name: load_method(name) for name in preferred(CANDIDATES, images)}


def choose(folds: Folds, methods: Mapping[str, Method], minutes: float) -> str:
    """Return the most preferred candidate whose accuracy over the folds is within two standard
    errors of the best.

    Cheap candidates come first and are judged on all folds. Every other one is judged fold by fold,
    and only as long as `_settled` says that more folds may matter. The standard error is that of
    the paired difference on the images that both have answered. A candidate that could not be
    judged in time is left out.
    """
    deadline = time.monotonic() + 60 * minutes
    hits: dict[str, np.ndarray] = {}
    order = sorted(methods, key=lambda name: [*COSTS].index(methods[name].traits.cost))
    for name in order:
        try:
            hits[name] = _judge(folds, methods, name, hits, deadline)
        except (TimeoutError, NotApplicable, UserError) as error:
            print(f"{name} was left out: {error or 'would not finish in time'}")
    judged = {name: hits[name] for name in methods if name in hits}
    return [*judged][pick([*judged.values()])]


def _judge(
    folds: Folds,
    methods: Mapping[str, Method],
    name: str,
    others: Mapping[str, np.ndarray],
    deadline: float,
) -> np.ndarray:
    """Return which images a candidate is right about. others: the same of those before."""
    labels, method = np.array(folds.judged.labels), methods[name]
    cheap = method.traits.cost in CHEAP_COSTS and not method.test_views
    for count in range(len(folds) if cheap else 1, len(folds) + 1):
        if time.monotonic() > deadline:
            raise TimeoutError
        answers = folds.answers(method, name, count=count)
        right = answers.table.argmax(1) == labels[: len(answers.table)]
        if others and _settled(right, others, [*methods], name):
            break
    return np.asarray(right)


def _settled(
    right: np.ndarray, others: Mapping[str, np.ndarray], preferred: Sequence[str], name: str
) -> bool:
    """Return whether a candidate needs no more folds: it is shown to be behind the best other one,
    or is not behind it and preferred to it."""
    best = max(others, key=lambda other: others[other][: len(right)].mean())
    points, error = behind(right, others[best])
    wanted = preferred.index(name) < preferred.index(best)
    return points > STANDARD_ERRORS * error or (wanted and points <= 0)


def pick(hits: Sequence[np.ndarray]) -> int:
    """Return the place of the first candidate within two standard errors of the best.

    hits: of K candidates, in order of preference, whether each is right about the first images.
    """
    best = leader(hits)
    differences = [behind(right, best) for right in hits]
    return next(
        i for i, (points, error) in enumerate(differences) if points <= STANDARD_ERRORS * error
    )


def leader(hits: Sequence[np.ndarray]) -> np.ndarray:
    """Return the best candidate's hits: the first that no later one beats on the images that both
    answered."""
    best = hits[0]
    for right in hits[1:]:
        if behind(right, best)[0] < 0:
            best = right
    return best


def behind(right: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Return by how many points a candidate is behind another on the images that both answered, and
    the standard error of that difference."""
    count = min(len(right), len(other))
    lost = other[:count].astype(float) - right[:count]
    return 100 * float(lost.mean()), 100 * float(lost.std()) / math.sqrt(count)
