"""Tip-Adapter: the shots as a cache that is queried by similarity, and Tip-Adapter-F, with trained
keys.

logits = scale * x w^T + alpha * exp(-beta * (1 - x keys^T)) values        Zhang et al., ECCV 2022

x are normalised image features, w class features, keys the normalised features of the shots, values
their classes as one-hot vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pydantic.dataclasses
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.backbones import Backbone
from rmadapter.encoders import States
from rmadapter.methods.parts.features import best_pair, columns, held_out, hits_of, one_hot, unit
from rmadapter.prompts import cosine_logits, zero_shot_weights
from rmadapter.settings import STRICT, option
from rmadapter.training.cache import Held
from rmadapter.training.contract import (
    HELD_OUT,
    About,
    Batch,
    Fitted,
    Known,
    Method,
    Parameters,
    Recipe,
    Shots,
    ToLogits,
    Trained,
    Traits,
    Uses,
    minimise,
    shaped,
)

ON_TEST = "alpha and beta for ImageNet (authors' main_imagenet.py), here searched on held-out shots"


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class Search:
    """alpha and beta are searched on validation images, else on parts of the shots held out in
    turn; with one shot per class nothing can be held out, and they stay as given. The grid is that
    of ImageNet, Oxford Pets and UCF101 in the released code, which has wider ones for the other
    data sets."""

    alpha: float = option(1.17, "weight of the cache")
    beta: float = option(1.0, "sharpness of the cache")
    search: bool = option(True, "search alpha and beta, or take them as given")
    largest_alpha: float = option(3.0, "end of the grid of alpha")
    largest_beta: float = option(7.0, "end of the grid of beta")
    alpha_steps: int = option(20, "values of alpha that are tried", ge=1, le=10_000)
    beta_steps: int = option(200, "values of beta that are tried", ge=1, le=10_000)


@dataclass(frozen=True)
class TipAdapter(Method):
    """Answers by zero-shot and by the shots, whose features are keys and whose classes are values.

    Nothing is trained. A key is the mean of a shot over the run's augmented views; the released
    code takes ten. Only answers for the classes of its shots.
    """

    title = "Tip-Adapter"
    source = (
        "Zhang et al., ECCV 2022 (arXiv 2207.09519); configs/imagenet.yaml of "
        "github.com/gaopengcuhk/Tip-Adapter"
    )
    traits = Traits(
        uses=Uses(
            constants="alpha and the grids of alpha and beta",
            tuned=HELD_OUT,
            on_test=ON_TEST,
        ),
        about=About(
            "nothing",
            "similar shots add to zero-shot answers",
            "machines that cannot train at all",
            new_classes=False,
        ),
        reads="features",
    )
    grid: Search = field(default_factory=Search)

    def keys(self, backbone: Backbone, shots: Shots, views: Tensor) -> tuple[Tensor, Trained]:
        """Return keys [N, e] of some shots with features `views` [V, N, e], and how they were
        trained."""
        return mean_keys(views), Trained(weighed=True)

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> Parameters:
        return Parameters()

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        views = shots.features()
        keys, trained = self.keys(backbone, shots, views)
        alpha, beta = self.grid.alpha, self.grid.beta
        parts = list(self.judged(backbone, shots, views, keys)) if self.grid.search else []
        if parts:
            alpha, beta = self._best(parts)
        numbers = {"alpha": torch.tensor(alpha), "beta": torch.tensor(beta)}
        tensors = {"keys": keys, "values": one_hot(shots), **numbers}
        return self.restore(backbone, shots.known, tensors).after(trained)

    def restore(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Fitted:
        alpha, beta = float(shaped(tensors, "alpha")), float(shaped(tensors, "beta"))
        keys = shaped(tensors, "keys", -1, backbone.embedding_size)
        every = shaped(tensors, "values", len(keys), len(known.classes))

        def for_classes(names: Sequence[str]) -> ToLogits:
            chosen = columns(self.title, known.classes, names)
            weights = zero_shot_weights(backbone, known.classes, known.templates)[chosen]
            values = every[:, chosen]

            def score(states: States) -> Tensor:
                x = unit(states.features)
                return cosine_logits(backbone, x, weights) + alpha * ask(x @ keys.T, values, beta)

            return score

        parameters = 0 if self.recipe is None else keys.numel()
        return Fitted(self, backbone, known, tensors, for_classes, parameters=parameters)

    def judged(
        self, backbone: Backbone, shots: Shots, views: Tensor, keys: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Yield affinities to the keys, values, zero-shot logits and labels of each held-out part.

        Args:
            backbone: Backbone of the fit.
            shots: Images of the fit.
            views: Features [V, N, e] of the shots.
            keys: Keys of all shots.
        """
        weights = zero_shot_weights(backbone, shots.classes, shots.templates)
        for rows, features, targets in held_out(shots):
            fitted, part_keys = shots, keys
            if not shots.val:
                images = shots.images.subset(rows.tolist())
                fitted = replace(
                    shots, images=images, unfinished=None, progress=False, callbacks=()
                )
                part_keys = self.keys(backbone, fitted, views[:, rows])[0]
            x = unit(features)
            yield x @ part_keys.T, one_hot(fitted), cosine_logits(backbone, x, weights), targets

    def _best(self, parts: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]]) -> tuple[float, float]:
        """Return alpha and beta with the most hits on a grid from 0.1; among equals, the smallest
        beta, then alpha."""
        grid = self.grid
        alphas, betas = (
            [0.1 + (largest - 0.1) * i / steps for i in range(steps)]
            for largest, steps in (
                (grid.largest_alpha, grid.alpha_steps),
                (grid.largest_beta, grid.beta_steps),
            )
        )

        def hits(beta: float) -> Tensor:
            found = torch.zeros(len(alphas), dtype=torch.long)
            for affinity, values, clip, labels in parts:
                extra = ask(affinity, values, beta)
                found += hits_of((clip + alpha * extra for alpha in alphas), labels)
            return found

        beta, alpha = best_pair(betas, alphas, hits)
        return alpha, beta


@dataclass(frozen=True)
class TipAdapterF(TipAdapter):
    """Trains the keys, with alpha and beta as given, before both are searched. The keys of the last
    epoch are used; the released code uses the best epoch on the test images."""

    title = "Tip-Adapter-F"
    traits = Traits(
        uses=Uses(
            constants="alpha, the grids of alpha and beta, epochs on EuroSAT",
            tuned=HELD_OUT,
            on_test=f"{ON_TEST}; the epoch (their main.py, issue 11), here the last",
        ),
        about=About(
            "features",
            "Tip-Adapter's stored features of the shots",
            "few classes: its size grows with shots and classes",
            new_classes=False,
        ),
        reads="features",
    )
    recipe: Recipe = Recipe(
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=0.01,
        eps=1e-4,
        epochs=20,
        batch_size=256,
        schedule="step",
        warmup_epochs=0,
    )

    def keys(self, backbone: Backbone, shots: Shots, views: Tensor) -> tuple[Tensor, Trained]:
        weights = zero_shot_weights(backbone, shots.classes, shots.templates)
        cache, values = nn.ParameterDict({"trained": mean_keys(views)}), one_hot(shots)

        def loss(batch: Batch) -> Tensor:
            x = F.normalize(batch.images.features, dim=-1)
            extra = ask(x @ cache["trained"].T, values, self.grid.beta)
            logits = cosine_logits(backbone, x, weights) + self.grid.alpha * extra
            return F.cross_entropy(logits, batch.labels)

        trained = minimise(cache, loss, self.recipe, shots, Held.of_features(views))
        return cache["trained"].detach(), trained

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> Parameters:
        return Parameters(classes * shots * backbone.embedding_size)


def mean_keys(views: Tensor) -> Tensor:
    """Average features [V, N, e] over views: [N, e]."""
    return F.normalize(views.mean(0), dim=-1)


def ask(affinity: Tensor, values: Tensor, beta: float) -> Tensor:
    """Turn cosines [B, N] to the keys and values [N, C] into the cache's logits [B, C], before
    alpha."""
    return (-beta * (1 - affinity)).exp() @ values
