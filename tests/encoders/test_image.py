"""Image encoders: their states at a block, and the forward pass from there, in float64."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rmadapter.backbones import Backbone, load_backbone
from rmadapter.encoders import PARTS, Grid, ImageEncoder, image_encoder_of
from tests.helpers.models import write_timm
from tests.helpers.rounding import double

BACKBONES = ["tiny_clip", "tiny_siglip", "tiny_eva", "tiny_hf"]
EXACT = {"rtol": 1e-9, "atol": 1e-10}


@pytest.fixture(params=BACKBONES)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return double(request.getfixturevalue(request.param))


@pytest.fixture
def pixels(backbone: Backbone) -> Tensor:
    return torch.randn(3, 3, backbone.image_size, backbone.image_size, dtype=torch.float64)


def watched(encoder: ImageEncoder, pixels: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """What goes into every block and comes out of it, by plain hooks."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    handles = [
        block.register_forward_hook(lambda m, args, out, i=i: seen.__setitem__(i, (args[0], out)))
        for i, block in enumerate(encoder.blocks, 1)
    ]
    encoder.visual(pixels)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("first", [1, 3, 4])
def test_states_equal_those_of_the_backbones_forward(
    backbone: Backbone, pixels: Tensor, first: int
) -> None:
    encoder = backbone.image
    expected, x, y = encoder.visual(pixels), *watched(encoder, pixels)[first]
    states = encoder.frozen(pixels, first)
    assert states.first == first
    torch.testing.assert_close(states.features, expected, **EXACT)
    assert torch.equal(states.x, x)
    read = first == 4 and encoder.reads_some(states.layout)
    # of the top block only the token that is read is kept
    torch.testing.assert_close(states.y, y[:, 0] if read else y, **EXACT)
    assert not any(block._forward_hooks for block in encoder.blocks)


def test_the_states_of_several_blocks_come_from_one_pass(
    backbone: Backbone, pixels: Tensor
) -> None:
    encoder, ran = backbone.image, Counter[int]()
    handles = [
        b.register_forward_hook(lambda *given, i=i: ran.update([i]))
        for i, b in enumerate(encoder.blocks)
    ]
    found = encoder.frozen_at(pixels, [3, None, 1, 4])
    for handle in handles:
        handle.remove()
    assert set(ran.values()) == {1}
    for states, first in zip(found, [3, None, 1, 4], strict=True):
        alone = encoder.frozen(pixels, first)
        assert states.first == alone.first == first
        assert all(
            torch.equal(getattr(states, part), getattr(alone, part))
            for part in ("features", "x", "y")
        )


def test_features_are_the_projection_of_the_pooled_tokens(
    backbone: Backbone, pixels: Tensor
) -> None:
    encoder = backbone.image
    found = encoder.projection
    assert found is not None
    weight, bias = found
    assert bias is None
    states = encoder.frozen(pixels, encoder.depth)
    pooled = encoder.pooled(states.y, states.layout)
    assert pooled.shape == (3, weight.shape[0])
    torch.testing.assert_close(pooled @ weight, encoder.visual(pixels), **EXACT)


def test_features_alone_have_no_tokens(backbone: Backbone, pixels: Tensor) -> None:
    states = backbone.image.frozen(pixels)
    assert states.first is None
    torch.testing.assert_close(states.features, backbone.image.visual(pixels), **EXACT)
    assert len(states.x) == len(states.y) == 0


def test_the_top_block_runs_only_for_the_token_that_is_read(tiny_clip: Backbone) -> None:
    encoder, rows = tiny_clip.image, []
    handle = encoder.blocks[-1].mlp.register_forward_pre_hook(
        lambda m, args: rows.append(args[0].shape[:-1].numel())
    )
    encoder.frozen(torch.zeros(3, 3, tiny_clip.image_size, tiny_clip.image_size))
    handle.remove()
    assert rows == [3]


@pytest.mark.parametrize("first", [1, 3])
def test_without_features_the_blocks_above_are_not_run(
    backbone: Backbone, pixels: Tensor, first: int
) -> None:
    """Save where a block is of an unknown make, whose encoder must be seen to the top."""
    encoder, calls = backbone.image, Counter[int]()
    whole = encoder.frozen(pixels, first)
    handles = [
        block.register_forward_hook(lambda *_, i=i: calls.update([i]))
        for i, block in enumerate(encoder.blocks, 1)
    ]
    states = encoder.frozen(pixels, first, features=False)
    for handle in handles:
        handle.remove()
    assert calls == dict.fromkeys(range(1, 5 if encoder.opaque else first + 1), 1)
    assert torch.equal(states.x, whole.x)
    assert torch.equal(states.y, whole.y)
    assert len(states.features) == (len(pixels) if encoder.opaque else 0)
    assert not any(block._forward_hooks for block in encoder.blocks)
    # leaving early left nothing behind
    assert torch.equal(encoder.frozen(pixels, first).features, whole.features)


@pytest.mark.parametrize("first", [1, 3, 4])
def test_encode_continues_from_the_states(backbone: Backbone, pixels: Tensor, first: int) -> None:
    encoder = backbone.image
    states, seen = encoder.frozen(pixels, first), []
    with torch.no_grad():
        features = encoder.encode(states.x, states.layout, first)
        encoder.encode(states.x, states.layout, first, lambda i, x: (seen.append(i), x)[1])
        changed = encoder.encode(
            states.x, states.layout, first, lambda i, x: 2 * x if i == 4 else x
        )
    torch.testing.assert_close(features, states.features, **EXACT)
    assert seen == list(range(first, encoder.depth + 1))
    assert (changed - features).abs().max() > 1e-3


def test_given_views_replace_those_of_the_encoder(tiny_clip: Backbone) -> None:
    """A method's views, such as those with low-rank weights, leave the encoder as it is."""
    encoder = tiny_clip.image
    states = encoder.frozen(torch.randn(2, 3, 32, 32), 1)
    backwards = encoder.views[::-1]
    with torch.no_grad():
        own = encoder.encode(states.x, states.layout)
        other = encoder.encode(states.x, states.layout, views=backwards)
    assert (own - other).abs().max() > 1e-3
    assert encoder.views == backwards[::-1]


def test_no_pass_changes_an_encoder(tiny_eva: Backbone, tiny_clip: Backbone) -> None:
    """Any number of methods share an encoder, so a pass must leave nothing behind."""
    for backbone in (tiny_clip, tiny_eva):
        encoder, images = backbone.image, torch.randn(2, 3, 32, 32)
        before, kept = encoder.frozen(images, 2), dict(vars(encoder))
        encoder.frozen(torch.randn(5, 3, 32, 32), 4)
        assert vars(encoder) == kept
        after = encoder.frozen(images, 2)
        assert torch.equal(before.y, after.y)
        with torch.no_grad():
            assert torch.equal(
                *(encoder.encode(states.x, states.layout, 2) for states in (before, after))
            )


def test_arguments_of_an_opaque_block_travel_with_its_states(tiny_eva: Backbone) -> None:
    """EVA's rotary positions: without them the blocks compute something else."""
    encoder = tiny_eva.image
    states = encoder.frozen(torch.randn(2, 3, 32, 32), 2)
    assert encoder.opaque
    assert list(states.layout.extras) == [2, 3, 4]
    assert all(isinstance(given["rope"], Tensor) for given in states.layout.extras.values())
    with torch.no_grad():
        without = encoder.encode(states.x, Grid(0), 2)
    assert (without - states.features).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("name", "read"),
    [("tiny_clip", True), ("tiny_hf", True), ("tiny_siglip", False), ("tiny_eva", False)],
)
def test_each_backbone_reads_and_normalises_as_expected(
    name: str, read: bool, request: pytest.FixtureRequest
) -> None:
    """SigLIP's head reads all tokens; a block of an unknown make runs whole."""
    encoder = request.getfixturevalue(name).image
    assert encoder.reads_some(encoder.frozen(torch.randn(1, 3, 32, 32), 2).layout) == read
    assert encoder.side == "image"
    visual: Any = encoder.visual
    x = torch.randn(2, encoder.width)
    norm = visual.ln_post if name == "tiny_clip" else visual.trunk.norm
    assert torch.equal(encoder.top_norm(x), norm(x))


# Parts of all blocks


def written_parts(encoder: ImageEncoder, pixels: Tensor) -> np.ndarray:
    """Return the parts [B, P, d] of what leaves each block, written out."""
    visual: Any = encoder.visual
    norm = visual.trunk.norm if hasattr(visual, "trunk") else visual.ln_post
    front = 0 if getattr(getattr(visual, "trunk", None), "global_pool", "") == "map" else 1
    kinds = []
    for block in sorted(seen := watched(encoder, pixels)):
        x = norm(seen[block][1]).detach().double().numpy()
        patches = x[:, front:]
        assert patches.shape[1] == 16
        kinds += [x[:, 0]] if front else []
        kinds += [patches.mean(1), patches.std(1), patches.max(1)]
    parts = np.stack(kinds, 1)
    found: np.ndarray = parts / np.linalg.norm(parts, axis=-1, keepdims=True)
    return found


def test_parts_are_those_of_what_leaves_each_block(backbone: Backbone, pixels: Tensor) -> None:
    encoder = backbone.image
    states = encoder.frozen(pixels, PARTS)
    expected = written_parts(encoder, pixels)
    assert expected.shape == (3, 12 if backbone.image.front == 0 else 16, 64)
    assert states.first == PARTS
    assert states.x.dtype == torch.float16
    np.testing.assert_allclose(states.x.double(), expected, atol=2e-4)  # half of float16's steps
    torch.testing.assert_close(states.features, encoder.visual(pixels), **EXACT)
    assert len(states) == 3
    assert not len(states.y)
    assert not any(block._forward_hooks for block in encoder.blocks)


def test_parts_and_tokens_of_blocks_come_from_one_pass(backbone: Backbone, pixels: Tensor) -> None:
    encoder, firsts = backbone.image, [4, PARTS, None, 2]
    alone = [encoder.frozen(pixels, first) for first in firsts]
    for found, expected in zip(encoder.frozen_at(pixels, firsts), alone, strict=True):
        assert found.first == expected.first
        for one, other in zip(found.tensors, expected.tensors, strict=True):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
    some = encoder.frozen_at(pixels, [3, PARTS], features=False)[1]
    assert torch.equal(some.x, alone[1].x)


def test_features_beside_parts_are_those_without(tiny_clip: Backbone) -> None:
    """In float32, where the top block otherwise runs for the token that is read alone."""
    pixels = torch.randn(3, 3, 32, 32)
    found, expected = (tiny_clip.image.frozen(pixels, first) for first in (PARTS, None))
    torch.testing.assert_close(found.features, expected.features, rtol=1e-5, atol=1e-5)


def test_parts_of_an_encoder_without_blocks_are_its_features(tmp_path: Path) -> None:
    folder = write_timm(tmp_path / "model", "test_resnet")
    encoder = load_backbone(f"timm:{folder}").image
    pixels = torch.randn(3, 3, 64, 64)
    states, features = encoder.frozen(pixels, PARTS), encoder.visual(pixels)
    assert torch.equal(states.features, features)
    unit = features / features.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(states.x[:, 0], unit.half(), rtol=1e-3, atol=1e-6)
    assert states.x.shape == (3, 1, features.shape[1])


def test_blocks_of_other_widths_give_the_features_alone(tiny_clip: Backbone) -> None:
    """As in a pyramid, where no kernel is common to all blocks."""
    encoder = image_encoder_of(tiny_clip.model)
    encoder.width += 1
    pixels = torch.randn(3, 3, 32, 32)
    states = encoder.frozen(pixels, PARTS)
    unit = torch.nn.functional.normalize(encoder.visual(pixels), dim=-1)
    torch.testing.assert_close(states.x[:, 0], unit.detach().half(), rtol=1e-3, atol=1e-6)
    assert states.x.shape == (3, 1, 40)
