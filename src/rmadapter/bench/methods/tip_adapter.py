"""Tip-Adapter: the shots as a cache that is asked by similarity, and Tip-Adapter-F, whose keys are trained.

    logits = scale * x w^T + alpha * exp(-beta * (1 - x keys^T)) values        Zhang et al., ECCV 2022

x are normalised image features, w class features, keys the normalised features of the shots, values their classes as
one-hot vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.backbone import Backbone
from rmadapter.bench.methods.base import Classifier, Training
from rmadapter.bench.methods.loop import Recipe, Trained, minimise
from rmadapter.bench.methods.shots import columns, embedding_size, folds, labels_of, plain_features, shot_features
from rmadapter.bench.methods.zero_shot import cosine_logits, text_features
from rmadapter.errors import UserError
from rmadapter.towers import States


@dataclass(frozen=True, eq=False)
class Cache:
    """keys [N, e] and values [N, C] of the shots."""

    keys: Tensor
    values: Tensor

    def __call__(self, x: Tensor, beta: float) -> Tensor:
        """Normalised features [B, e] -> the cache's logits [B, C], before alpha."""
        return (-beta * (1 - x @ self.keys.T)).exp() @ self.values


@dataclass(frozen=True)
class TipAdapter:
    """Nothing is trained. alpha and beta are searched on validation images, else on parts of the shots held out in
    turn; of one shot a class nothing can be held out, and they stay as given.

    A key is the mean over the run's augmented views of a shot, of which the released code takes ten. The grid is the
    one of ImageNet, Oxford Pets and UCF101 in the released code, which has wider ones for the other data sets.
    Knows the classes of its shots alone.
    """

    title: ClassVar[str] = "Tip-Adapter"
    source: ClassVar[str] = (
        "Zhang et al., ECCV 2022 (arXiv 2207.09519); configs/imagenet.yaml of github.com/gaopengcuhk/Tip-Adapter"
    )
    alpha: float = 1.17
    beta: float = 1.0
    search: bool = True
    largest_alpha: float = 3.0
    largest_beta: float = 7.0
    alpha_steps: int = 20
    beta_steps: int = 200

    def fit(self, backbone: Backbone, train: Training) -> Classifier:
        views, labels = shot_features(train), labels_of(train)
        weights = text_features(backbone, train.images.classes, train.templates)
        cache, done = self.cache(backbone, weights, views, train)
        alpha, beta = self.alpha, self.beta
        if self.search:
            if self.alpha_steps < 1 or self.beta_steps < 1:
                raise UserError("alpha_steps and beta_steps are at least 1; search=false takes alpha and beta as given")
            alpha, beta = self._search(self._held_out(backbone, weights, views, labels, train, cache))

        def for_classes(names: Sequence[str]) -> Callable[[States], Tensor]:
            chosen = columns(self.title, train.images.classes, names)
            known = Cache(cache.keys, cache.values[:, chosen])

            def score(states: States) -> Tensor:
                x = F.normalize(states.features.float(), dim=-1)
                return cosine_logits(backbone, x, weights[chosen]) + alpha * known(x, beta)

            return score

        return Classifier(
            for_classes,
            parameters=cache.keys.numel() if done.history else 0,
            step_seconds=done.step_seconds,
            history=done.history,
        )

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> int:
        return 0

    def cache(self, backbone: Backbone, weights: Tensor, views: Tensor, train: Training) -> tuple[Cache, Trained]:
        """Of the shots of `train`, whose features are `views` [V, N, e]."""
        values = F.one_hot(labels_of(train), len(weights)).to(views.dtype)
        return Cache(F.normalize(views.mean(0), dim=-1), values), Trained()

    def _held_out(
        self, backbone: Backbone, weights: Tensor, views: Tensor, labels: Tensor, train: Training, cache: Cache
    ) -> Iterable[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """(affinity to the keys, values, zero-shot logits, labels) of validation images, once or once a fold."""
        if train.val:
            parts = [(cache, plain_features(train, train.val), labels_of(train, train.val))]
        else:
            parts, plain = [], plain_features(train, train.images)
            for rows, held in folds(labels, train.seed):
                part = replace(train, images=train.images.subset(rows.tolist()), progress=False)
                kept, _ = self.cache(backbone, weights, views[:, rows], part)
                parts.append((kept, plain[held], labels[held]))
        for kept, features, wanted in parts:
            x = F.normalize(features.float(), dim=-1)
            yield x @ kept.keys.T, kept.values, cosine_logits(backbone, x, weights), wanted

    def _search(self, held_out: Iterable[tuple[Tensor, Tensor, Tensor, Tensor]]) -> tuple[float, float]:
        """The smallest beta, then the smallest alpha, that gives most hits on a grid from 0.1."""
        parts = list(held_out)
        if not parts:
            return self.alpha, self.beta
        alphas, betas = (
            [0.1 + (largest - 0.1) * i / steps for i in range(steps)]
            for largest, steps in ((self.largest_alpha, self.alpha_steps), (self.largest_beta, self.beta_steps))
        )
        best, chosen = -1, (self.alpha, self.beta)
        for beta in betas:
            hits = torch.zeros(len(alphas), dtype=torch.long)
            for affinity, values, clip, labels in parts:
                extra = (-beta * (1 - affinity)).exp() @ values
                hits += torch.tensor([int(((clip + alpha * extra).argmax(-1) == labels).sum()) for alpha in alphas])
            if int(hits.max()) > best:
                best = int(hits.max())
                chosen = alphas[hits.tolist().index(best)], beta
        return chosen


@dataclass(frozen=True)
class TipAdapterF(TipAdapter):
    """The keys are trained, at alpha and beta as given, before both are searched. The keys of the last epoch are
    taken; the released code takes those of the epoch that is best on the test images."""

    title: ClassVar[str] = "Tip-Adapter-F"
    learning_rate: float = 1e-3
    epochs: int = 20
    batch_size: int = 256
    weight_decay: float = 0.01  # AdamW's own
    eps: float = 1e-4

    def cache(self, backbone: Backbone, weights: Tensor, views: Tensor, train: Training) -> tuple[Cache, Trained]:
        start, _ = super().cache(backbone, weights, views, train)
        cache, labels = Cache(nn.Parameter(start.keys.clone()), start.values), labels_of(train)

        def loss(epoch: int, rows: Tensor) -> Tensor:
            x = F.normalize(views[epoch % len(views), rows], dim=-1)
            logits = cosine_logits(backbone, x, weights) + self.alpha * cache(x, self.beta)
            return F.cross_entropy(logits, labels[rows])

        recipe = Recipe(
            "adamw",
            self.learning_rate,
            self.weight_decay,
            self.epochs,
            self.batch_size,
            warmup_epochs=0,
            every="step",
            eps=self.eps,
        )
        done = minimise([cache.keys], loss, recipe, train)  # type: ignore[list-item]
        return Cache(cache.keys.detach(), cache.values), done

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> int:
        return classes * shots * embedding_size(backbone)
