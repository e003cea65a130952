"""Image features of a fitted method, and their distance from those that it was fitted to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.answers import rejection as familiar
from rmadapter.answers.rejection import Familiarity
from rmadapter.answers.sets import NOTHING
from rmadapter.data.read import ImageSet, ImageSource
from rmadapter.data.transforms import decode_batches
from rmadapter.encoders import States
from rmadapter.errors import UserError
from rmadapter.prompts import OfFeatures, untouched
from rmadapter.support.terminal import track
from rmadapter.training.cache import Cache
from rmadapter.training.contract import Fitted, NotApplicable, ToLogits, answers


def image_features(
    fitted: Fitted, names: Sequence[str], logits: ToLogits | None = None
) -> Callable[[States], Tensor]:
    """Return the function that gives image features [B, e] of a method.

    They are those that it scores, or those of the untouched encoder; if it runs blocks itself,
    those that it scores for unseen classes. names, logits: classes, and what `fitted.for_classes`
    returned for them, if it was called. Raises NotApplicable if it has none.
    """
    scorer = fitted.for_classes(tuple(names)) if logits is None else logits
    if isinstance(scorer, OfFeatures):
        return scorer.features
    if fitted.first is None:
        return untouched
    other = fitted.for_classes((*names, "something else"))
    if not isinstance(other, OfFeatures):
        raise NotApplicable(
            f"{fitted.method.title} has no image features to give; remove --embeddings and --text"
        )
    return other.features


def class_means(features: Tensor, labels: Sequence[int], classes: int) -> Tensor:
    """Return the unit mean [C, e] of each class's unit features; zeros for a class without any.

    features: [N, e]. labels: [N].
    """
    which = torch.tensor(labels, device=features.device)
    sums = torch.zeros(classes, features.shape[1], device=features.device)
    sums.index_add_(0, which, F.normalize(features.float(), dim=-1))
    return F.normalize(sums, dim=-1)


def distances(features: Tensor, means: Tensor) -> Tensor:
    """Return 1 - the cosine to the nearest class mean, [B]. features: [B, e]. means: [C, e]."""
    return 1 - (F.normalize(features.float(), dim=-1) @ means.float().T).amax(-1)


def with_means(fitted: Fitted, train: ImageSet, cache: Cache) -> Fitted:
    """Return a copy that keeps the class means of its training images; the same model if it has no
    features."""
    try:
        of = image_features(fitted, fitted.classes)
    except NotApplicable:
        return fitted
    own = features_of(fitted, train, cache, of)
    return replace(fitted, means=class_means(own, train.labels, len(train.classes)))


def distances_of(fitted: Fitted, images: ImageSet, cache: Cache) -> np.ndarray:
    """Return the distances [N] of images from the class means, none if the model keeps no means."""
    if fitted.means is None:
        return np.empty(0)
    new = features_of(fitted, images, cache, image_features(fitted, fitted.classes))
    return distances(new, fitted.means).cpu().numpy()


class Once:
    """A function of states that is computed once for the same states."""

    def __init__(self, of: Callable[[States], Tensor]) -> None:
        self._of = of
        self._last: tuple[States, Tensor] | None = None

    def __call__(self, states: States) -> Tensor:
        if self._last is None or self._last[0] is not states:
            self._last = states, self._of(states)
        return self._last[1]


def shared_features(
    fitted: Fitted, names: Sequence[str]
) -> tuple[Callable[[States], Tensor], ToLogits]:
    """Return the function of `image_features` and what `fitted.score(names)` returns, which compute
    nothing twice for the same states. Raises NotApplicable as both."""
    with torch.no_grad():
        logits = fitted.for_classes(tuple(names))
        features = Once(image_features(fitted, names, logits))

    @torch.no_grad()
    def score(states: States) -> Tensor:
        if isinstance(logits, OfFeatures):
            return logits.logits(features(states)) / fitted.temperature
        return logits(states) / fitted.temperature

    return features, score


def strangest(fitted: Fitted, share: float, names: Sequence[str] = ()) -> int:
    """Return how many of the strangest images are none of a model's classes.

    share: as for `Familiarity.strangest`. names: of the classes to choose from, by default those
    that it was fitted to. Raises UserError as that, for a model without what it needs, for one that
    remembers images, and for other classes.
    """
    if fitted.remembers:
        raise UserError(NOTHING)
    known = known_images(fitted, names or fitted.classes)
    if known is None and known_images(fitted, fitted.classes):
        raise UserError(
            "images can be turned away from the classes that the model was fitted to alone"
        )
    return familiar.strangest(known, share)


def known_images(fitted: Fitted, names: Sequence[str]) -> Familiarity | None:
    """Return what tells a model's own images from others; None for a model without all that it
    needs, and for other classes than those that it was fitted to; the last may have been added."""
    if fitted.means is None or (*names[: len(fitted.classes)],) != fitted.classes:
        return None
    return fitted.familiarity


@torch.no_grad()
def examine(
    fitted: Fitted, images: Sequence[ImageSource], progress: bool, names: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities [N, C] of images, and distances [N] from the class means, none if the
    model keeps no means.

    names: of the C classes, by default those that it was fitted to. Raises UserError for an
    unreadable image.
    """
    names = names or fitted.classes
    features: Callable[[States], Tensor] | None = None
    if fitted.means is None:
        score = fitted.score(tuple(names))
    else:
        features, score = shared_features(fitted, names)
    tables, far = [torch.empty(0, len(names))], [torch.empty(0)]
    stream = decode_batches(images, fitted.transform, fitted.batch)
    for _, pixels in track(stream, -(-len(images) // fitted.batch), "predicting", progress):
        states = fitted.states(pixels)
        tables += next(answers({fitted.method.title: score}, [states])).values()
        if features is not None and fitted.means is not None:
            far.append(distances(features(states), fitted.means).cpu())
    return torch.cat(tables).numpy(), torch.cat(far).numpy()


def are_familiar(
    fitted: Fitted,
    images: Sequence[ImageSource],
    share: float,
    progress: bool,
    names: Sequence[str] = (),
) -> np.ndarray:
    """Return whether each of N images is of a model's classes. names: as for `strangest`. Raises
    UserError as `strangest` and `examine`."""
    count = strangest(fitted, share, names)
    assert fitted.familiarity is not None
    table, far = examine(fitted, images, progress, names)
    return fitted.familiarity.familiar(table, far, count, len(fitted.classes))


@torch.no_grad()
def features_of(
    fitted: Fitted, images: ImageSet, cache: Cache, of: Callable[[States], Tensor]
) -> Tensor:
    """Return the features [N, e] of images without augmentation. of: as from `image_features`."""
    return cache.features(images, first=fitted.first, of=of)[0]
