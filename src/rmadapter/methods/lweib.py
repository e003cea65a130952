"""LwEIB: Yang, Zhang, Chen & Xie, "Learning with Enriched Inductive Biases for Vision-Language
Models", IJCV 2025 (doi 10.1007/s11263-025-02354-1).

Every block of both encoders gets two depthwise convolutions over direct neighbours, 3 x 3 patches
of an image or 3 words of a text:

    n <- n + s conv(n)    input of attention
    h <- h + s conv(h)    hidden units of the MLP, before its activation

Their weights get gradients as if s were 1. In training, each block's s is multiplied by `fast` at
random. The prompts of a class are "a photo of a NAME, TEXT" with texts that a language model wrote
about it: a step uses one of them, drawn anew, and answers use the mean of all. If there are more
classes than images in a batch, a step only considers the images' own classes and some others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmadapter.adapter import SIDES, decoupled
from rmadapter.backbones import Backbone
from rmadapter.data.names import descriptions
from rmadapter.data.texts import read_texts, texts_of, texts_of_all
from rmadapter.encoders import BlockView, EitherEncoder, Packed, States, pack, send
from rmadapter.errors import UserError
from rmadapter.methods.descriptions import TEXTS, group_means, packed, unpacked, without_texts
from rmadapter.methods.parts.learners import CosineLearner
from rmadapter.prompts import (
    check_prompts,
    cosine_logits,
    filled,
    learnt_weights,
    token_chunks,
)
from rmadapter.settings import Count, Positive, Share
from rmadapter.support.machine import seeded
from rmadapter.training.contract import (
    PUBLISHED,
    About,
    Batch,
    Fitted,
    Known,
    ModuleMethod,
    Recipe,
    Shots,
    Traits,
    Uses,
)

FIRST = 1  # block of the image encoder whose input is read
TOKENS_AHEAD = 2  # how many tokens ahead a block lets each token see, one by each convolution
Change = Callable[[Tensor, nn.Module, float], Tensor]  # tokens, a layer, s -> tokens


def on_patches(x: Tensor, layer: Callable[[Tensor], Tensor], scale: float, front: int) -> Tensor:
    """Return x + s layer(x) on the patches of images [B, L, d], which follow `front` other tokens.
    A single token per image, [B, d], stays unchanged."""
    if x.ndim == 2:
        return x
    leading, patches = x[:, :front], x[:, front:]
    return torch.cat([leading, patches + decoupled(layer, patches, scale)], 1)


def among_patches(patches: Tensor, weight: Tensor) -> Tensor:
    """Return the depthwise convolution, with weight [d, 1, 3, 3], of the patches of square images,
    [B, P, d]."""
    side = math.isqrt(patches.shape[1])
    grid = patches.transpose(1, 2).unflatten(2, (side, side))
    moved = F.conv2d(grid, weight.to(grid.dtype), padding=1, groups=patches.shape[-1])
    return moved.flatten(2).transpose(1, 2)


def among_words(x: Tensor, weight: Tensor, scale: float, layout: Packed) -> Tensor:
    """Return x + s conv(x) of texts, packed one after the other in [T, d]."""
    # whether the previous token is in the same text
    inside = ((layout.positions > 0) & (layout.weight > 0))[:, None]
    before, centre, after = weight[:, 0].to(x.dtype).unbind(-1)

    def convolved(x: Tensor) -> Tensor:
        follows = torch.where(inside, x, 0.0)
        left, right = torch.where(inside, x.roll(1, 0), 0.0), follows.roll(-1, 0)
        return before * left + centre * x + after * right

    return x + decoupled(convolved, x, scale)


class ChangedBlock(BlockView):
    """A block with layers "attention" and, if present, "mlp"."""

    def __init__(
        self,
        encoder: EitherEncoder,
        block: int,
        layers: nn.ModuleDict,
        change: Change,
        scale: float,
    ) -> None:
        super().__init__(encoder, block)
        self.layers, self.change, self.scale = layers, change, scale

    def _changed(self, x: Tensor, which: str) -> Tensor:
        return self.change(x, self.layers[which], self.scale)

    def read(self, n: Tensor) -> Tensor:
        return self._changed(n, "attention")

    def close(self, x: Tensor, attended: Tensor) -> Tensor:
        edit = partial(self._changed, which="mlp") if "mlp" in self.layers else None
        return self.plain(x.dtype).close(x, attended, edit)


class Convolutions(CosineLearner):
    """The convolutions of all blocks of both encoders, which are not modified, and the model's
    texts, as bytes.

    If only an image's class token is read, the top block's MLP has no convolution, as it would not
    affect that token. Raises UserError for encoders whose blocks cannot be taken apart.
    """

    first = FIRST
    reaches = SIDES
    texts: Tensor

    def __init__(self, method: LwEIB, backbone: Backbone, texts: Tensor, seed: int = 1) -> None:
        super().__init__(backbone)
        self.method, self.sentences = method, unpacked(texts)
        self.register_buffer(TEXTS, texts)
        self.encoders: dict[str, EitherEncoder] = {"image": backbone.image, "text": backbone.text}
        for encoder in self.encoders.values():
            if encoder.opaque or not all(view.hidden for view in encoder.views):  # type: ignore[union-attr]
                raise UserError(
                    f"{method.title} changes attention and MLP of each block, but the blocks of "
                    f"{backbone.name} cannot be taken apart; choose another method or a plain ViT"
                )
        with seeded(seed):
            self.layers = nn.ModuleDict({side: nn.ModuleList(self._stack(side)) for side in SIDES})
        self.to(backbone.device)

    def _stack(self, side: str) -> list[nn.ModuleDict]:
        encoder, image = self.encoders[side], self.backbone.image
        found = []
        for block, view in enumerate(encoder.views, 1):
            widths = {"attention": encoder.width, "mlp": view.hidden}  # type: ignore[union-attr]
            if side == "image" and block == encoder.depth and image.read_index is not None:
                del widths["mlp"]
            layers = {part: self.layer(side, width) for part, width in widths.items()}
            found.append(nn.ModuleDict(layers))
        return found

    def layer(self, side: str, width: int) -> nn.Module:
        """Return a new layer for tokens of this width of an encoder."""
        kind = nn.Conv2d if side == "image" else nn.Conv1d
        return kind(width, width, 3, padding=1, groups=width, bias=False)

    def on_image(self, x: Tensor, layer: nn.Module, scale: float) -> Tensor:
        """Return the tokens of images as a layer with factor s changes them."""
        convolve = partial(among_patches, weight=layer.get_parameter("weight"))
        return on_patches(x, convolve, scale, self.backbone.image.front)

    def on_text(self, x: Tensor, layer: nn.Module, scale: float, layout: Packed) -> Tensor:
        """Return the tokens of texts as a layer with factor s changes them."""
        return among_words(x, layer.get_parameter("weight"), scale, layout)

    def _views(self, side: str, scales: Sequence[float], change: Change) -> list[ChangedBlock]:
        stack, views = self.layers[side].children(), []
        for block, (layers, scale) in enumerate(zip(stack, scales, strict=True), 1):
            assert isinstance(layers, nn.ModuleDict)
            views.append(ChangedBlock(self.encoders[side], block, layers, change, scale))
        return views

    def image_features(self, states: States, scales: Sequence[float]) -> Tensor:
        """Return features [B, e], not normalised, of tokens that enter block 1.

        Args:
            states: States of the images.
            scales: s of each block.
        """
        image = self.backbone.image
        views = self._views("image", scales, self.on_image)
        return image.encode(states.x, states.layout, views=views)

    def text_features(self, tokens: Tensor, scales: Sequence[float]) -> Tensor:
        """Return normalised features [S, e] of texts [S, L], on the CPU: a GPU would have to be
        waited for to lay them out."""
        chunks = token_chunks(self.backbone, tokens)
        return learnt_weights(self._encode_text, [(chunk, scales) for chunk in chunks], each=1)

    def _encode_text(self, tokens: Tensor, scales: Sequence[float]) -> Tensor:
        encoder = self.backbone.text
        layout = self.layout(tokens).to(self.backbone.device)
        with torch.no_grad():
            x = encoder.stem(layout)
        views = self._views("text", scales, partial(self.on_text, layout=layout))
        # the top block too takes all tokens: the one that is read has neighbours
        for i in range(1, encoder.depth + 1):
            x = encoder.step(i, x, encoder.norm(i, x), layout, views=views)
        return encoder.head(layout.read(x) if encoder.reads_some(layout) else x, layout)

    def layout(self, tokens: Tensor) -> Packed:
        """Return the layout of texts, cut after the last token that affects the output; if causal,
        some padding does."""
        encoder = self.backbone.text
        lengths, read = encoder.real_tokens(tokens)
        seen = (
            (lengths + TOKENS_AHEAD * encoder.depth).clamp(max=tokens.shape[1])
            if encoder.causal
            else lengths
        )
        return pack(tokens, seen, read, encoder.causal, share=False)

    def prompts(self, names: Sequence[str], known: Known) -> tuple[Tensor, list[int]]:
        """Return the tokens [S, L] of all prompts, class by class, and their number for each
        class."""
        groups = [self.method.texts(name, known, self.sentences) for name in names]
        check_prompts(sum(map(len, groups)))
        tokens = self.backbone.tokenizer([text for group in groups for text in group])
        return tokens, [len(group) for group in groups]

    def encode_classes(self, names: Sequence[str], known: Known) -> Tensor:
        tokens, counts = self.prompts(names, known)
        features = self.text_features(tokens, self.method.scales(self.backbone.text.depth))
        return F.normalize(group_means(features, counts), dim=-1)

    def image_encoder(self) -> Callable[[States], Tensor]:
        scales = self.method.scales(self.backbone.image.depth)
        return partial(self.image_features, scales=scales)


def rivals(
    labels: Tensor, classes: int, negatives: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the classes [K] of a step, and the places of labels [B] among them: the labels' own
    classes, and for each of these `negatives` random others. All classes if there are no more than
    labels, or if `negatives` is 0. All on the CPU."""
    if not negatives or classes <= len(labels):
        return torch.arange(classes), labels
    present, places = labels.unique(return_inverse=True)
    others = torch.ones(classes, dtype=torch.bool)
    others[present] = False
    drawn = torch.randperm(int(others.sum()), generator=generator)[: negatives * len(present)]
    return torch.cat([present, others.nonzero()[drawn, 0]]), places


@dataclass(frozen=True)
class LwEIB(ModuleMethod[Convolutions]):
    """Convolutions in all blocks, and texts about the classes.

    The model stores all its texts, so that a class added later uses its own, or the run's prompts
    if the file has none for it. The settings are those for base-to-novel; the authors have others
    for transfer from ImageNet to other data sets.

    Args:
        scale: Factor s of the convolutions.
        fast: Factor on s at random in training.
        slow: Probability that this factor is not applied.
        negatives: Number of other classes for each class of a step's images; 0 for all classes.
        init: Words before a class name.
        descriptions: JSON file {class name: [text, ...]} with every trained class. Without it, the
            run's prompts are used throughout, and a note on stderr says so.
    """

    title = "LwEIB"
    source = (
        "Yang et al., IJCV 2025; configs/trainers/LwEIB/base2new.yaml of "
        "github.com/ZjjConan/VLM-LwEIB"
    )
    traits = Traits(
        uses=Uses(
            extra="generated texts about each class, in a file; without it the run's prompts",
            files=("descriptions",),
            constants="scales, batch, rate and epochs where a model of ImageNet goes to other sets",
            tuned=PUBLISHED,
        ),
        about=About(
            "encoders",
            "small convolutions, and texts about the classes",
            "classes that you have texts about",
        ),
    )
    scale: Positive = 0.025
    fast: Positive = 2.5
    slow: Share = 0.8
    negatives: Count = 7
    init: str = "a photo of a"
    descriptions: str = ""
    recipe: Recipe = Recipe(learning_rate=0.28, epochs=25, batch_size=16, warmup_epochs=0)

    def module(
        self, backbone: Backbone, seed: int = 1, texts: Tensor | None = None
    ) -> Convolutions:
        return Convolutions(self, backbone, packed({}) if texts is None else texts, seed)

    def blank(
        self, backbone: Backbone, known: Known, tensors: Mapping[str, Tensor]
    ) -> Convolutions:
        return self.module(backbone, texts=tensors[TEXTS])

    def texts(self, name: str, known: Known, texts: Mapping[str, list[str]]) -> list[str]:
        """Return all prompts of a class, by the texts that `read_texts` returned."""
        called = descriptions(name)
        sentences = [f"{self.init} {called[0]}, {text}".strip() for text in texts_of(texts, name)]
        return sentences or [
            filled(template, one) for template in known.templates for one in called
        ]

    def scales(self, depth: int, generator: torch.Generator | None = None) -> list[float]:
        """Return s of each block.

        Args:
            depth: Number of blocks.
            generator: In training, generator of the blocks that `fast` applies to.
        """
        if generator is None:
            return [self.scale] * depth
        quick = torch.rand(depth, generator=generator) > self.slow
        return [self.scale * (self.fast if one else 1.0) for one in quick.tolist()]

    def fit(self, backbone: Backbone, shots: Shots) -> Fitted:
        texts = self._read(shots.classes)
        module = self.module(backbone, shots.seed, packed(texts))
        tokens, numbers = module.prompts(shots.classes, shots.known)
        all_labels = torch.tensor(shots.images.labels)  # all that is drawn stays on the CPU
        counts = torch.tensor(numbers)
        starts = counts.cumsum(0) - counts

        def loss(batch: Batch) -> Tensor:
            own = all_labels[batch.rows]
            classes, labels = rivals(own, len(counts), self.negatives, batch.generator)
            shares = torch.rand(len(classes), generator=batch.generator)
            places = (shares * counts[classes]).long()
            chosen = tokens[starts[classes] + places]
            w = module.text_features(chosen, self.scales(backbone.text.depth, batch.generator))
            f = module.image_features(
                batch.images, self.scales(backbone.image.depth, batch.generator)
            )
            return self.loss(cosine_logits(backbone, f, w), send(labels, f.device))

        return self.train(module, loss, shots)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss of logits [B, K] of images with labels [B]."""
        return F.cross_entropy(logits, labels)

    def _read(self, names: Sequence[str]) -> dict[str, list[str]]:
        if not self.descriptions:
            text = f"{self.title} asks about classes with the run's own class prompts"
            without_texts(text, self.title.lower())
            return {}
        texts = read_texts(self.descriptions)
        texts_of_all(texts, names, self.descriptions)  # raises for a class without texts
        return texts
