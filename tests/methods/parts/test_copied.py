"""A copy with some weights of its own computes the same, until they change, and shares all the
others."""

from __future__ import annotations

from typing import Any

import torch

from rmadapter.backbones import Backbone
from rmadapter.methods.parts.copied import with_own


def test_own_weights_change_the_copy_alone_and_others_are_shared(tiny_clip: Backbone) -> None:
    model: Any = tiny_clip.model
    pixels, own = torch.randn(2, 3, 32, 32), model.visual.ln_post.weight
    twin: Any = with_own(model, [own])
    pairs = zip(model.named_parameters(), twin.parameters(), strict=True)
    assert [name for (name, mine), its in pairs if mine is not its] == ["visual.ln_post.weight"]
    assert all(mine is its for mine, its in zip(model.buffers(), twin.buffers(), strict=True))
    with torch.no_grad():
        before = model.encode_image(pixels)
        assert torch.equal(twin.encode_image(pixels), before)
        twin.visual.ln_post.weight.data += 1
        assert torch.equal(model.encode_image(pixels), before)
        assert not torch.allclose(twin.encode_image(pixels), before)


def test_who_watches_one_watches_both(tiny_clip: Backbone) -> None:
    model, seen = tiny_clip.model, list[Any]()
    block: Any = tiny_clip.image.blocks[0]
    twin: Any = with_own(model, block.parameters())
    handle = block.register_forward_hook(lambda module, args, output: seen.append(module))
    twin.encode_image(torch.randn(1, 3, 32, 32))
    handle.remove()
    assert seen == [twin.visual.transformer.resblocks[0]]
