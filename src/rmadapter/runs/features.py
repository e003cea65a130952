"""Image features of a fitted method, and their distance from those that it was fitted to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.data.image_set import without_classes
from rmadapter.data.read import ImageSet, ImageSource
from rmadapter.data.transforms import decode_batches
from rmadapter.encoders import PARTS, States, in_halves
from rmadapter.prompts import OfFeatures, untouched
from rmadapter.support.terminal import track
from rmadapter.training.cache import Cache
from rmadapter.training.contract import Fitted, NotApplicable, ToLogits, probabilities

MIN_KEPT = 8  # images; of fewer, files on disk would be too many, and so features are not kept


def image_features(
    fitted: Fitted, names: Sequence[str], logits: ToLogits | None = None
) -> Callable[[States], Tensor]:
    """Return the function that gives image features [B, e] of a method.

    They are those that it scores, or those of the untouched encoder; if it runs blocks itself,
    those that it scores for unseen classes.

    Args:
        fitted: The fitted method.
        names: Names of the classes.
        logits: What `fitted.for_classes` returned for them, if it was called.

    Raises:
        NotApplicable: The method has no image features.
    """
    scorer = fitted.for_classes(tuple(names)) if logits is None else logits
    if isinstance(scorer, OfFeatures):
        return scorer.features
    if fitted.first in (None, PARTS):
        return untouched
    other = fitted.for_classes((*names, "something else"))
    if not isinstance(other, OfFeatures):
        raise NotApplicable(
            f"{fitted.method.title} has no image features to give; remove --embeddings and --text"
        )
    return other.features


def class_means(features: Tensor, labels: Sequence[int], classes: int) -> Tensor:
    """Return the unit mean [C, e] of each class's unit features; zeros for a class without any.

    Args:
        features: Features [N, e].
        labels: Indices of the classes, [N].
        classes: Number C of classes.
    """
    which = torch.tensor(labels, device=features.device)
    sums = torch.zeros(classes, features.shape[1], device=features.device)
    sums.index_add_(0, which, F.normalize(features.float(), dim=-1))
    return F.normalize(sums, dim=-1)


def distances(features: Tensor, means: Tensor) -> Tensor:
    """Return 1 - the cosine of features [B, e] to the nearest of the class means [C, e]: [B]."""
    return 1 - (F.normalize(features.float(), dim=-1) @ means.float().T).amax(-1)


def distances_left_out(
    features: Tensor, labels: Sequence[int], classes: int, groups: np.ndarray
) -> np.ndarray:
    """Return the distances [N] of images from their own class means, each from means without the
    images of its group.

    Args:
        features: Features [N, e], which none of the images has changed.
        labels: Indices of the classes, [N].
        classes: Number C of classes.
        groups: Group numbers [N].
    """
    unit, which = F.normalize(features.float(), dim=-1), torch.tensor(labels)
    sums = unit.new_zeros(classes, unit.shape[1]).index_add_(0, which.to(unit.device), unit)
    cosines = unit @ F.normalize(sums, dim=-1).T
    for group in np.unique(groups):
        rows = torch.from_numpy(np.flatnonzero(groups == group))
        for number in which[rows].unique().tolist():
            others = sums[number] - unit[rows[which[rows] == number]].sum(0)
            cosines[rows, number] = unit[rows] @ F.normalize(others, dim=-1)
    return (1 - cosines.amax(-1)).cpu().numpy()


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


def outputs_of(
    fitted: Fitted, names: Sequence[str], with_distances: bool
) -> Callable[[States], tuple[np.ndarray, np.ndarray | None]]:
    """Return the function from the states of B images to probabilities [B, C] and distances [B]
    from the class means; features are computed once for both.

    Args:
        fitted: Model, which keeps class means if distances are wanted.
        names: Names of the C classes.
        with_distances: Whether to return distances, else None.

    Raises:
        NotApplicable: The method cannot handle the names, or has no features.
    """
    title, means = fitted.method.title, fitted.means
    with torch.no_grad():
        logits = fitted.for_classes(tuple(names))
        features = image_features(fitted, names, logits) if with_distances else None

    @torch.no_grad()
    def outputs(states: States) -> tuple[np.ndarray, np.ndarray | None]:
        own = None if features is None else torch.cat(in_halves(features, states))
        if own is not None and isinstance(logits, OfFeatures):
            scores = logits.logits(own)
        else:
            scores = torch.cat(in_halves(logits, states, whole=fitted.remembers))
        table = probabilities(scores / fitted.temperature, title).numpy()
        far = None if own is None or means is None else distances(own, means).cpu().numpy()
        return table, far

    return outputs


def examine(
    fitted: Fitted,
    images: Sequence[ImageSource],
    progress: bool,
    names: Sequence[str] = (),
    *,
    with_distances: bool = True,
    keep: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities [N, C] of images, and distances [N] from the class means, none if the
    model keeps no means.

    Args:
        fitted: Model.
        images: N images.
        progress: Whether to show a bar on stderr.
        names: Names of the C classes; by default those that it was fitted to.
        with_distances: Whether to compute distances.
        keep: As for `states_of`.

    Raises:
        UserError: An image is unreadable.
    """
    names = names or fitted.classes
    outputs = outputs_of(fitted, names, with_distances and fitted.means is not None)
    tables, far = [np.empty((0, len(names)), np.float32)], [np.empty(0, np.float32)]
    for states in states_of(fitted, images, progress, keep):
        table, distant = outputs(states)
        tables.append(table)
        if distant is not None:
            far.append(distant)
    return np.concatenate(tables), np.concatenate(far)


def states_of(
    fitted: Fitted, images: Sequence[ImageSource], progress: bool, keep: bool
) -> Iterator[States]:
    """Yield the states of images in batches.

    Args:
        fitted: Model that reads them.
        images: N images.
        progress: Whether to show a bar on stderr.
        keep: Whether features are kept on disk, and read from there, if the model reads nothing
            else.

    Raises:
        UserError: An image is unreadable.
    """
    keep = keep and len(images) >= MIN_KEPT
    if keep and fitted.first in (None, PARTS) and not fitted.method.test_views:
        cache = Cache(fitted.backbone, hold=False, progress=progress, keep_features=True)
        yield from cache.stream(without_classes(images), fitted.first, "predicting")
        return
    stream = decode_batches(images, fitted.transform, fitted.batch)
    for _, pixels in track(stream, -(-len(images) // fitted.batch), "predicting", progress):
        yield fitted.states(pixels)


@torch.no_grad()
def transformed(
    fitted: Fitted,
    images: Sequence[ImageSource],
    progress: bool,
    names: Sequence[str],
    keep: bool = False,
) -> np.ndarray:
    """Return the features [N, e] of images that a model scores, of length 1.

    Args:
        fitted: Model.
        images: N images.
        progress: Whether to show a bar on stderr.
        names: Names of the classes.
        keep: As for `states_of`.

    Raises:
        NotApplicable: The method has no image features.
        UserError: An image is unreadable.
    """
    of = image_features(fitted, names)
    parts = [
        part
        for states in states_of(fitted, images, progress, keep)
        for part in in_halves(of, states)
    ]
    return (
        unit(torch.cat(parts))
        if parts
        else np.empty((0, fitted.backbone.embedding_size), np.float32)
    )


def encode(
    backbone: Backbone, images: Sequence[ImageSource], progress: bool, keep: bool = False
) -> np.ndarray:
    """Return untouched features [N, e] of images, of length 1.

    Args:
        backbone: Backbone that encodes them.
        images: N images.
        progress: Whether to show a bar on stderr.
        keep: Whether features are kept on disk, and read from there.

    Raises:
        UserError: An image is unreadable.
    """
    if not images:
        return np.empty((0, backbone.embedding_size), np.float32)
    keep = keep and len(images) >= MIN_KEPT
    cache = Cache(backbone, hold=False, progress=progress, keep_features=keep)
    return unit(cache.features(without_classes(images))[0])


def unit(features: Tensor) -> np.ndarray:
    """Return features [N, e] of any length as an array of float32 whose rows have length 1."""
    return F.normalize(features.float(), dim=-1).cpu().numpy()


@torch.no_grad()
def features_of(
    fitted: Fitted, images: ImageSet, cache: Cache, of: Callable[[States], Tensor]
) -> Tensor:
    """Return the features [N, e] of images without augmentation, as `image_features` gives them
    through `of`."""
    return cache.features(images, first=fitted.first, of=of)[0]
