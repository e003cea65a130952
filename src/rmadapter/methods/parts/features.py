"""Features of the shots: those to choose a setting by, a linear classifier of them, and those of an
encoder that no longer learns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.adapter import at_least_float32
from rmadapter.backbones import Backbone
from rmadapter.encoders import States
from rmadapter.training.cache import Held, Source, encoded
from rmadapter.training.contract import Batch, Known, NotApplicable, Shots, ToLogits

FOLDS = 4


def unit(features: Tensor) -> Tensor:
    """Return features of unit length, in float32 at least."""
    return F.normalize(at_least_float32(features), dim=-1)


def held_out(shots: Shots) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return images to choose a setting by: validation images, or parts of the shots held out in
    turn, as (rows of the shots to fit, features [M, e] and labels, as in `Shots`, to judge by):
    one, or one per fold.

    Folds are drawn whatever the groups, which change no model: nothing is reported on them.
    """
    labels = shots.labels
    if shots.val:
        targets = replace(shots, images=shots.val).labels
        return [(torch.arange(len(labels)), shots.plain_features(shots.val), targets)]
    plain = shots.plain_features()
    return [(rows, plain[held], labels[held]) for rows, held in folds(labels, shots.seed)]


def folds(labels: Tensor, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return (rows to fit, rows held out) for at most FOLDS parts; none if a class has one shot.
    Every fit has every class."""
    from sklearn.model_selection import StratifiedKFold

    parts = min(FOLDS, int(torch.bincount(labels).min()))
    if parts < 2:
        return []
    numbers = labels.cpu().numpy()
    splits = StratifiedKFold(parts, shuffle=True, random_state=seed).split(numbers, numbers)
    return [(torch.from_numpy(fit), torch.from_numpy(held)) for fit, held in splits]


def one_hot(shots: Shots) -> Tensor:
    """Return one-hot labels [N, C] times the shots' weights."""
    values = F.one_hot(shots.labels, len(shots.classes)).float()
    return values if shots.weights is None else values * shots.weights.to(values)[:, None]


def linear_scorer(
    title: str, known: Known, weight: Tensor, bias: Tensor
) -> Callable[[Sequence[str]], ToLogits]:
    """Return `Fitted.for_classes` for weights [C, e] and biases [C] of the known classes, on
    normalised features."""

    def for_classes(names: Sequence[str]) -> ToLogits:
        rows = columns(title, known.classes, names)
        return lambda states: F.linear(unit(states.features), weight[rows], bias[rows])

    return for_classes


@dataclass
class FixedFeatures:
    """Features, by an encoder that no longer learns, of the images of a source.

    They are computed for all images at the first request if all views are used within the remaining
    epochs, else batch by batch.

    Args:
        source: Source of the states of a batch.
        of: Function from states of images to features [B, d].
        epochs: Number of epochs in which features will be requested.
    """

    source: Source
    of: Callable[[States], Tensor]
    epochs: int
    _held: Held | None = field(default=None, init=False)
    # `_features`: what happens only once would be compiled into every step
    features: Callable[[Batch, Source], Tensor] = field(init=False)

    def __post_init__(self) -> None:
        # here, not at its definition, because that would import the compiler with this module
        self.features = torch.compiler.disable(self._features)

    @torch.no_grad()
    def _features(self, batch: Batch, source: Source) -> Tensor:
        """Return features [B, d].

        Args:
            batch: Batch of images.
            source: Source of the batch, whose states are not computed again.
        """
        if 0 < self.source.views <= self.epochs:
            if self._held is None:
                self._held = Held.of_features(encoded(self.source, self.of))
            return self._held.batch(batch.rows, batch.epoch).features
        alike = source is self.source
        return self.of(batch.images if alike else self.source.batch(batch.rows, batch.epoch))


@dataclass(frozen=True)
class Places:
    """Where the names of a question stand among the trained classes.

    Args:
        names: The C names.
        old: Indices of those that are trained classes.
        rows: Places of these among the trained classes.
        new: Indices of all other names.
    """

    names: Sequence[str]
    old: list[int]
    rows: list[int]
    new: list[int]

    @classmethod
    def of(
        cls, title: str, backbone: Backbone, classes: Sequence[str], names: Sequence[str]
    ) -> Places:
        """Find names among the trained classes. Raises NotApplicable for any other name on a
        backbone without a text encoder."""
        if not backbone.has_text:
            columns(title, classes, names)
        row = {name: i for i, name in enumerate(classes)}
        old = [i for i, name in enumerate(names) if name in row]
        new = [i for i, name in enumerate(names) if name not in row]
        return cls(names, old, [row[names[i]] for i in old], new)

    def weights(
        self,
        trained: Callable[[list[str], list[int]], Tensor],
        others: Callable[[list[str]], Tensor],
    ) -> Tensor:
        """Return weights [C, e] in the order of the names.

        Args:
            trained: Function from names of trained classes and their places to their weights.
            others: Function from other names to their weights.
        """
        parts = []
        if self.old:
            parts.append(trained([self.names[i] for i in self.old], self.rows))
        if self.new:
            parts.append(others([self.names[i] for i in self.new]))
        order = torch.tensor([*self.old, *self.new], device=parts[0].device)
        return torch.cat(parts)[order.argsort()]


def hits_of(tables: Iterable[Tensor], labels: Tensor) -> Tensor:
    """Return how many of B images with these labels [B] each table of logits [B, C] answers
    right."""
    return torch.tensor([int((table.argmax(-1) == labels).sum()) for table in tables])


def best_pair(
    outer: Sequence[float], inner: Sequence[float], hits: Callable[[float], Tensor]
) -> tuple[float, float]:
    """Return the values of two settings with the most hits; among equals the first outer one, then
    the first inner one.

    Args:
        outer: Values of one setting.
        inner: Values of the other.
        hits: Function from an outer value to the hits of each inner one.
    """
    counts = [count for value in outer for count in hits(value).tolist()]
    place = counts.index(max(counts))
    return outer[place // len(inner)], inner[place % len(inner)]


def columns(title: str, classes: Sequence[str], names: Sequence[str]) -> list[int]:
    """Return the indices of the names among the trained classes. Raises NotApplicable for any other
    name."""
    place = {name: i for i, name in enumerate(classes)}
    for name in names:
        if name not in place:
            raise NotApplicable(f"{title} only knows the classes it was trained on, not {name!r}")
    return [place[name] for name in names]
