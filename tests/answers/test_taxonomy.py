"""Trees of labels, beside sums and ancestors by their definition."""

from __future__ import annotations

import time
from itertools import combinations, pairwise

import numpy as np
import pytest

from rmadapter.answers.answer import Levels
from rmadapter.answers.taxonomy import Place, Taxonomy, level_name
from rmadapter.errors import UserError

PARENTS = {
    "cat": "mammal", "dog": "mammal", "mammal": "animal", "trout": "fish", "fish": "animal",
    "oak": "plant", "worm": "animal",
}  # fmt: skip
LABELS = ("cat", "oak", "dog", "trout", "stone", "worm")
TREE = Taxonomy.of(PARENTS, LABELS)


def holds(label: str, node: str) -> bool:
    """Whether a label is a node or below it, by the definition."""
    while label != node and label in PARENTS:
        label = PARENTS[label]
    return label == node


def chain(label: str, parents: int) -> dict[str, str]:
    """Give a label so many parents, one above the other."""
    names = [label, *(f"{label} {number}" for number in range(parents))]
    return dict(pairwise(names))


def test_levels_count_from_the_top() -> None:
    assert TREE.depth == 2
    assert TREE.nodes == ("animal", "mammal", "plant", "fish")
    assert TREE.groups(0)[0] == LABELS
    names, which = TREE.groups(1)
    assert names == ("mammal", "oak", "fish", "stone", "worm")
    assert which.tolist() == [0, 1, 0, 2, 3, 4]
    assert TREE.groups(2)[0] == ("animal", "plant", "stone")
    assert TREE.above(0) == {Place("cat", 0), Place("mammal", 1), Place("animal", 2)}
    assert [level_name(level) for level in range(4)] == [
        "label", "parent", "grandparent", "level 3",
    ]  # fmt: skip


def test_the_probability_of_a_parent_is_the_sum_over_its_labels() -> None:
    table = np.random.default_rng(0).dirichlet(np.ones(6), size=5).astype(np.float32)
    for level in range(3):
        names, sums = TREE.groups(level)[0], TREE.sums(table, level)
        for column, name in enumerate(names):
            own = [holds(label, name) for label in LABELS]
            np.testing.assert_allclose(sums[:, column], table[:, own].astype(float).sum(1))
        np.testing.assert_allclose(sums.sum(1), 1, rtol=1e-6)
    for row, levels in zip(table, Levels.of(TREE, table, [[]] * 5), strict=True):
        assert len(levels.best) == 2
        for level, (name, share) in enumerate(levels.best, 1):
            sums = TREE.sums(row[None], level)[0]
            assert name == TREE.groups(level)[0][int(sums.argmax())]
            assert share == round(float(sums.max()), 6)


def test_a_parent_may_be_right_where_the_best_label_is_of_another() -> None:
    table = np.array([[0.3, 0.4, 0.3, 0.0, 0.0, 0.0]])
    assert TREE.labels[table[0].argmax()] == "oak"
    [levels] = Levels.of(TREE, table, [[]])
    assert levels.best == (("mammal", 0.6), ("animal", 0.6))


def test_common_is_the_smallest_node_that_holds_all() -> None:
    nodes = [*LABELS, *TREE.nodes]
    sizes = {node: sum(holds(label, node) for label in LABELS) for node in nodes}
    for count in range(1, len(LABELS) + 1):
        for members in combinations(range(len(LABELS)), count):
            labels = [LABELS[number] for number in members]
            holding = [node for node in nodes if all(holds(label, node) for label in labels)]
            place = TREE.common(members)
            if count == 1:
                assert place == Place(labels[0], 0)
            elif not holding:
                assert place is None
            else:
                assert place is not None
                assert place.name in holding
                assert sizes[place.name] == min(sizes[node] for node in holding)


def test_what_is_no_tree_is_refused() -> None:
    for parents, word in (
        ({"cat": "cat"}, "'cat' is its own parent"),
        ({"cat": "pet", "pet": "animal", "animal": "pet"}, "'pet' is its own parent"),
        ({"cat": "dog"}, "'dog' is a class, and the parent of 'cat'"),
        (chain("cat", 101), "'cat' has more than 100 parents"),
        (chain("cat", 1_000_000), "'cat' has more than 100 parents"),
    ):
        with pytest.raises(UserError, match=word):
            Taxonomy.of(parents, ["cat", "dog"])
    assert Taxonomy.of({"a": "b", "b": "a"}, ["cat"]).depth == 0


def test_the_deepest_tree_of_many_labels_takes_little_time() -> None:
    labels = [str(number) for number in range(2000)]
    parents = {name: above for label in labels for name, above in chain(label, 100).items()}
    started = time.process_time()
    tree = Taxonomy.of(parents, labels)
    assert (tree.depth, len(tree.groups(1)[0])) == (100, 2000)
    assert tree.common(range(2000)) is None
    assert time.process_time() - started < 10  # the depth anew for each place took 20 times as long
