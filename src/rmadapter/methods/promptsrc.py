"""PromptSRC: Khattak et al., "Self-regulating Prompts: Foundational Model Adaptation without
Forgetting", ICCV 2023 (arXiv 2307.06948).

Independent deep prompts in both encoders. With prompted features f, w, frozen ones f_0 and w_0 (w_0
averaged over many templates), and the logits of either pair, the loss is

    CE(f, w) + 25 |w - w_0| + 10 |f - f_0| + KL(frozen logits || prompted logits),

where |.| is the mean absolute difference of normalised features, and KL is summed over classes and
divided by the number of logits. The final prompts are an average over epochs, weighted by a
Gaussian of the epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.backbones import Backbone
from rmadapter.methods.parts.learned_prompts import (
    Prompted,
    check_room,
    draw,
    first_context,
)
from rmadapter.prompts import cosine_logits, raw_text_features
from rmadapter.settings import Size
from rmadapter.task import check_templates
from rmadapter.training.contract import (
    PUBLISHED,
    About,
    Batch,
    Fitted,
    Loss,
    ModuleMethod,
    Recipe,
    Shots,
    Traits,
    Uses,
    minimise,
    summed,
)

# Our own list; the released code averages 60 templates of CLIP's ImageNet ensemble. Both mix
# medium, quality and size.
FROZEN_TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of one {}.",
    "a photo of several {}.",
    "a small {} in a large picture.",
    "a {} that fills the picture.",
    "a {} seen from close by.",
    "a {} seen from far away.",
    "a part of a {}.",
    "a blurred photo of a {}.",
    "a sharp photo of a {}.",
    "a photo of a {} in bright light.",
    "a photo of a {} in the dark.",
    "a black and white photo of a {}.",
    "a snapshot of my {}.",
    "a drawing of a {}.",
    "a painting of a {}.",
    "a cartoon of a {}.",
    "a model of a {}.",
    "a {} that is hard to make out.",
)


class IndependentPrompts(Prompted):
    """Prompts of the text and the image encoder, in `depth` blocks each, or all of them if an
    encoder has fewer."""

    def __init__(
        self, backbone: Backbone, n_text: int, n_image: int, depth: int, init: str, seed: int
    ) -> None:
        super().__init__(backbone)
        check_room(backbone, "PromptSRC")
        image, text = backbone.image, backbone.text
        first, self.rest = first_context(backbone, init, n_text, seed)
        drawn = draw(depth * n_text, text.width, seed + 1).split(n_text)
        self.text_prompts = nn.ParameterList(
            [first, *(prompt.clone() for prompt in drawn[1 : text.depth])]
        )
        drawn = draw(depth * n_image, image.width, seed + 2).split(n_image)
        self.image_prompts = nn.ParameterList(prompt.clone() for prompt in drawn[: image.depth])
        self.to(backbone.device)

    def into_text(self) -> list[Tensor]:
        return list(self.text_prompts)

    def into_image(self) -> list[Tensor]:
        return list(self.image_prompts)


class Averaged(nn.Module):
    """Prompts and their average over the epochs so far, both saved for a training that is
    resumed."""

    def __init__(self, prompts: IndependentPrompts, weights: Sequence[float]) -> None:
        super().__init__()
        self.prompts, self.weights = prompts, weights
        for i, parameter in enumerate(prompts.parameters()):
            self.register_buffer(f"mean{i}", torch.zeros_like(parameter, requires_grad=False))

    @torch.no_grad()
    def add(self, epoch: int) -> None:
        for mean, parameter in zip(self.buffers(), self.prompts.parameters(), strict=True):
            mean.add_(parameter, alpha=self.weights[epoch])

    def state(self) -> dict[str, Tensor]:
        """Return the averages under the prompts' names."""
        names = [name for name, _ in self.prompts.named_parameters()]
        return dict(zip(names, self.buffers(), strict=True))


def gaussian(epochs: int, mean: float, std: float) -> Tensor:
    """Return weights of epochs 1..n, which sum to 1."""
    return torch.softmax(
        -0.5 * ((torch.arange(1, epochs + 1, dtype=torch.float64) - mean) / std).square(), 0
    )


@dataclass(frozen=True)
class PromptSRC(ModuleMethod[IndependentPrompts]):
    """Separate prompts in the blocks of both encoders, held near CLIP.

    Args:
        n_text: Text prompts per block.
        n_image: Image prompts per block.
        depth: Prompted blocks of each encoder.
        init: Words that the first text prompts start from.
        text_weight: Weight of the text's L1 term.
        image_weight: Weight of the images' L1 term.
        mean: Mean of the Gaussian over epochs, counted from 1.
        std: Standard deviation of that Gaussian.
        templates: Templates of the frozen class features, by default a list of our own; empty for
            those of the run.
    """

    title = "PromptSRC"
    source = (
        "Khattak et al., ICCV 2023 (arXiv 2307.06948); vit_b16_c2_ep20_batch4_4+4ctx.yaml of "
        "github.com/muzairkhattak/PromptSRC, with templates of our own"
    )
    traits = Traits(
        uses=Uses(extra="20 general templates", tuned=PUBLISHED),
        in_epochs=("mean", "std"),
        about=About(
            "encoders",
            "separate prompt tokens, held near CLIP",
            "new classes, when training time does not matter",
        ),
    )
    n_text: Size = 4
    n_image: Size = 4
    depth: Size = 9
    init: str = "a photo of a"
    text_weight: float = 25.0
    image_weight: float = 10.0
    mean: float = 15.0
    std: float = 1.0
    templates: tuple[str, ...] = FROZEN_TEMPLATES
    recipe: Recipe = Recipe(learning_rate=0.0025, epochs=20, batch_size=4)

    def __post_init__(self) -> None:
        if self.templates:
            check_templates(self.templates)

    def module(self, backbone: Backbone, seed: int = 1) -> IndependentPrompts:
        return IndependentPrompts(backbone, self.n_text, self.n_image, self.depth, self.init, seed)

    def frozen_classes(
        self, backbone: Backbone, names: Sequence[str], templates: Sequence[str]
    ) -> Tensor:
        """Return features [C, e] of the untouched text encoder, averaged over templates before
        normalisation."""
        return F.normalize(
            raw_text_features(backbone, names, self.templates or templates).mean(0), dim=-1
        )

    def objective(self, module: IndependentPrompts, shots: Shots) -> Loss:
        text = module.text(shots.classes)
        w_0 = self.frozen_classes(module.backbone, shots.classes, shots.templates)

        def loss(batch: Batch) -> dict[str, Tensor]:
            f_0 = batch.images.features
            f, w = (
                F.normalize(x, dim=-1)
                for x in (module.image_features(batch.images), module.class_features(text))
            )
            logits, logits_0 = (
                cosine_logits(module.backbone, *pair) for pair in ((f, w), (f_0, w_0))
            )
            divergence = F.kl_div(
                logits.log_softmax(-1), logits_0.log_softmax(-1), reduction="sum", log_target=True
            )
            return summed(
                {
                    "ce": F.cross_entropy(logits, batch.labels),
                    "text": self.text_weight * F.l1_loss(w, w_0),
                    "image": self.image_weight * F.l1_loss(f, F.normalize(f_0, dim=-1)),
                    "logits": divergence / logits.numel(),
                }
            )

        return loss

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        module = self.module(backbone, shots.seed)
        loss = self.objective(module, shots)
        epochs, _ = self.recipe.length(shots.images.labels)
        averaged = Averaged(module, gaussian(epochs, self.mean, self.std).tolist())
        trained = minimise(averaged, loss, self.recipe, shots, shots.source(1), averaged.add)
        return self.restore(backbone, shots.known, averaged.state()).after(trained)
