"""Rules that pick images to label, from unit features [N, e] and probabilities [N, C] of a pool.
docs/suggest.md compares them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

MOST = 500  # most clusters, as in Hacohen et al.
WIDER = 10  # times as many images as wanted are clustered by `mix`, as in Zhdanov's paper


class Pool(NamedTuple):
    """unit: features [N, e] of images to choose from. known: [M, e] of labelled ones. table:
    probabilities [N, C]; empty if there are no classes. seed: for everything random."""

    unit: np.ndarray
    known: np.ndarray
    table: np.ndarray
    seed: int = 1


class Picked(NamedTuple):
    """rows: of the pool, in the order to label them. scores: by the rule, higher is more wanted."""

    rows: np.ndarray
    scores: np.ndarray


Rule = Callable[[Pool, int], Picked]


def closeness(table: np.ndarray) -> np.ndarray:
    """[N], 0 to 1: 1 - the margin of the best class over the second (Scheffer et al., IDA 2001)."""
    best = np.sort(table, axis=1)
    closeness: np.ndarray = 1 - (best[:, -1] - best[:, -2])
    return closeness


def margin(pool: Pool, n: int) -> Picked:
    return _highest(closeness(pool.table), n)


def entropy(pool: Pool, n: int) -> Picked:
    """In nats (Shannon)."""
    return _highest(-(pool.table * np.log(np.maximum(pool.table, 1e-12))).sum(1), n)


def chance(pool: Pool, n: int) -> Picked:
    rows = np.random.default_rng(pool.seed).permutation(len(pool.unit))[:n]
    return Picked(rows, np.zeros(len(rows)))


def coverage(pool: Pool, n: int) -> Picked:
    """Always the image farthest, by 1 - cosine, from all that are labelled or picked: greedy
    k-centre (Sener and Savarese, ICLR 2018). With nothing labelled it starts at the image nearest
    to the mean."""
    far = (
        1 - (pool.unit @ pool.known.T).max(1) if len(pool.known) else pool.unit @ pool.unit.mean(0)
    )
    rows, scores = [], []
    for turn in range(min(n, len(pool.unit))):
        row = int(far.argmax())
        rows.append(row)
        scores.append(float(far[row]))
        near = 1 - pool.unit @ pool.unit[row]
        far = near if not turn and not len(pool.known) else np.minimum(far, near)
        far[rows] = -np.inf
    return Picked(np.array(rows, int), np.array(scores))


def typicality(pool: Pool, n: int) -> Picked:
    """Make one cluster per labelled and wanted image; take clusters in turn, fewest labelled and
    then largest first, and of each the image nearest to its centre, by cosine (after TypiClust:
    Hacohen et al., ICML 2022)."""
    points = np.concatenate([pool.known, pool.unit])
    found, centres = _clusters(points, min(len(pool.known) + n, MOST), pool.seed)
    own, labelled = (
        found[len(pool.known) :],
        np.bincount(found[: len(pool.known)], minlength=len(centres)),
    )
    near = (pool.unit * _unit(centres)[own]).sum(1)
    members = [np.flatnonzero(own == c) for c in range(len(centres))]
    members = [rows[np.argsort(-near[rows], kind="stable")] for rows in members]
    order = sorted(range(len(centres)), key=lambda c: (labelled[c], -len(members[c])))
    rows = [
        members[c][turn]
        for turn in range(max(map(len, members)))
        for c in order
        if turn < len(members[c])
    ][:n]
    return Picked(np.array(rows, int), near[rows])


def mix(pool: Pool, n: int) -> Picked:
    """Cluster the images with the smallest margin, ten times as many as wanted, into n clusters, in
    which small margins weigh more, and pick the one nearest to each centre (Zhdanov 2019, arXiv
    1901.05954)."""
    wide = margin(pool, WIDER * n)
    own, centres = _clusters(pool.unit[wide.rows], n, pool.seed, np.maximum(wide.scores, 1e-6))
    far = np.linalg.norm(pool.unit[wide.rows] - centres[own], axis=1)
    some = [np.flatnonzero(own == c) for c in range(len(centres))]
    best = np.array(sorted(rows[far[rows].argmin()] for rows in some if len(rows)), int)
    rest = np.setdiff1d(np.arange(len(wide.rows)), best)[
        : n - len(best)
    ]  # in place of empty clusters
    best = np.sort(np.concatenate([best, rest]))
    return Picked(wide.rows[best], wide.scores[best])


def balanced(pool: Pool, n: int) -> Picked:
    """Equally many of each class, as far as the probabilities are right: the classes in turn, and
    of each the typical images among those for which it is the most probable class."""
    classes, answer = pool.table.shape[1], pool.table.argmax(1)
    queues, scores = [], np.zeros(len(pool.unit))
    for c in range(classes):
        rows = np.flatnonzero(answer == c)
        if len(rows):
            part = pool._replace(unit=pool.unit[rows], known=pool.known[:0], table=pool.table[rows])
            found = typicality(part, min(-(-n // classes), len(rows)))
            scores[rows[found.rows]] = found.scores
            queues.append(rows[found.rows])
    taken = [q[turn] for turn in range(-(-n // classes)) for q in queues if turn < len(q)][:n]
    if len(taken) < n:  # classes that are the answer too rarely leave room
        rest = np.setdiff1d(np.arange(len(pool.unit)), taken)
        part = pool._replace(unit=pool.unit[rest], known=pool.unit[taken], table=pool.table[rest])
        more = typicality(part, n - len(taken))
        scores[rest[more.rows]] = more.scores
        taken += rest[more.rows].tolist()
    return Picked(np.array(taken, int), scores[taken])


NEXT: Mapping[str, Rule] = {
    "margin": margin, "entropy": entropy, "coverage": coverage, "typicality": typicality, "mix": mix, "random": chance,
}  # fmt: skip
FIRST: Mapping[str, Rule] = {
    "typicality": typicality, "balanced": balanced, "coverage": coverage, "random": chance,
}  # fmt: skip


def pick(rule: Rule, pool: Pool, n: int, together: np.ndarray | None = None) -> Picked:
    """At most n rows by a rule. together: [N] group numbers, as of near-duplicates; only the first
    image of each group can be picked."""
    firsts = (
        np.arange(len(pool.unit)) if together is None else np.unique(together, return_index=True)[1]
    )
    firsts = np.sort(firsts)
    table = pool.table[firsts] if len(pool.table) else pool.table
    found = rule(pool._replace(unit=pool.unit[firsts], table=table), min(n, len(firsts)))
    return Picked(firsts[found.rows], found.scores)


def _highest(scores: np.ndarray, n: int) -> Picked:
    rows = np.argsort(-scores, kind="stable")[:n]
    return Picked(rows, scores[rows])


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _clusters(
    points: np.ndarray, k: int, seed: int, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The cluster of each point [N], and the centres [k, e], by k-means."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters
        model = KMeans(min(k, len(points)), n_init=1, random_state=seed % 2**32).fit(
            points, sample_weight=weights
        )
    return model.labels_, model.cluster_centers_
