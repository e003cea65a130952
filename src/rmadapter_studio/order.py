"""Choose which images a person labels next: typical ones, some at random, or those with the surest
proposals.

Other rules (margin, entropy, coverage, mix) were not shown to be better than drawing at random, so
the page does not offer them.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rmadapter import UserError
from rmadapter_studio.quick import Quick

TYPICALITY, RANDOM, SURE = "typicality", "random", "sure"
ORDERS = (TYPICALITY, RANDOM, SURE)
MAX_POOL = 2_000  # images of which typical or random ones are chosen; of more, some are drawn
MAX_CLUSTERS = 500  # as in Hacohen et al.


class Chosen(NamedTuple):
    """An image to label.

    Attributes:
        row: Row of the image.
        score: Its score by the rule, None if drawn at random.
        copies: Rows of its near-duplicates that can be labelled with it.
    """

    row: int
    score: float | None
    copies: tuple[int, ...]


def choose(
    quick: Quick, open_rows: Sequence[int], order: str, n: int, seed: int = 1
) -> list[Chosen]:
    """Choose at most n images to label next, one of each group of near-duplicates.

    Args:
        quick: All images, and what the labels say of them.
        open_rows: Rows of images that have no label and were not skipped.
        order: One of `ORDERS`.
        n: Number of images.
        seed: Seed of everything random.

    Raises:
        UserError: An unknown order, or one that needs classes without any.
    """
    if order not in ORDERS:
        raise UserError(f"unknown order {order!r:.80}; known are {', '.join(ORDERS)}")
    if order == SURE and not quick.proposes:
        raise UserError("name at least two classes first: this order needs proposals")
    if not open_rows:
        return []
    groups, features = quick.images.groups, quick.images.features
    rows, scores = np.array(open_rows, int), None
    if order == SURE:
        rows = rows[np.argsort(-quick.table[rows].max(1), kind="stable")]
    elif len(rows) > MAX_POOL:
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:MAX_POOL])
    rows = rows[np.sort(np.unique(groups[rows], return_index=True)[1])]  # the first of each group
    if order == SURE:
        rows = rows[:n]
        rows = rows[np.argsort(quick.answers[rows], kind="stable")]
        scores = quick.table[rows].max(1)
    elif order == TYPICALITY:
        picked, scores = typical(features[rows], features[quick.labels >= 0], n, seed)
        rows = rows[picked]
    else:
        rows = np.random.default_rng(seed).permutation(rows)[:n]
    copies = defaultdict(list)
    for row in open_rows:
        copies[groups[row]].append(int(row))
    return [
        Chosen(
            row,
            None if scores is None else float(scores[i]),
            tuple(other for other in copies[groups[row]] if other != row),
        )
        for i, row in enumerate(rows.tolist())
    ]


def typical(
    features: np.ndarray, known: np.ndarray, n: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pick an image of each cluster (after TypiClust: Hacohen et al., ICML 2022).

    One cluster is made per labelled and wanted image. Clusters are taken in turn, fewest labelled
    and then largest first, and of each the image nearest to its centre, by cosine.

    Args:
        features: Features [N, e] of length 1 of the images to pick from.
        known: Features [M, e] of length 1 of labelled images.
        n: Number of images.
        seed: Seed of the clusters.

    Returns:
        Rows in the order to label them, and their cosines.
    """
    wanted = min(n, len(features))
    points = np.concatenate([known, features])
    clusters, centres = _clusters(points, min(len(known) + wanted, MAX_CLUSTERS), seed)
    labelled = np.bincount(clusters[: len(known)], minlength=len(centres))
    cluster = clusters[len(known) :]
    lengths = np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
    near = (features * (centres / lengths)[cluster]).sum(1)
    members = [np.flatnonzero(cluster == c) for c in range(len(centres))]
    members = [rows[np.argsort(-near[rows], kind="stable")] for rows in members]
    order = sorted(range(len(centres)), key=lambda c: (labelled[c], -len(members[c])))
    picked = np.array(_in_turn([members[c] for c in order])[:wanted], int)
    return picked, near[picked]


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
