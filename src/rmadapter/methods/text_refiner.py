"""TextRefiner: Xie et al., "TextRefiner: Internal Visual Feature as Efficient Refiner for
Vision-Language Models Prompt Tuning", AAAI 2025 (arXiv 2412.08176), on CoOp.

    w = t + alpha [t, r] M        r = softmax(t A^T) A

t [C, e] are the unit features of CoOp's prompts, A [S, e] a cache of typical image tokens, M a
learned map [2e, e]. In training only, a layer turns an image's tokens, after CLIP's projection,
into tokens that predict its class; each row of A is a running mean of those most similar to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.adapter import at_least_float32
from rmadapter.backbones import Backbone
from rmadapter.encoders import Opaque, States
from rmadapter.errors import UserError
from rmadapter.methods.coop import Context, CoOp
from rmadapter.methods.parts.learned_prompts import encoder_of
from rmadapter.prompts import cosine_logits, linear_logits
from rmadapter.settings import Share, Size
from rmadapter.support.distributed import add_up, several
from rmadapter.support.machine import seeded
from rmadapter.training.contract import (
    PUBLISHED,
    About,
    Batch,
    Fitted,
    Known,
    Parameters,
    Recipe,
    Shots,
    Traits,
    Uses,
    count,
    minimise,
    summed,
)


class Refiner(Context):
    """CoOp's context, the cache [S, e] and the map; these refine class features and are all answers
    need.

    Raises UserError for an image encoder without a class token, without a linear projection, or
    with blocks that cannot be taken apart.
    """

    reaches = ("image", "text")
    cache: Tensor

    def __init__(self, method: TextRefiner, backbone: Backbone, seed: int) -> None:
        super().__init__(backbone, method.context, method.tokens, seed)
        self.first, self.alpha, size = backbone.image.depth, method.alpha, backbone.embedding_size
        if (
            backbone.image.opaque
            or backbone.image.read_index is None
            or backbone.image.projection is None
        ):
            raise UserError(
                "TextRefiner reads what the class token attends to and projects every token, but "
                "the image encoder of "
                f"{backbone.name!r} has no such token, block or projection; use another method, "
                "such as 'coop'"
            )
        with seeded(seed):
            self.map = nn.Linear(2 * size, size, bias=False)
            self.register_buffer("cache", F.normalize(torch.rand(method.slots, size), dim=-1))
        self.to(backbone.device)

    def refine(self, t: Tensor) -> Tensor:
        """Map unit features [C, e] to refined ones [C, e], not normalised."""
        read = (t @ self.cache.T).softmax(-1) @ self.cache
        return t + self.alpha * self.map(torch.cat([t, read], -1))

    def encode_classes(self, names: Sequence[str], known: Known) -> Tensor:
        return self.refine(super().encode_classes(names, known))

    def image_encoder(self) -> Callable[[States], Tensor]:
        head = self.backbone.image.head
        return lambda states: head(states.y, states.layout)


class Training(nn.Module):
    """The refiner, and the layer that makes image tokens for it."""

    def __init__(self, refiner: Refiner, keep: float, seed: int) -> None:
        super().__init__()
        self.refiner, self.keep, size = refiner, keep, refiner.cache.shape[1]
        with seeded(seed + 1):
            first = nn.Linear(size, size, bias=False)  # BatchNorm would cancel a bias
            self.align = nn.Sequential(
                first, nn.BatchNorm1d(size), nn.ReLU(), nn.Linear(size, size)
            )
        self.to(refiner.cache.device)

    def aligned(self, tokens: Tensor) -> Tensor:
        """Align the features [B, L, e] of tokens."""
        return self.align(tokens.flatten(0, 1)).view_as(tokens)

    @torch.no_grad()
    def write(self, tokens: Tensor) -> None:
        """Write tokens [N, e] into the cache: each into its most similar row, weighted by
        similarity. With several processes, each writes its own tokens, and the caches are then
        averaged."""
        tokens, cache = F.normalize(at_least_float32(tokens), dim=-1), self.refiner.cache
        like = tokens @ cache.T  # [N, S]
        mine = F.one_hot(like.argmax(-1), len(cache))
        weight = (like - like.max(0).values).exp() * mine
        moved = self.keep * cache + (1 - self.keep) * weight.T @ tokens
        written = F.normalize(torch.where(mine.any(0)[:, None], moved, cache), dim=-1)
        if several():
            add_up(written)
        # a new tensor, as the step's gradient needs the old one
        self.refiner.cache = F.normalize(written, dim=-1)


@torch.no_grad()
def local_features(backbone: Backbone, states: States, looked_at: int) -> tuple[Tensor, Tensor]:
    """Return untouched features [B, L, e] of all tokens, the class token first, from the input of
    the top block, and the places [B, looked_at] of the tokens that the class token attends to
    most."""
    image, block, x = backbone.image, backbone.image.depth, at_least_float32(states.x)
    view = image.views[-1]
    assert image.projection is not None
    assert not isinstance(view, Opaque)
    with torch.autocast(x.device.type, enabled=False):
        n, (weight, bias) = image.norm(block, x), image.projection
        looks = states.layout.looks(
            view.query(states.layout.read(n)), view.key_value(n)[0], view.heads
        )
        tokens = F.linear(image.top_norm(image.step(block, x, n, states.layout)), weight.T, bias)
    return tokens, 1 + looks[:, 1:].topk(min(looked_at, x.shape[1] - 1)).indices


@dataclass(frozen=True)
class TextRefiner(CoOp):
    """CoOp whose class features are refined by a cache of image tokens.

    The weights of the last epoch are used; the released configuration uses the best epoch on
    validation images, and two more of its files have other rates.

    Args:
        context: Words that the context starts from; if empty, it starts from noise.
        tokens: Number of context vectors, without words to start from.
        slots: Rows of the cache.
        alpha: Weight of the term added to class features.
        keep: Share of a row that a write keeps.
        looked_at: How many tokens of an image learn to predict its class, besides the class token
            and the mean of all.
        local_weight: Weight of the tokens' cross-entropy.
        likeness: Weight of the L1 distance of refined from plain features.
    """

    title = "TextRefiner"
    source = (
        "Xie et al., AAAI 2025 (arXiv 2412.08176); vit_b16_ep10_ctxv1 and the defaults of train.py "
        "of github.com/xjjxmu/TextRefiner"
    )
    traits = Traits(
        uses=Uses(constants="the rate, by files that name no set", tuned=PUBLISHED),
        about=About("text", "CoOp's vectors, refined by image tokens"),
    )
    slots: Size = 25
    alpha: float = 0.2
    keep: Share = 0.8
    looked_at: Size = 5
    local_weight: float = 0.02
    likeness: float = 20.0
    recipe: Recipe = Recipe(epochs=10)

    def module(self, backbone: Backbone, seed: int = 1) -> Refiner:
        return Refiner(self, backbone, seed)

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        refiner = self.module(backbone, shots.seed)
        module = Training(refiner, self.keep, shots.seed)
        encode = encoder_of(backbone, shots.classes, len(refiner.ctx))
        # What it writes stays for the next step, and so must not lie in the memory of a CUDA graph.
        write = torch.compiler.disable(module.write)

        def loss(batch: Batch) -> dict[str, Tensor]:
            t = F.normalize(encode(refiner.ctx), dim=-1)
            w = refiner.refine(t)
            tokens, places = local_features(backbone, batch.images, self.looked_at)
            tokens = module.aligned(tokens)
            some = tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))
            local = torch.cat([tokens[:, :1], some, tokens.mean(1, keepdim=True)], 1).flatten(0, 1)
            write(tokens.flatten(0, 1))
            labels = batch.labels.repeat_interleave(places.shape[1] + 2)
            terms = {
                "ce": F.cross_entropy(
                    cosine_logits(backbone, batch.images.features, w), batch.labels
                ),
                "local": self.local_weight
                * F.cross_entropy(linear_logits(backbone.logit_scale * local, t), labels),
                "likeness": self.likeness * F.l1_loss(F.normalize(w, dim=-1), t),
            }
            return summed(terms)

        trained = minimise(module, loss, self.recipe, shots, shots.source(refiner.first))
        return self.restore(backbone, shots.known, refiner.state_dict()).after(trained)

    def restore(self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]) -> Fitted:
        return replace(
            super().restore(backbone, known, tensors), parameters=self.parameters(backbone).trained
        )

    def parameters(self, backbone: Backbone, classes: int = 100, shots: int = 16) -> Parameters:
        module = Training(self.module(backbone), self.keep, 1)
        return Parameters(count(module), count(module.align))
