"""CoOp, context optimisation: Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.backbone import Backbone
from rmadapter.bench.methods.base import Classifier, Training
from rmadapter.bench.methods.loop import Recipe, minimise
from rmadapter.bench.methods.prompts import PromptedText, init_words
from rmadapter.bench.methods.zero_shot import cosine_logits
from rmadapter.towers import States, towers


class Context(nn.Module):
    """Context vectors ctx [n, d] before every class name: the embeddings of `words`, or noise where there are none."""

    def __init__(self, backbone: Backbone, words: str, tokens: int, seed: int) -> None:
        super().__init__()
        self.backbone = backbone
        noise = torch.randn(tokens, towers(backbone.model)[1].width, generator=torch.Generator().manual_seed(seed))
        self.ctx = nn.Parameter(init_words(backbone, words) if words else 0.02 * noise)

    def bind(self, names: Sequence[str]) -> Callable[[], Tensor]:
        """What gives the normalised features [C, e] of these classes, as the parameters are when it is called."""
        prompts = PromptedText(self.backbone, names, len(self.ctx))
        return lambda: F.normalize(prompts.encode(self.ctx), dim=-1)

    def score(self, names: Sequence[str]) -> Callable[[Tensor], Tensor]:
        """What gives the logits [B, C] of untouched image features [B, e]."""
        weights = self.bind(names)()
        return lambda features: cosine_logits(self.backbone, features, weights)


@dataclass(frozen=True)
class CoOp:
    """Trains context vectors that all classes share and that replace the words before the class name.

    context: words whose embeddings the vectors start from; if empty, `tokens` vectors start from noise of deviation
    0.02. The released script trains 200 epochs, and 50 on ImageNet (`--set coop.epochs=50`).
    """

    title: ClassVar[str] = "CoOp"
    source: ClassVar[str] = (
        "Zhou et al., IJCV 2022 (arXiv 2109.01134); vit_b16_ctxv1 of github.com/KaiyangZhou/CoOp, the configuration "
        "of its base-to-new script for all data sets but ImageNet, where it trains 50 epochs"
    )
    context: str = "a photo of a"
    tokens: int = 4
    learning_rate: float = 0.002
    weight_decay: float = 5e-4
    epochs: int = 200
    batch_size: int = 32

    @property
    def recipe(self) -> Recipe:
        return Recipe("sgd", self.learning_rate, self.weight_decay, self.epochs, self.batch_size)

    def learner(self, backbone: Backbone, templates: Sequence[str], seed: int) -> Any:
        """The module that is trained; its `bind` gives class features."""
        return Context(backbone, self.context, self.tokens, seed)

    def penalty(self, backbone: Backbone, train: Training) -> Callable[[Tensor], Tensor] | None:
        """What is added to the cross-entropy, as a function of the class features [C, e]."""
        return None

    def prepare(self, backbone: Backbone, train: Training) -> tuple[Any, Callable[[int, Tensor], dict[str, Tensor]]]:
        """The module that is trained, and the terms of its loss on some rows of the shots in some epoch."""
        frozen = train.frozen()
        labels = torch.tensor(train.images.labels, device=train.device)
        learner = self.learner(backbone, train.templates, train.seed).to(train.device)
        weights, penalty = learner.bind(train.images.classes), self.penalty(backbone, train)

        def loss(epoch: int, rows: Tensor) -> dict[str, Tensor]:
            classes, features = weights(), frozen.batch(rows, train.device, view=epoch).features
            ce = F.cross_entropy(cosine_logits(backbone, features, classes), labels[rows])
            if penalty is None:
                return {"loss": ce}
            distance = penalty(classes)
            return {"loss": ce + distance, "ce": ce, "distance": distance}

        return learner, loss

    def fit(self, backbone: Backbone, train: Training) -> Classifier:
        learner, loss = self.prepare(backbone, train)
        trained = minimise(learner.parameters(), loss, self.recipe, train)

        @torch.no_grad()
        def for_classes(names: Sequence[str]) -> Callable[[States], Tensor]:
            score = learner.score(names)
            return torch.no_grad()(lambda states: score(states.features))

        return Classifier(for_classes, None, _count(learner), trained.step_seconds, trained.history)

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> int:
        return _count(self.learner(backbone, ("{}",), 0))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
