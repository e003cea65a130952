"""Linear probes of the frozen image features: logistic regression, and softmax regression that starts as zero-shot."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.backbone import Backbone
from rmadapter.bench.methods.base import Classifier, Training
from rmadapter.bench.methods.loop import Recipe, minimise
from rmadapter.bench.methods.shots import columns, embedding_size, folds, labels_of, plain_features, shot_features
from rmadapter.bench.methods.zero_shot import cosine_logits
from rmadapter.errors import UserError
from rmadapter.model import CHUNK
from rmadapter.towers import States, towers


@dataclass(frozen=True)
class LinearProbe:
    """Logistic regression on normalised features, with an L2 penalty whose strength validation images decide.

    Those are the validation images, else parts of the shots held out in turn; of one shot a class nothing can be held
    out, and `C` stays as given. Knows the classes of its shots alone.
    """

    title: ClassVar[str] = "linear probe"
    source: ClassVar[str] = (
        "Radford et al., ICML 2021 (arXiv 2103.00020), appendix A.3: L-BFGS and the search of C; "
        "C without a search as in the example of openai/CLIP"
    )
    iterations: int = 1000  # of L-BFGS, at most
    search_steps: int = 4  # down to eight steps per decade; 0 takes C without a search
    C: float = 0.316

    def fit(self, backbone: Backbone, train: Training) -> Classifier:
        if len(train.images.classes) < 2:
            raise UserError("linear probe: one class leaves nothing to tell apart; give at least two")
        views, labels = F.normalize(shot_features(train), dim=-1), labels_of(train)
        strength = self._search(self._held_out(train, views, labels)) if self.search_steps else self.C
        model = self._regression(views, labels, strength)
        weight, bias = (torch.from_numpy(part).float().to(train.device) for part in (model.coef_, model.intercept_))
        if len(weight) == 1:  # of two classes scikit-learn keeps the second one's logit, the first one's being 0
            weight, bias = F.pad(weight, (0, 0, 1, 0)), F.pad(bias, (1, 0))

        def for_classes(names: Sequence[str]) -> Callable[[States], Tensor]:
            rows = columns(self.title, train.images.classes, names)
            return lambda states: F.linear(F.normalize(states.features.float(), dim=-1), weight[rows], bias[rows])

        return Classifier(for_classes, parameters=model.coef_.size + model.intercept_.size)

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> int:
        return (classes if classes > 2 else 1) * (embedding_size(backbone) + 1)

    def _regression(self, views: Tensor, labels: Tensor, strength: float) -> Any:
        """views: [V, N, e] with labels [N]."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        with warnings.catch_warnings():  # the protocol stops after so many iterations, converged or not
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # one shot a class
            model = LogisticRegression(C=strength, max_iter=self.iterations)  # L-BFGS and L2
            return model.fit(views.flatten(0, 1).cpu().numpy(), labels.repeat(len(views)).cpu().numpy())

    def _held_out(self, train: Training, views: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """(views and labels to fit, features and labels to count hits on), once or once a fold."""
        if train.val:
            held = F.normalize(plain_features(train, train.val), dim=-1)
            return [(views, labels, held, labels_of(train, train.val))]
        plain = F.normalize(plain_features(train, train.images), dim=-1)
        return [(views[:, rows], labels[rows], plain[held], labels[held]) for rows, held in folds(labels, train.seed)]

    def _search(self, held_out: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]]) -> float:
        """The even power of ten with most hits, then its better neighbour in half the distance, again and again."""
        if not held_out:
            return self.C

        @cache
        def hits(exponent: float) -> int:
            fitted = [(self._regression(*part[:2], 10.0**exponent), *part[2:]) for part in held_out]
            return sum(int((model.predict(x.cpu().numpy()) == y.cpu().numpy()).sum()) for model, x, y in fitted)

        best = float(max(range(6, -7, -2), key=hits))  # the weakest penalty among equals
        for step in range(self.search_steps):
            best = max((best, best + 0.5**step, best - 0.5**step), key=hits)
        return 10.0**best


@dataclass(frozen=True)
class ZeroShotProbe:
    """Class features trained as free weights, cosine similarity over CLIP's temperature: starts as zero-shot CLIP.

    The weights start as the text features before normalisation, so their length says how far one step turns them.
    Knows the classes of its shots alone.
    """

    title: ClassVar[str] = "linear probe, zero-shot start"
    source: ClassVar[str] = (
        "ZS-LP of Silva-Rodriguez et al., CVPR 2024 (arXiv 2312.12730); SGD_lr1e-1_B256_ep300 of github.com/jusiro/CLAP"
    )
    learning_rate: float = 0.1
    epochs: int = 300
    batch_size: int = 256
    weight_decay: float = 0.0
    warmup_epochs: int = 1

    def fit(self, backbone: Backbone, train: Training) -> Classifier:
        views, labels = shot_features(train), labels_of(train)
        weights = nn.Parameter(raw_text_features(backbone, train.images.classes, train.templates))

        def loss(epoch: int, rows: Tensor) -> Tensor:
            x = views[epoch % len(views), rows]
            return F.cross_entropy(cosine_logits(backbone, x, F.normalize(weights, dim=-1)), labels[rows])

        recipe = Recipe(
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
            warmup_epochs=self.warmup_epochs,
        )
        done = minimise([weights], loss, recipe, train)
        trained = F.normalize(weights.detach(), dim=-1)

        def for_classes(names: Sequence[str]) -> Callable[[States], Tensor]:
            chosen = trained[columns(self.title, train.images.classes, names)]
            return lambda states: cosine_logits(backbone, states.features, chosen)

        return Classifier(for_classes, parameters=weights.numel(), step_seconds=done.step_seconds, history=done.history)

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> int:
        return classes * embedding_size(backbone)


@torch.no_grad()
def raw_text_features(backbone: Backbone, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Class features [C, e] of the untouched text encoder before normalisation, averaged over templates."""
    _, tower = towers(backbone.model)
    device = next(backbone.model.parameters()).device
    tokens = backbone.tokenizer([t.format(name) for t in templates for name in names]).to(device)
    features = torch.cat([tower.frozen(chunk).features for chunk in tokens.split(CHUNK)])
    return features.float().unflatten(0, (len(templates), -1)).mean(0)
