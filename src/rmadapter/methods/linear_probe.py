"""Linear probe of the frozen image features: logistic regression."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from rmadapter.methods.parts.features import held_out, linear_scorer
from rmadapter.metrics import temperature
from rmadapter.settings import Count, Positive
from rmadapter.training.contract import (
    HELD_OUT,
    About,
    Fitted,
    Known,
    Method,
    Parameters,
    Shots,
    Trained,
    Traits,
    Uses,
    shaped,
)

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

# mean difference of logits to which they are divided at most: float32 still tells the answers apart
MIN_LOGIT_SPREAD = 1e-2


@dataclass(frozen=True)
class LinearProbe(Method):
    """Logistic regression on normalised features, with an L2 penalty chosen on held-out images.

    These are the validation images, else parts of the shots held out in turn; with one shot per
    class nothing can be held out, and `C` stays as given. The penalty strongly affects the probe's
    confidence, so its logits are divided by the temperature that suits the same images; no answer
    changes. Only answers for the classes of its shots.

    Args:
        iterations: Largest number of iterations of L-BFGS.
        search_steps: Halvings of the step in the search of C, down to eight steps per decade; 0
            takes C as given.
        C: One over the penalty, without a search.
    """

    title = "linear probe"
    source = (
        "Radford et al., ICML 2021 (arXiv 2103.00020), appendix A.3: L-BFGS and the search of C; "
        "C without a search as in the example of openai/CLIP"
    )
    traits = Traits(
        uses=Uses(tuned=HELD_OUT),
        about=About(
            "features",
            "a logistic regression that ignores class names",
            "many shots, or class names that say little",
            new_classes=False,
        ),
        reads="features",
        without_text=True,
    )
    iterations: Count = 1000  # of L-BFGS, at most
    search_steps: Count = 4  # down to eight steps per decade; 0 takes C without a search
    C: Positive = 0.316

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        if len(shots.classes) < 2:
            raise UserError("linear probe: there is only one class; give at least two")
        views, labels = F.normalize(shots.features(), dim=-1), shots.labels
        weights = torch.ones(len(labels)) if shots.weights is None else shots.weights
        parts = held_out(shots) if self.search_steps else []
        strength, heat = self._search(views, labels, weights, parts)
        model = self._regression(views, labels, weights, strength)
        tensors = {
            "weight": torch.from_numpy(model.coef_ / heat).float().to(shots.device),
            "bias": torch.from_numpy(model.intercept_ / heat).float().to(shots.device),
        }
        return self.restore(backbone, shots.known, tensors).after(Trained(weighed=True))

    def restore(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Fitted:
        kept = 1 if len(known.classes) == 2 and tensors["bias"].numel() == 1 else len(known.classes)
        weight = shaped(tensors, "weight", kept, backbone.embedding_size)
        bias = shaped(tensors, "bias", kept)
        # for two classes scikit-learn keeps only the logit of the second; the first is 0
        if len(weight) == 1:
            weight, bias = F.pad(weight, (0, 0, 1, 0)), F.pad(bias, (1, 0))

        count = sum(tensor.numel() for tensor in tensors.values())
        return Fitted(
            self,
            backbone,
            known,
            tensors,
            linear_scorer(self.title, known, weight, bias),
            parameters=count,
        )

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> Parameters:
        return Parameters((classes if classes > 2 else 1) * (backbone.embedding_size + 1))

    def _regression(
        self, views: Tensor, labels: Tensor, weights: Tensor, strength: float
    ) -> LogisticRegression:
        """Return a regression that is fitted to views of shots.

        Args:
            views: Unit features [V, N, e].
            labels: Labels [N].
            weights: Weights [N].
            strength: C, one over the penalty.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        with warnings.catch_warnings():  # the protocol stops at max_iter, converged or not
            warnings.simplefilter("ignore", ConvergenceWarning)
            # with one shot per class
            warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
            model = LogisticRegression(C=strength, max_iter=self.iterations)  # L-BFGS and L2
            flat = (part.repeat(len(views)).cpu().numpy() for part in (labels, weights))
            return model.fit(views.flatten(0, 1).cpu().numpy(), *flat)

    def _search(
        self,
        views: Tensor,
        labels: Tensor,
        weights: Tensor,
        parts: Sequence[tuple[Tensor, Tensor, Tensor]],
    ) -> tuple[float, float]:
        """Return the C with the most hits on the held-out parts, as found by `_best`, and the
        temperature of its probes.

        Args:
            views: Unit features [V, N, e].
            labels: Labels [N].
            weights: Weights [N].
            parts: Held-out parts, as `held_out` returns them.
        """
        if not parts:
            return self.C, 1.0
        judges = [(rows, F.normalize(x, dim=-1).cpu().double().numpy()) for rows, x, _ in parts]
        targets = torch.cat([y for _, _, y in parts]).cpu().numpy()

        def table(exponent: float) -> np.ndarray:
            fits = [
                self._regression(views[:, rows], labels[rows], weights[rows], 10.0**exponent)
                for rows, _ in judges
            ]
            return np.concatenate(
                [model.predict_proba(x) for model, (_, x) in zip(fits, judges, strict=True)]
            )

        @cache  # of numbers: of tables, one takes 128 MB for 16 shots of 1,000 classes
        def hits(exponent: float) -> int:
            return int((table(exponent).argmax(1) == targets).sum())

        best = self._best(hits)
        probabilities = table(best)
        # the weakest probes are nearly uniform
        heat = temperature(probabilities, targets, most=1e8)
        spread = float(np.ptp(np.log(np.maximum(probabilities, 1e-300)), axis=1).mean())
        return 10.0**best, min(heat, max(1.0, spread / MIN_LOGIT_SPREAD))

    def _best(self, worth: Callable[[float], float]) -> float:
        """Return the best exponent of ten: among even ones, then neighbours at 1, 1/2, 1/4, ... The
        current one wins ties, then the weakest penalty."""
        best = float(max(range(6, -7, -2), key=worth))
        for step in range(self.search_steps):
            best = max((best, best + 0.5**step, best - 0.5**step), key=worth)
        return best
