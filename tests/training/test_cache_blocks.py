"""Frozen activations of several blocks, out of one pass over the images."""

from __future__ import annotations

import pytest

from rmadapter.backbones import Backbone
from rmadapter.training.cache import GB, Cache
from tests.training.test_cache import BACKBONES, IMAGES, assert_same_states, of, pixels, whole


@pytest.mark.parametrize("name", BACKBONES)
def test_blocks_that_will_be_asked_for_come_from_one_pass(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, filled = request.getfixturevalue(name), []
    cache, real = of(backbone, blocks={2, 4}), Cache._fill
    monkeypatch.setattr(
        Cache, "_fill", lambda cache, *given: filled.append(given[1]) or real(cache, *given)
    )
    for first in (None, 4, 2):
        assert_same_states(
            whole(cache.source(IMAGES, first)), backbone.image.frozen(pixels(backbone), first)
        )
    assert filled == [[None, 2, 4]]
    cache.source(IMAGES, 3)
    cache.source(IMAGES, 2, precision="bf16")
    assert filled[1:] == [
        [3],
        [2],
    ]  # what nobody expected costs a pass of its own, and of no other block


def test_where_memory_is_short_blocks_are_computed_one_by_one(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    each, filled, real = of(tiny_clip).bytes_of(7, 2) / GB, [], Cache._fill
    cache = of(tiny_clip, memory=7 * each, blocks={2, 3})
    monkeypatch.setattr(
        Cache, "_fill", lambda cache, *given: filled.append(given[1]) or real(cache, *given)
    )
    assert_same_states(whole(cache.source(IMAGES, 2)), tiny_clip.image.frozen(pixels(tiny_clip), 2))
    assert_same_states(whole(cache.source(IMAGES, 3)), tiny_clip.image.frozen(pixels(tiny_clip), 3))
    assert filled == [[2], [3]]
