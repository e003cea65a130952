"""Parents of labels: probabilities at each level, and the answer that a prediction set or a
threshold leaves, which may be a parent.

NumPy only, since exports hold this file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from rmadapter.errors import UserError, quoted

LEVELS = ("label", "parent", "grandparent")
MAX_DEPTH = 100  # parents above one label


class Place(NamedTuple):
    """A label or one of the parents above it.

    Attributes:
        name: Name of the label or parent.
        level: 0 for a label, as in `Taxonomy.groups`.
    """

    name: str
    level: int


@dataclass(frozen=True)
class Taxonomy:
    """A tree of labels.

    A level divides all labels into groups: level 0 into the labels themselves, the highest into the
    trees. Levels are counted down from the top, so that each lies within the next higher one; a
    label that has fewer parents than others stands for itself on the levels below it.

    Attributes:
        labels: The C labels, in the order of a model's classes.
        paths: Parents of each label, from the top down to its own; none for a label without any.
        parents: What it was made of: label or parent -> its parent, those of other labels too.
    """

    labels: tuple[str, ...]
    paths: tuple[tuple[str, ...], ...]
    parents: Mapping[str, str]

    @classmethod
    def of(cls, parents: Mapping[str, str], labels: Iterable[str]) -> Taxonomy:
        """Make the tree of some labels.

        Args:
            parents: Label or parent -> its parent. Those of other labels are not used.
            labels: The C labels; one without a parent is a tree by itself.

        Raises:
            UserError: Parents form a cycle, a label has more than 100 of them, or a label is the
                parent of another.
        """
        known = tuple(labels)
        paths = tuple(_path(parents, label) for label in known)
        above = {name: label for label, path in zip(known, paths, strict=True) for name in path}
        for label in known:
            if label in above:
                raise UserError(
                    f"taxonomy: {quoted(label)} is a class, and the parent of "
                    f"{quoted(above[label])}: give the parent another name"
                )
        return cls(known, paths, dict(parents))

    @classmethod
    def if_any(cls, parents: Mapping[str, str], labels: Iterable[str]) -> Taxonomy | None:
        """Make the tree as `of` does; None if no label has a parent."""
        tree = cls.of(parents, labels)
        return tree if tree.depth else None

    def with_label(self, label: str) -> Taxonomy:
        """Return the tree of one more label. Raises UserError as `of`."""
        return Taxonomy.of(self.parents, (*self.labels, label))

    @cached_property
    def depth(self) -> int:
        """The highest level."""
        return max(map(len, self.paths), default=0)

    @property
    def level_names(self) -> list[str]:
        """What the levels above the labels are called, the lowest first."""
        return [level_name(level) for level in range(1, self.depth + 1)]

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """Every parent, each once."""
        return tuple(dict.fromkeys(name for path in self.paths for name in path))

    def place(self, number: int, level: int) -> Place:
        """Return the group of a label at a level, and the level of that group."""
        path = self.paths[number]
        step = self.depth - level
        if step < len(path):
            return Place(path[step], level)
        return Place(self.labels[number], 0)

    def above(self, number: int) -> set[Place]:
        """Return a label and all groups that hold it."""
        return {self.place(number, level) for level in range(self.depth + 1)}

    @cached_property
    def _levels(self) -> list[tuple[tuple[str, ...], np.ndarray]]:
        levels = []
        for level in range(self.depth + 1):
            names = [self.place(number, level).name for number in range(len(self.labels))]
            order = {name: index for index, name in enumerate(dict.fromkeys(names))}
            levels.append((tuple(order), np.array([order[name] for name in names])))
        return levels

    def groups(self, level: int) -> tuple[tuple[str, ...], np.ndarray]:
        """Return the names of the G groups of a level, and the group of each label, [C] int."""
        return self._levels[level]

    def sums(self, probabilities: np.ndarray, level: int) -> np.ndarray:
        """Return the probability of each group, the sum over its labels: [B, G].

        Args:
            probabilities: Table [B, C].
            level: 0 to `depth`.
        """
        names, which = self.groups(level)
        table: np.ndarray = np.zeros((len(probabilities), len(names)))
        np.add.at(table.T, which, probabilities.T.astype(np.float64))
        return table

    def common(self, members: Sequence[int]) -> Place | None:
        """Return the lowest group that holds all of some labels; None if no group does.

        If the right label is missing from such a set with a probability of at most an error, it is
        outside this group with no higher one.

        Args:
            members: One or more indices of labels.
        """
        own = [*members]
        for level in range(self.depth + 1):
            if len({*self.groups(level)[1][own].tolist()}) == 1:
                return self.place(own[0], level)
        return None


def _path(parents: Mapping[str, str], label: str) -> tuple[str, ...]:
    """Return the parents of a label, the top one first. Raises UserError as `Taxonomy.of`."""
    path = {label: 0}  # a dict, in which a cycle is found without reading the path again
    last = label
    while last in parents:
        parent = parents[last]
        if parent in path:
            raise UserError(
                f"taxonomy: {quoted(parent)} is its own parent, by way of {quoted(last)}: "
                "remove one of these rows"
            )
        if len(path) > MAX_DEPTH:
            raise UserError(
                f"taxonomy: {quoted(label)} has more than {MAX_DEPTH} parents: leave out some"
            )
        path[parent] = len(path)
        last = parent
    return tuple(reversed([*path][1:]))


def level_name(level: int) -> str:
    """Return what a level is called."""
    return LEVELS[level] if level < len(LEVELS) else f"level {level}"
