"""Compare methods with deep prompts with forward passes whose hooks insert the prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rmadapter.backbones import Backbone
from rmadapter.data.read import ImageSet
from rmadapter.training.contract import Shots
from tests.helpers.shots import gradients, noise_images, shots_of

NAMES = ("cat", "a small red car", "dog", "tree house")  # of different lengths
LABELS = torch.tensor([0, 1, 2, 3, 0])


def pixels(backbone: Backbone, count: int = 5) -> Tensor:
    shape = (count, 3, backbone.image_size, backbone.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@contextmanager
def prompts_inserted(
    backbone: Backbone, text: Sequence[Tensor] = (), image: Sequence[Tensor] = ()
) -> Iterator[Any]:
    """Yield the model with hooks that insert prompts: into text after its first token, into images
    at their end."""
    model: Any = backbone.model
    visual, encoder = model.visual, getattr(model, "text", model)
    timm, bert = hasattr(visual, "trunk"), hasattr(encoder.transformer, "encoder")
    image_blocks = visual.trunk.blocks if timm else visual.transformer.resblocks
    text_blocks = encoder.transformer.encoder.layer if bert else encoder.transformer.resblocks
    embedding = encoder.transformer.embeddings.word_embeddings if bert else encoder.token_embedding
    norm = visual.trunk.norm_pre if timm else visual.ln_pre

    def inner(x: Tensor, prompt: Tensor) -> Tensor:
        return torch.cat([x[:, :1], prompt.expand(len(x), -1, -1), x[:, 1 + len(prompt) :]], 1)

    def outer(x: Tensor, prompt: Tensor, first: bool) -> Tensor:
        kept = x if first else x[:, : -len(prompt)]
        return torch.cat([kept, (norm(prompt) if first else prompt).expand(len(x), -1, -1)], 1)

    handles = []
    if text:
        handles.append(embedding.register_forward_hook(lambda module, args, x: inner(x, text[0])))
    for block, prompt in zip(text_blocks[1:], text[1:], strict=False):
        handles.append(
            block.register_forward_pre_hook(lambda module, a, p=prompt: (inner(a[0], p), *a[1:]))
        )
    for i, (block, prompt) in enumerate(zip(image_blocks, image, strict=False)):
        change = lambda module, a, p=prompt, i=i: (outer(a[0], p, i == 0), *a[1:])  # noqa: E731
        handles.append(block.register_forward_pre_hook(change))
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def assert_same_terms(
    module: nn.Module, lean: Mapping[str, Tensor], plain: Mapping[str, Tensor]
) -> None:
    """Compare terms, and the gradients of the loss for every trainable tensor; none may be zero."""
    assert lean.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(lean[name], value, rtol=1e-9, atol=1e-12)
    found, expected = (gradients(module, terms["loss"]) for terms in (lean, plain))
    assert expected
    for name, other in expected.items():
        assert other.norm() > 0, name
        assert (found[name] - other).norm() <= 1e-9 * other.norm(), name


def eight_images(backbone: Backbone, **fields: Any) -> Shots:
    """Draw two images of noise for each of four classes."""
    images = ImageSet.from_lists(noise_images(8).images, ["cat", "dog", "car", "bird"] * 2)
    return shots_of(backbone, images, **fields)
