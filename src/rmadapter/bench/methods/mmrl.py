"""MMRL: Guo & Gu, "MMRL: Multi-Modal Representation Learning for Vision-Language Models", CVPR 2025 (arXiv 2503.08497).

Tokens R [K, r] of a space that both encoders share are mapped linearly into every block from J upwards, by a map of its
own for every block and encoder, and take the place of those that left the block below. In text they stand behind the
first token; among those of an image, order means nothing. The class token gives CLIP's features f_c; the mean of an
image's K top tokens, by a projection of its own that is trained too, gives representation features f_r. With class
features w and frozen counterparts f_0, w_0, the loss is

    alpha CE(f_c, w) + (1 - alpha) CE(f_r, w) + lambda (1 - cos(f_c, f_0)) + lambda (1 - cos(w, w_0)).

Answers among classes that were trained on are alpha f_c + (1 - alpha) f_r; among any others, f_c alone.
Everything below block J is frozen and computed once, in text too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.adapter import adapted_blocks, class_weights
from rmadapter.backbone import Backbone
from rmadapter.bench.methods.base import Classifier, Training
from rmadapter.bench.methods.deep import cosine, count, draw, prompted_towers
from rmadapter.bench.methods.loop import Recipe, minimise
from rmadapter.bench.methods.shots import embedding_size, labels_of
from rmadapter.blocks import Dense, Packed, pack
from rmadapter.errors import UserError
from rmadapter.model import CHUNK
from rmadapter.towers import ImageTower, States, TextTower


@dataclass(frozen=True)
class _Ends(Dense):
    """Images of which the first and the last K tokens are read."""

    last: int

    def attend_read(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        return self.attend(q, k, v, heads)

    def read(self, x: Tensor) -> Tensor:
        """[B, L, d] -> [B, 1 + K, d]"""
        return torch.cat([x[:, :1], x[:, -self.last :]], 1)


@dataclass(frozen=True)
class Prompts:
    """Frozen prompts that enter block J, and where the K representation tokens stand among them.

    frozen: T tokens of C prompts. wide: layout of T' >= T tokens. old: [T] rows of `wide` that are the prompts' own,
    new: its other rows, and `which` of the K tokens each of them is.
    """

    frozen: States
    wide: Packed
    old: Tensor
    new: Tensor
    which: Tensor


def widen(tower: TextTower, tokens: Tensor, more: int) -> Prompts:
    """Make room for `more` tokens behind the first of every prompt, tokens [C, L]."""
    lengths, read = tower.real_tokens(tokens)
    filled = torch.cat([tokens[:, :1].expand(-1, 1 + more), tokens[:, 1:]], 1)
    moved = None if read is None else read + more * (read > 0)
    wide = pack(filled, lengths + more, moved, causal=tower.causal)
    is_new = (wide.positions >= 1) & (wide.positions <= more)
    new, old = (mask.nonzero()[:, 0] for mask in (is_new, ~is_new))
    return Prompts(tower.frozen(tokens), wide, old, new, wide.positions[new] - 1)


class Representations(nn.Module):
    """R, its maps into both encoders, by number of the block, and the projection of representation features.

    In the shallower of two encoders the blocks are those of the same relative height.
    """

    def __init__(self, backbone: Backbone, tokens: int, width: int, first_block: int, seed: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.towers = image, text = prompted_towers(backbone, "MMRL")
        deepest = max(image.depth, text.depth)
        if not 1 <= first_block <= deepest:
            raise UserError(f"mmrl.first_block={first_block}: {backbone.name} has blocks 1 to {deepest}")
        self.space = nn.Parameter(draw(tokens, width, seed))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.maps = nn.ModuleDict()
            for tower in self.towers:
                blocks = adapted_blocks(first_block, None, tower.depth, deepest)
                one = nn.Linear(width, tower.width)  # all blocks start alike, as the released code has it
                self.maps[tower.side] = nn.ModuleDict({str(i): deepcopy(one) for i in blocks})
                tower.first = blocks[0]
            self.projection = nn.Parameter(image.width**-0.5 * torch.randn(image.width, embedding_size(backbone)))

    def tokens(self, side: str, block: int) -> Tensor:
        """[K, d] into one block."""
        return self.maps[side][str(block)](self.space)  # type: ignore[index]

    def prompts(self, names: Sequence[str], templates: Sequence[str]) -> list[Prompts]:
        """Prompts of all classes, template by template, in chunks."""
        tokens = self.backbone.tokenizer([t.format(name) for t in templates for name in names]).to(self.space.device)
        return [widen(self.towers[1], chunk, len(self.space)) for chunk in tokens.split(CHUNK)]

    def class_features(self, prompts: Sequence[Prompts], templates: int) -> Tensor:
        """Normalised, [C, e]."""
        return class_weights(torch.cat([self._text(chunk) for chunk in prompts]), templates)

    def _text(self, prompts: Prompts) -> Tensor:
        tower, layout, x = self.towers[1], prompts.wide, prompts.frozen.x
        x = x.new_zeros(len(layout.ids), x.shape[-1]).index_copy(0, prompts.old, x)
        for i in range(tower.first, tower.depth + 1):
            x = x.index_copy(0, prompts.new, self.tokens("text", i)[prompts.which])
            x = tower.step(i, x, tower.blocks[i - 1].norm(x), layout, i == tower.depth and tower.reads_one(layout))
        if not tower.reads_one(layout):
            x = x[prompts.old]  # an encoder that pools over all tokens pools over the prompt's own
        return tower.head(x, prompts.frozen.layout)

    def image_features(self, states: States) -> tuple[Tensor, Tensor]:
        """f_c and f_r, [B, e] each, not normalised, of an image's tokens that enter block J."""
        tower, x, k = self.towers[0], states.x, len(self.space)
        own, one = x.shape[1], tower.reads_one(tower.layout)
        layout = _Ends(0, k)
        for i in range(tower.first, tower.depth + 1):
            x = torch.cat([x[:, :own], self.tokens("image", i).expand(len(x), -1, -1)], 1)
            x = tower.step(i, x, tower.blocks[i - 1].norm(x), layout, i == tower.depth and one)
        return tower.head(x[:, :-k], tower.layout), last_norm(tower, x[:, -k:]).mean(1) @ self.projection


def last_norm(tower: ImageTower, x: Tensor) -> Tensor:
    """The norm of single tokens behind the top block."""
    if not tower.timm:
        return tower.visual.ln_post(x)
    trunk = tower.visual.trunk
    return trunk.fc_norm(trunk.norm(x))


@dataclass(frozen=True)
class MMRL:
    """tokens: K. width: r. first_block: J, counted in the deeper encoder. alpha, regularisation (lambda): of the loss.

    The released preset sets `regularisation` (and on EuroSAT `width`) for each data set, from 0.01 to 7; here it is
    that of the general file for all. Logits are over the backbone's own temperature, 1/100 in OpenAI's CLIP, which the
    released code writes out.
    """

    title: ClassVar[str] = "MMRL"
    source: ClassVar[str] = (
        "Guo & Gu, CVPR 2025 (arXiv 2503.08497); configs/trainers/MMRL/vit_b16.yaml of github.com/yunncheng/MMRL"
    )
    tokens: int = 5
    width: int = 512
    first_block: int = 6
    alpha: float = 0.7
    regularisation: float = 1.0
    epochs: int = 10
    learning_rate: float = 0.001
    batch_size: int = 4

    def module(self, backbone: Backbone, seed: int = 1) -> Representations:
        return Representations(backbone, self.tokens, self.width, self.first_block, seed)

    def loss(
        self, module: Representations, labels: Tensor, states: States, prompts: Sequence[Prompts], templates: int = 1
    ) -> dict[str, Tensor]:
        """The loss and its terms, each with its weight in it, for labels [B]."""
        f_c, f_r = module.image_features(states)
        w = module.class_features(prompts, templates)
        w_0 = class_weights(torch.cat([chunk.frozen.features for chunk in prompts]), templates)
        terms = {
            "ce": self.alpha * F.cross_entropy(cosine(module.backbone, f_c, w), labels),
            "ce_representation": (1 - self.alpha) * F.cross_entropy(cosine(module.backbone, f_r, w), labels),
            "image": self.regularisation * (1 - F.cosine_similarity(f_c, states.features).mean()),
            "text": self.regularisation * (1 - F.cosine_similarity(w, w_0).mean()),
        }
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}

    def fit(self, backbone: Backbone, train: Training) -> Classifier:
        module = self.module(backbone, train.seed)
        first, templates = module.towers[0].first, train.templates
        frozen, labels = train.frozen(first), labels_of(train)
        module.to(train.device)
        prompts = module.prompts(train.images.classes, templates)

        def loss(epoch: int, rows: Tensor) -> dict[str, Tensor]:
            states = frozen.batch(rows, train.device, epoch)
            return self.loss(module, labels[rows], states, prompts, len(templates))

        recipe = Recipe("adamw", self.learning_rate, epochs=self.epochs, batch_size=self.batch_size)
        done = minimise(module.parameters(), loss, recipe, train)
        known = set(train.images.classes)

        @torch.no_grad()
        def for_classes(names: Sequence[str]) -> Callable[[States], Tensor]:
            w = module.class_features(module.prompts(names, templates), len(templates))
            alpha = self.alpha if known.issuperset(names) else 1.0

            @torch.no_grad()
            def score(states: States) -> Tensor:
                f_c, f_r = module.image_features(states)
                return alpha * cosine(backbone, f_c, w) + (1 - alpha) * cosine(backbone, f_r, w)

            return score

        return Classifier(for_classes, first, count(module), done.step_seconds, done.history)

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> int:
        return count(self.module(backbone))
