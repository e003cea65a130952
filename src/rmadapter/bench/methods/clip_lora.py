"""CLIP-LoRA: low-rank updates of attention in every block of both encoders. Zanella and Ben Ayed, CVPRW 2024.

    q, k, v = W n + (alpha / sqrt(r)) B A drop(n)        n: tokens after the block's first norm, A: [r, d], B: [d, r]

The backbone's weights stay as they are: a block is seen through a view that adds the second term. The image encoder
is trained from its first block on, whose input is all that is frozen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rmadapter.adapter import at_least_float32, class_weights
from rmadapter.backbone import Backbone
from rmadapter.bench.methods.base import Classifier, Training
from rmadapter.bench.methods.loop import Recipe, minimise
from rmadapter.bench.methods.shots import labels_of
from rmadapter.blocks import Packed, Whole
from rmadapter.errors import UserError
from rmadapter.model import CHUNK
from rmadapter.towers import States, Tower, towers

LAST_RATE = 1e-6  # where the cosine ends


class LowRank(nn.Module):
    """scale * B A drop(x) for tokens [..., d]; zero at first."""

    def __init__(self, width: int, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.up.weight)
        self.scale, self.dropout = scale, dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.up(self.down(F.dropout(x, self.dropout, self.training)))


class UpdatedBlock:
    """A block's view with updates of its query, key and value: three of LowRank."""

    def __init__(self, view: Any, updates: nn.ModuleList) -> None:
        self.view, self.updates = view, updates
        self.norm, self.heads, self.close = view.norm, view.heads, view.close

    def query(self, n: Tensor) -> Tensor:
        return self.view.query(n) + self.updates[0](n)

    def key_value(self, n: Tensor) -> tuple[Tensor, ...]:
        return tuple(x + update(n) for x, update in zip(self.view.key_value(n), self.updates[1:], strict=True))

    def qkv(self, n: Tensor) -> tuple[Tensor, ...]:
        return tuple(x + update(n) for x, update in zip(self.view.qkv(n), self.updates, strict=True))


class UpdatedCLIP(nn.Module):
    """Both encoders of a backbone with trainable updates; the backbone itself knows nothing of them.

    Raises UserError for encoders whose blocks cannot be taken apart.
    """

    def __init__(self, backbone: Backbone, rank: int, scale: float, dropout: float, seed: int) -> None:
        super().__init__()
        self.backbone, self.dropout = backbone, dropout
        self.image, self.text = towers(backbone.model)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.updates = nn.ModuleList([self._update(t, rank, scale) for t in (self.image, self.text)])

    def _update(self, tower: Tower, rank: int, scale: float) -> nn.ModuleList:
        if any(isinstance(block, Whole) for block in tower.blocks):
            kind = type(tower.modules[0]).__name__
            raise UserError(
                f"CLIP-LoRA changes query, key and value, and backbone {self.backbone.name!r} has blocks ({kind}) "
                f"that cannot be taken apart; take another one, as 'ViT-B-16/openai'"
            )
        layers = nn.ModuleList(
            nn.ModuleList(LowRank(tower.width, rank, scale, self.dropout) for _ in range(3)) for _ in tower.blocks
        )
        tower.blocks = [UpdatedBlock(*pair) for pair in zip(tower.blocks, layers, strict=True)]  # type: ignore[misc, arg-type]
        return layers

    @torch.no_grad()
    def prompts(self, names: Sequence[str], templates: Sequence[str], share: bool) -> list[tuple[Tensor, Packed]]:
        """What enters the first block of the text encoder, in chunks of CHUNK prompts; none of it is trained."""
        device = next(self.parameters()).device
        tokens = self.backbone.tokenizer([t.format(name) for t in templates for name in names]).to(device)
        layouts = [self.text.layout(chunk, share) for chunk in tokens.split(CHUNK)]
        return [(self.text.stem(layout), layout) for layout in layouts]

    def class_weights(self, prompts: Sequence[tuple[Tensor, Packed]], templates: int) -> Tensor:
        """Normalised class features [C, e]; of several chunks, one at a time is kept for the gradient."""
        if len(prompts) == 1:
            parts = [self.text.encode(*prompts[0])]
        else:
            parts = [checkpoint(self.text.encode, *chunk, use_reentrant=False) for chunk in prompts]
        return class_weights(at_least_float32(torch.cat(parts)), templates)

    def logits(self, states: States, weights: Tensor) -> Tensor:
        """[B, C] from what enters the image encoder's first block."""
        x = at_least_float32(self.image.encode(states.x, states.layout))
        return self.backbone.model.logit_scale.exp() * F.normalize(x, dim=-1) @ weights.T  # type: ignore[operator]


class Annealed(Recipe):
    """The cosine ends at LAST_RATE rather than at zero."""

    def rate(self, step: int, steps_per_epoch: int) -> float:
        return LAST_RATE + (1 - LAST_RATE / self.learning_rate) * super().rate(step, steps_per_epoch)


@dataclass(frozen=True)
class CLIPLoRA:
    """`iterations` are steps per shot of a class, rounded up to whole epochs. alpha / sqrt(rank) scales an update, as
    the released code has it. Dropout is drawn anew for every token of every prompt, so that training cannot share the
    words that all prompts begin with. Several templates are averaged, where the released code trains with the first.
    """

    title: ClassVar[str] = "CLIP-LoRA"
    source: ClassVar[str] = (
        "Zanella and Ben Ayed, CVPRW 2024 (arXiv 2405.18541); defaults of github.com/MaxZanella/CLIP-LoRA"
    )
    rank: int = 2
    alpha: float = 1.0
    dropout: float = 0.25
    iterations: int = 500
    learning_rate: float = 2e-4
    weight_decay: float = 0.01
    batch_size: int = 32

    def model(self, backbone: Backbone, seed: int) -> UpdatedCLIP:
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise UserError(f"rank={self.rank}, dropout={self.dropout}: give a rank from 1 and a dropout below 1")
        return UpdatedCLIP(backbone, self.rank, self.alpha / math.sqrt(self.rank), self.dropout, seed)

    def fit(self, backbone: Backbone, train: Training) -> Classifier:
        model = self.model(backbone, train.seed).to(train.device).train()
        shots, labels, count = train.frozen(model.image.first), labels_of(train), len(train.templates)
        prompts = model.prompts(train.images.classes, train.templates, share=self.dropout == 0)

        def loss(epoch: int, rows: Tensor) -> Tensor:
            states = shots.batch(rows, train.device, view=epoch)
            return F.cross_entropy(model.logits(states, model.class_weights(prompts, count)), labels[rows])

        with torch.random.fork_rng():  # for dropout
            torch.manual_seed(train.seed)
            done = minimise(model.parameters(), loss, self._recipe(train), train)
        model.eval().requires_grad_(False)

        def for_classes(names: Sequence[str]) -> Callable[[States], Tensor]:
            weights = model.class_weights(model.prompts(names, train.templates, share=True), count)
            return lambda states: model.logits(states, weights)

        return Classifier(
            for_classes, model.image.first, sum(p.numel() for p in model.parameters()), done.step_seconds, done.history
        )

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> int:
        return sum(p.numel() for p in self.model(backbone, 0).parameters())

    def _recipe(self, train: Training) -> Recipe:
        shots = max(Counter(train.images.labels).values())
        epochs = math.ceil(self.iterations * shots / math.ceil(len(train.images) / self.batch_size))
        return Annealed(
            "adamw", self.learning_rate, self.weight_decay, epochs, self.batch_size, warmup_epochs=0, every="step"
        )
