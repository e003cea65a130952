"""CoCoA-Mix: Hong et al., "Confusion-and-Confidence-Aware Mixture Model for Context Optimization",
ICML 2025 (arXiv 2506.07484).

Context trained like CoOp's, with an extra term that pushes hardest where two classes are confused.
With p(y) the probability of an image's own class, the loss is

    CE + w (1 - p(y)).

Its cosines s_1 are mixed with those of the written prompts, s_0, class by class: pi s_1 + (1 - pi)
s_0. For trained classes, pi minimises the cross-entropy on the shots. For all others it is the
largest pi at which pi s_1 is no more confident than s_0 when the shots are classified among
unrelated words:

max(0, H(s_0) - H(pi s_1) + d) = 0 for every shot, H the entropy of the softmax over those words.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, permutations
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.data.names import descriptions
from rmadapter.methods.coop import Context
from rmadapter.methods.parts.learned_prompts import limit_tokens
from rmadapter.prompts import Cosines, cosine_logits, entropy, untouched, zero_shot_weights
from rmadapter.settings import Size
from rmadapter.support.files import read_text
from rmadapter.training.contract import (
    About,
    Batch,
    Fitted,
    Known,
    Loss,
    ModuleMethod,
    Recipe,
    Shots,
    ToLogits,
    Traits,
    Uses,
    minimise,
)

HALVINGS = 20  # finds a share to within a millionth
# The authors draw words from a package; these are our own.
WORDS = tuple(read_text(Path(__file__).with_name("words.txt")).split())


def other_names(classes: Sequence[str], seed: int) -> tuple[str, ...]:
    """Return as many words as there are classes, none of them a class name; then pairs of words if
    there are too few."""
    words = random.Random(seed).sample(WORDS, len(WORDS))
    pairs: Iterator[str] = (f"{one} {other}" for one, other in permutations(words, 2))
    taken = {one.lower() for name in classes for one in descriptions(name)}
    return tuple(islice((word for word in chain(words, pairs) if word not in taken), len(classes)))


def largest(holds: Callable[[float], bool]) -> float:
    """Return the largest share in [0, 1] that `holds`, which is assumed true up to some share and
    false above it."""
    if holds(1.0):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def share_inside(ours: Tensor, theirs: Tensor, labels: Tensor, weights: Tensor) -> float:
    """Return the pi that minimises the cross-entropy of pi ours + (1 - pi) theirs: both [N, C],
    labels and weights [N].

    The cross-entropy is convex in pi, so its slope grows, and the minimum is where the slope is 0.
    """
    gap = ours - theirs
    target = gap.gather(1, labels[:, None])[:, 0]

    def falls(share: float) -> bool:
        expected = ((theirs + share * gap).softmax(-1) * gap).sum(-1)
        return bool((weights * (expected - target)).sum() <= 0)

    return largest(falls)


def share_outside(ours: Tensor, theirs: Tensor, margin: float, weights: Tensor) -> float:
    """Return the largest pi at which no answer by pi ours is more confident than that by theirs:
    both [N, C]. Only rows with weights [N] above 0 count. 0 if the margin asks for more than the
    entropy of a uniform answer."""
    ours, theirs = ours[weights > 0], theirs[weights > 0]
    least = entropy(theirs) + margin
    return largest(lambda share: bool((entropy(share * ours) >= least).all()))


class Mixture(Context):
    """Context vectors as CoOp's, and their shares [2] (pi) in answers for trained classes and for
    others."""

    shares: Tensor

    def __init__(self, backbone: Backbone, words: str, tokens: int, seed: int) -> None:
        super().__init__(backbone, words, tokens, seed)
        self.register_buffer("shares", torch.ones(2, device=backbone.device))

    def for_classes(self, names: Sequence[str], known: Known) -> ToLogits:
        ours = self.class_weights(names, known)
        theirs = zero_shot_weights(self.backbone, names, known.templates)
        trained = {*known.classes}
        share = self.shares[[int(name not in trained) for name in names], None]
        return Cosines(self.backbone, untouched, share * ours + (1 - share) * theirs)

    @torch.no_grad()
    def mix(self, shots: Shots, margin: float) -> None:
        """Set the shares."""
        features, weights = shots.plain_features(), shots.weights
        weights = torch.ones(len(features), dtype=torch.float64) if weights is None else weights

        def logits(names: Sequence[str]) -> tuple[Tensor, Tensor]:
            both = (
                self.bind(names, shots.templates)(),
                zero_shot_weights(self.backbone, names, shots.templates),
            )
            ours, theirs = (cosine_logits(self.backbone, features, w).cpu().double() for w in both)
            return ours, theirs

        weights = weights.cpu()  # Apple's GPU has no float64
        inside = share_inside(*logits(shots.classes), shots.labels.cpu(), weights)
        outside = share_outside(*logits(other_names(shots.classes, shots.seed)), margin, weights)
        self.shares.copy_(torch.tensor([inside, outside]))


@dataclass(frozen=True)
class CoCoAMix(ModuleMethod[Mixture]):
    """CoOp whose answers are mixed with those of the written prompts.

    Neither the authors' code nor the paper was available; this follows a summary that has the
    equations. Optimiser, rate and number of vectors are theirs by that summary; w, d and the number
    of epochs are ours. They find the shares by SGD; here they are found exactly.

    Args:
        context: Words that the context starts from; if empty, it starts from noise.
        tokens: Number of context vectors, at most a quarter of the text encoder's length.
        confusion: Weight w of the term for confused classes.
        margin: Margin d, in nats.
    """

    title = "CoCoA-Mix"
    source = (
        "Hong et al., ICML 2025 (arXiv 2506.07484), by a summary of its equations; w, d and epochs "
        "are ours"
    )
    traits = Traits(
        uses=Uses(extra="148 general words", tuned="as published, as far as known"),
        about=About("text", "CoOp's vectors, mixed with hand-written prompts"),
        reads="text",
        own_reading="from the abstract and a summary of the equations, as no code was released",
    )
    context: str = ""
    tokens: Size = 16
    confusion: float = 1.0
    margin: float = 0.0
    recipe: Recipe = Recipe(optimizer="adam", learning_rate=0.002)

    def module(self, backbone: Backbone, seed: int = 1) -> Mixture:
        return Mixture(backbone, self.context, limit_tokens(backbone, self.tokens), seed)

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        module = self.module(backbone, shots.seed)
        trained = minimise(
            module, self.objective(module, shots), self.recipe, shots, shots.source()
        )
        module.mix(shots, self.margin)
        return self.restore(backbone, shots.known, module.state_dict()).after(trained)

    def objective(self, module: Mixture, shots: Shots) -> Loss:
        weights = module.bind(shots.classes, shots.templates)

        def loss(batch: Batch) -> dict[str, Tensor]:
            logits = cosine_logits(module.backbone, batch.images.features, weights())
            ce = F.cross_entropy(logits, batch.labels, reduction="none")
            confused = self.confusion * (1 - (-ce).exp()).mean()
            return {"loss": ce.mean() + confused, "ce": ce.mean(), "confusion": confused}

        return loss
