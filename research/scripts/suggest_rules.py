"""The rules that the study of `suggest` compares for choosing which images to label. Two of them,
typicality and random, are offered by the labelling page, which has them in `rmadapter_studio`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

MOST_CLUSTERS = 500  # as in Hacohen et al.
WIDER = 10  # times as many images as wanted are clustered by `mix`, as in Zhdanov's paper
DEFAULT, RANDOM = "typicality", "random"


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
    """Return 1 - the margin of the best class over the second: [N], 0 to 1 (Scheffer et al., IDA
    2001)."""
    best = np.sort(table, axis=1)
    closeness: np.ndarray = 1 - (best[:, -1] - best[:, -2])
    return closeness


def margin(pool: Pool, n: int) -> Picked:
    """Pick the images with the smallest margin between the best two classes."""
    return _highest(closeness(pool.table), n)


def entropy(pool: Pool, n: int) -> Picked:
    """Pick the images with the highest entropy, in nats (Shannon)."""
    return _highest(-(pool.table * np.log(np.maximum(pool.table, 1e-12))).sum(1), n)


def chance(pool: Pool, n: int) -> Picked:
    """Pick images at random."""
    rows = np.random.default_rng(pool.seed).permutation(len(pool.unit))[:n]
    return Picked(rows, np.zeros(len(rows)))


def coverage(pool: Pool, n: int) -> Picked:
    """Pick always the image farthest, by 1 - cosine, from all that are labelled or picked: greedy
    k-centre (Sener and Savarese, ICLR 2018). With nothing labelled it starts at the image nearest
    to the mean."""
    if len(pool.known):
        far = 1 - (pool.unit @ pool.known.T).max(1)
    else:
        far = pool.unit @ pool.unit.mean(0)
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
    """Pick an image of each cluster (after TypiClust: Hacohen et al., ICML 2022).

    One cluster is made per labelled and wanted image. Clusters are taken in turn, fewest labelled
    and then largest first, and of each the image nearest to its centre, by cosine.
    """
    count = len(pool.known)
    points = np.concatenate([pool.known, pool.unit])
    clusters, centres = _clusters(points, min(count + n, MOST_CLUSTERS), pool.seed)
    labelled = np.bincount(clusters[:count], minlength=len(centres))
    cluster = clusters[count:]
    near = (pool.unit * _unit(centres)[cluster]).sum(1)
    members = [np.flatnonzero(cluster == c) for c in range(len(centres))]
    members = [rows[np.argsort(-near[rows], kind="stable")] for rows in members]
    order = sorted(range(len(centres)), key=lambda c: (labelled[c], -len(members[c])))
    picked = np.array(_in_turn([members[c] for c in order])[:n], int)
    return Picked(picked, near[picked])


def _in_turn(queues: Sequence[np.ndarray]) -> list[int]:
    """Take the first row of each queue, then the second, and so on."""
    turns = range(max(map(len, queues), default=0))
    return [int(queue[turn]) for turn in turns for queue in queues if turn < len(queue)]


def mix(pool: Pool, n: int) -> Picked:
    """Cluster the images with the smallest margin, ten times as many as wanted, into n clusters, in
    which small margins weigh more, and pick the image nearest to each centre (Zhdanov 2019, arXiv
    1901.05954)."""
    wide = margin(pool, WIDER * n)
    cluster, centres = _clusters(pool.unit[wide.rows], n, pool.seed, np.maximum(wide.scores, 1e-6))
    far = np.linalg.norm(pool.unit[wide.rows] - centres[cluster], axis=1)
    members = [np.flatnonzero(cluster == c) for c in range(len(centres))]
    best = np.array(sorted(rows[far[rows].argmin()] for rows in members if len(rows)), int)
    # in place of empty clusters
    rest = np.setdiff1d(np.arange(len(wide.rows)), best)[: n - len(best)]
    best = np.sort(np.concatenate([best, rest]))
    return Picked(wide.rows[best], wide.scores[best])


def balanced(pool: Pool, n: int) -> Picked:
    """Pick equally many of each class, as far as the probabilities are right: the classes in turn,
    and of each the typical images among those for which it is the most probable class."""
    classes = pool.table.shape[1]
    answer = pool.table.argmax(1)
    queues = []
    scores = np.zeros(len(pool.unit))
    for c in range(classes):
        rows = np.flatnonzero(answer == c)
        if len(rows):
            part = pool._replace(unit=pool.unit[rows], known=pool.known[:0], table=pool.table[rows])
            picked = typicality(part, min(-(-n // classes), len(rows)))
            scores[rows[picked.rows]] = picked.scores
            queues.append(rows[picked.rows])
    taken = _in_turn(queues)[:n]
    if len(taken) < n:  # classes that are the answer too rarely leave room
        rest = np.setdiff1d(np.arange(len(pool.unit)), taken)
        part = pool._replace(unit=pool.unit[rest], known=pool.unit[taken], table=pool.table[rest])
        more = typicality(part, n - len(taken))
        scores[rest[more.rows]] = more.scores
        taken += rest[more.rows].tolist()
    return Picked(np.array(taken, int), scores[taken])


FIRST: Mapping[str, Rule]
NEXT: Mapping[str, Rule]
FIRST = {"typicality": typicality, "balanced": balanced, "coverage": coverage, RANDOM: chance}
NEXT = {
    "margin": margin,
    "entropy": entropy,
    "coverage": coverage,
    "typicality": typicality,
    "mix": mix,
    RANDOM: chance,
}


def pick(rule: Rule, pool: Pool, n: int, together: np.ndarray | None = None) -> Picked:
    """Pick at most n rows by a rule. together: [N] group numbers, as of near-duplicates; only the
    first image of each group can be picked."""
    firsts = np.arange(len(pool.unit))
    if together is not None:
        firsts = np.sort(np.unique(together, return_index=True)[1])
    table = pool.table[firsts] if len(pool.table) else pool.table
    picked = rule(pool._replace(unit=pool.unit[firsts], table=table), min(n, len(firsts)))
    return Picked(firsts[picked.rows], picked.scores)


def _highest(scores: np.ndarray, n: int) -> Picked:
    rows = np.argsort(-scores, kind="stable")[:n]
    return Picked(rows, scores[rows])


def _unit(x: np.ndarray) -> np.ndarray:
    unit: np.ndarray = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return unit


def _clusters(
    points: np.ndarray, k: int, seed: int, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the cluster of each point [N], and the centres [k, e], by k-means."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters
        model = KMeans(min(k, len(points)), n_init=1, random_state=seed % 2**32)
        model.fit(points, sample_weight=weights)
    return model.labels_, model.cluster_centers_
