"""Choose which unlabelled images a person labels next: typical ones, or some at random.

Other rules (margin, entropy, coverage, mix) were not shown to be better than drawing at random, so
the page does not offer them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

MAX_CLUSTERS = 500  # as in Hacohen et al.
TYPICALITY, RANDOM = "typicality", "random"


class Pool(NamedTuple):
    """Images to choose from.

    Attributes:
        unit: Features [N, e] of length 1 of these images.
        known: Features [M, e] of length 1 of labelled images.
        seed: Seed of everything random.
    """

    unit: np.ndarray
    known: np.ndarray
    seed: int = 1


class Picked(NamedTuple):
    """The images that a rule picked.

    Attributes:
        rows: Rows of the pool, in the order to label them.
        scores: Scores by the rule; a higher one is more wanted.
    """

    rows: np.ndarray
    scores: np.ndarray


Rule = Callable[[Pool, int], Picked]


def chance(pool: Pool, n: int) -> Picked:
    """Pick images at random."""
    rows = np.random.default_rng(pool.seed).permutation(len(pool.unit))[:n]
    return Picked(rows, np.zeros(len(rows)))


def typicality(pool: Pool, n: int) -> Picked:
    """Pick an image of each cluster (after TypiClust: Hacohen et al., ICML 2022).

    One cluster is made per labelled and wanted image. Clusters are taken in turn, fewest labelled
    and then largest first, and of each the image nearest to its centre, by cosine.
    """
    count = len(pool.known)
    points = np.concatenate([pool.known, pool.unit])
    clusters, centres = _clusters(points, min(count + n, MAX_CLUSTERS), pool.seed)
    labelled = np.bincount(clusters[:count], minlength=len(centres))
    cluster = clusters[count:]
    lengths = np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
    near = (pool.unit * (centres / lengths)[cluster]).sum(1)
    members = [np.flatnonzero(cluster == c) for c in range(len(centres))]
    members = [rows[np.argsort(-near[rows], kind="stable")] for rows in members]
    order = sorted(range(len(centres)), key=lambda c: (labelled[c], -len(members[c])))
    picked = np.array(_in_turn([members[c] for c in order])[:n], int)
    return Picked(picked, near[picked])


RULES: Mapping[str, Rule] = {TYPICALITY: typicality, RANDOM: chance}


def pick(rule: Rule, pool: Pool, n: int, together: np.ndarray) -> Picked:
    """Pick at most n rows by a rule, one of each group of near-duplicates.

    Args:
        rule: Rule to pick by.
        pool: Images to choose from.
        n: Number of images.
        together: Group numbers [N]; only the first image of each group can be picked.
    """
    firsts = np.sort(np.unique(together, return_index=True)[1])
    picked = rule(pool._replace(unit=pool.unit[firsts]), min(n, len(firsts)))
    return Picked(firsts[picked.rows], picked.scores)


def _in_turn(queues: Sequence[np.ndarray]) -> list[int]:
    """Take the first row of each queue, then the second, and so on."""
    turns = range(max(map(len, queues), default=0))
    return [int(queue[turn]) for turn in turns for queue in queues if turn < len(queue)]


def _clusters(points: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the cluster of each point [N], and the centres [k, e], by k-means."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters
        model = KMeans(min(k, len(points)), n_init=1, random_state=seed % 2**32)
        model.fit(points)
    return model.labels_, model.cluster_centers_
