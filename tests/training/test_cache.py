"""Frozen activations of image sets, against the encoder's own on each batch: held in memory or a
file, or live."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rmadapter.backbones import Backbone
from rmadapter.data.read import ImageSet
from rmadapter.data.transforms import ImageTensors, TrainTransform
from rmadapter.encoders import Grid, States
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.settings import Machine
from rmadapter.training.cache import GB, Cache, Held, Live, Source
from rmadapter.training.contract import Shots
from tests.helpers.rounding import assert_same_float32
from tests.helpers.shell import limited_file_size

ARRAYS = [np.random.default_rng(i).integers(0, 255, (40, 50, 3), dtype=np.uint8) for i in range(7)]
IMAGES = ImageSet.from_lists(ARRAYS, ["a", "b"] * 3 + ["a"])
NAMES = ("features", "x", "y")
BACKBONES = ["tiny_clip", "tiny_siglip", "tiny_eva", "tiny_hf"]


def of(
    backbone: Backbone,
    folder: Path | None = None,
    memory: float = 4.0,
    workers: int = 0,
    **given: Any,
) -> Cache:
    machine = Machine(device="cpu", cache_memory=memory, workers=workers)
    return Cache(backbone, machine, folder=folder, progress=False, **given)


def pixels(backbone: Backbone, rows: Any = range(7)) -> Tensor:
    return torch.stack([backbone.preprocess(Image.fromarray(ARRAYS[i])) for i in rows])


def assert_same_states(found: States, expected: States) -> None:
    assert found.first == expected.first
    for name in NAMES:
        assert_same_float32(getattr(found, name), getattr(expected, name))


def whole(source: Source, epoch: int = 0) -> States:
    return source.batch(torch.arange(7), epoch)


@pytest.mark.parametrize("hold", [True, False])
@pytest.mark.parametrize("first", [1, 4, None])
@pytest.mark.parametrize("name", BACKBONES)
def test_states_are_the_encoders_own(
    name: str, first: int | None, hold: bool, request: pytest.FixtureRequest
) -> None:
    """Held and live are the same: no method can tell which of the two it reads."""
    backbone = request.getfixturevalue(name)
    source = of(backbone, hold=hold).source(IMAGES, first)
    assert isinstance(source, Held if hold else Live)
    assert len(source) == 7
    rows = torch.tensor([5, 0, 6])
    batch, expected = source.batch(rows), backbone.image.frozen(pixels(backbone, rows), first)
    assert_same_states(batch, expected)
    assert not batch.features.is_inference()  # a gradient may have to pass
    if first:
        with torch.no_grad():
            assert_same_float32(
                backbone.image.encode(batch.x, batch.layout, first), expected.features
            )


@pytest.mark.parametrize("first", [4, None])
def test_some_of_held_images_are_not_computed_again(
    first: int | None, tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, rows = of(tiny_clip), [5, 0, 6]
    cache.source(IMAGES, 4)
    expected = of(tiny_clip).source(some := IMAGES.subset(rows), first)
    other = ImageSet.from_lists([ARRAYS[0], 255 - ARRAYS[1]], ["a", "b"])
    fresh = of(tiny_clip).source(other, first).batch(torch.arange(2))
    assert_same_states(
        cache.source(other, first).batch(torch.arange(2)), fresh
    )  # of which one is not held
    monkeypatch.setattr(Cache, "_compute", lambda *given: pytest.fail("computed again"))
    found = cache.source(some, first)
    assert isinstance(found, Held)
    assert_same_states(found.batch(torch.arange(3)), expected.batch(torch.arange(3)))
    assert (
        cache.source(some.subset([1]), first).batch(torch.tensor([0])).features.shape[0] == 1
    )  # of some, fewer


def test_for_an_expected_part_all_are_computed_at_once(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, computed = of(tiny_clip), []
    real = cache._compute
    monkeypatch.setattr(
        cache, "_compute", lambda some, *how: computed.append(len(some)) or real(some, *how)
    )
    cache.expect_parts(IMAGES)
    for rows in ([5, 2], [0, 1, 3], [*range(7)]):
        found = cache.source(IMAGES.subset(rows), 2).batch(torch.arange(len(rows)))
        assert_same_states(found, tiny_clip.image.frozen(pixels(tiny_clip, rows), 2))
    cache.source(ImageSet.from_lists([255 - ARRAYS[0]], ["a"]), 2)
    assert computed == [7, 1]


def test_some_of_augmented_images_are_others(tiny_clip: Backbone) -> None:
    """Augmentation depends on an image's place, so that a part is not what it was in the whole."""
    given: dict[str, Any] = {"augmentation": "standard", "views": 2}
    cache, some = of(tiny_clip, **given), IMAGES.subset([5, 0])
    cache.source(IMAGES, 4, augmented=True)
    found, fresh = (c.source(some, 4, augmented=True) for c in (cache, of(tiny_clip, **given)))
    for epoch in range(2):
        assert_same_states(*(source.batch(torch.arange(2), epoch) for source in (found, fresh)))


@pytest.mark.parametrize("name", BACKBONES)
def test_an_adapter_makes_the_same_of_both(name: str, request: pytest.FixtureRequest) -> None:
    backbone = request.getfixturevalue(name)
    method: Any = load_method(
        "rmadapter", {"first_block": 3, "rank": 4, "init": "kaiming", "alpha": 1.0}
    )
    model = method.model(backbone)
    held, live = (of(backbone, hold=hold).source(IMAGES, 3) for hold in (True, False))
    assert_same_float32(
        *(model.features("image", whole(source))[0].detach() for source in (held, live))
    )


@pytest.mark.parametrize("tokens_first", [False, True])
def test_features_alone_come_with_the_tokens(tiny_clip: Backbone, tokens_first: bool) -> None:
    cache = of(tiny_clip)
    if tokens_first:
        cache.source(IMAGES, 2)
    computed = cache.seconds
    found = cache.source(IMAGES)
    assert (cache.seconds == computed) == tokens_first
    assert isinstance(found, Held)
    assert_same_float32(found.features, tiny_clip.image.frozen(pixels(tiny_clip)).features)
    assert found.x.numel() == found.y.numel() == 0
    assert (
        found.features._base is None or not tokens_first
    )  # not a view that keeps the tokens' memory
    assert torch.equal(cache.features(IMAGES)[0], found.features)


def test_what_was_computed_is_kept_also_for_another_object_of_the_same_images(
    tiny_clip: Backbone,
) -> None:
    cache = of(tiny_clip)
    first = cache.source(IMAGES, 3)
    assert cache.source(IMAGES.subset(range(7)), 3) is first
    assert cache.source(IMAGES, 2) is not first
    assert cache.source(IMAGES.subset([0, 1]), 3) is not first
    assert cache.source(IMAGES, 3) is first


def test_the_least_recently_used_leaves_a_full_memory(tiny_clip: Backbone) -> None:
    held = of(tiny_clip).source(IMAGES, 3)
    assert isinstance(held, Held)
    one = sum(4 * getattr(held, name).numel() for name in NAMES) / GB
    cache = of(tiny_clip, memory=2.5 * one)
    sets = [IMAGES.subset(reversed(range(7))), IMAGES, IMAGES.subset([1, 0, *range(2, 7)])]
    first, second = (cache.source(images, 3) for images in sets[:2])
    assert cache.source(sets[0], 3) is first
    cache.source(sets[2], 3)  # room for two: the second goes, it was used before the first
    assert cache.source(sets[0], 3) is first
    assert cache.source(sets[1], 3) is not second


def test_what_memory_cannot_hold_lies_in_a_file(tiny_clip: Backbone, tmp_path: Path) -> None:
    expected = whole(of(tiny_clip).source(IMAGES, 2))
    first = of(tiny_clip, tmp_path / "files", 0)
    assert_same_states(whole(first.source(IMAGES, 2)), expected)
    file = next((tmp_path / "files").glob("frozen-*.bin"))
    written = file.stat().st_mtime_ns, file.read_bytes()
    second = of(tiny_clip, tmp_path / "files", 0)  # the next process reads what the first computed
    assert_same_states(whole(second.source(IMAGES, 2)), expected)
    assert (file.stat().st_mtime_ns, file.read_bytes()) == written
    assert [file] == list((tmp_path / "files").iterdir())
    marked = np.memmap(file, np.float32, "r+")
    marked[0] += 1
    marked.flush()
    third = of(tiny_clip, tmp_path / "files", 0).source(IMAGES, 2)
    assert whole(third).features[0, 0] == expected.features[0, 0] + 1  # it is the file that is read


def test_without_room_activations_are_live(
    tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(of(tiny_clip, memory=0).source(IMAGES, 2), Live)
    assert isinstance(of(tiny_clip, memory=0).source(IMAGES), Held)  # features alone are small
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    assert isinstance(of(tiny_clip, tmp_path, 0).source(IMAGES, 2), Live)
    assert not list(tmp_path.iterdir())


def test_a_stream_goes_through_all_images_in_order(
    tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whole(of(tiny_clip).source(IMAGES, 2))
    monkeypatch.setattr("rmadapter.training.cache.BATCH", 4)
    for cache in (
        of(tiny_clip),
        of(tiny_clip, memory=0),
        of(tiny_clip, tmp_path, 0),
        of(tiny_clip, hold=False),
    ):
        parts = list(cache.stream(IMAGES, 2))
        assert [len(part.features) for part in parts] == [4, 3]
        for name in NAMES:
            assert_same_float32(
                torch.cat([getattr(part, name) for part in parts]), getattr(expected, name)
            )


def test_an_interrupted_file_leaves_nothing(tiny_clip: Backbone, tmp_path: Path) -> None:
    broken = ImageSet.from_lists([*ARRAYS[:3], tmp_path / "missing.png"], ["a", "b", "a", "b"])
    with pytest.raises((OSError, ValueError)):
        of(tiny_clip, tmp_path, 0).source(broken, 2)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_ends_it_with_a_sentence_before_anything_is_computed(
    tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written through a mapping, it would end the process by SIGBUS, or by a RuntimeError of torch."""
    monkeypatch.setattr(Cache, "_fill", lambda *_: pytest.fail("computed for nothing"))
    sentence = r"frozen-\w+\.bin: cannot be written \((File too large|No space left on device)\)"
    with limited_file_size(), pytest.raises(UserError, match=sentence):
        of(tiny_clip, tmp_path, 0).source(IMAGES, 2)

    def full(file: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=sentence):
        of(tiny_clip, tmp_path, 0).source(IMAGES, 2)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_too_short_is_made_again(tiny_clip: Backbone, tmp_path: Path) -> None:
    expected = whole(of(tiny_clip, tmp_path, 0).source(IMAGES, 2))
    [file] = tmp_path.iterdir()
    size = file.stat().st_size
    os.truncate(file, size // 2)
    assert_same_states(whole(of(tiny_clip, tmp_path, 0).source(IMAGES, 2)), expected)
    assert file.stat().st_size == size


def test_a_file_is_named_by_everything_that_activations_depend_on(
    tiny_clip: Backbone, tiny_siglip: Backbone, tmp_path: Path
) -> None:
    """So that a stale one can never be read; each of these writes a file of its own."""
    views = {"augmentation": "standard", "views": 2}
    darker = replace(tiny_clip, mean=(0.1, 0.1, 0.1))
    asked: list[tuple[Backbone, dict[str, Any], ImageSet, int]] = [
        (tiny_clip, {}, IMAGES, 2),
        (tiny_clip, {}, IMAGES, 3),
        (tiny_clip, {}, IMAGES.subset(range(6)), 2),
        (tiny_siglip, {}, IMAGES, 2),
        (
            replace(tiny_clip, preprocess=lambda image: tiny_clip.preprocess(image) / 2),
            {},
            IMAGES,
            2,
        ),
        (tiny_clip, views, IMAGES, 2),
        (tiny_clip, {**views, "views": 3}, IMAGES, 2),
        (tiny_clip, {**views, "seed": 2}, IMAGES, 2),
        (darker, views, IMAGES, 2),
    ]
    for count, (backbone, given, images, first) in enumerate(asked, 1):
        of(backbone, tmp_path, 0, **given).source(images, first, augmented=True)
        assert len(list(tmp_path.iterdir())) == count
    of(tiny_clip, tmp_path, 0, seed=7).source(
        IMAGES, 2, augmented=True
    )  # nothing is random without augmentation
    assert len(list(tmp_path.iterdir())) == len(asked)


@pytest.mark.parametrize("hold", [True, False])
def test_views_are_augmented_images_in_turn(tiny_clip: Backbone, hold: bool) -> None:
    source = of(tiny_clip, hold=hold, augmentation="standard", views=2, seed=5).source(
        IMAGES, 2, augmented=True
    )
    assert (len(source), source.views) == (7, 2)
    transform = TrainTransform(32, tiny_clip.mean, tiny_clip.std)
    for epoch, view in ((0, 0), (1, 1), (2, 0)):
        tensors = ImageTensors(IMAGES, transform, (5, view))
        expected = tiny_clip.image.frozen(torch.stack([tensors[i] for i in (3, 4)]), 2)
        assert_same_states(source.batch(torch.tensor([3, 4]), epoch), expected)


def test_views_differ_from_each_other_and_repeat_themselves(tiny_clip: Backbone) -> None:
    views = {"augmentation": "standard", "views": 2}
    cache = of(tiny_clip, **views)
    features = cache.features(IMAGES, augmented=True)
    assert features.shape[:2] == (2, 7)
    assert not torch.allclose(features[0], features[1], atol=1e-3)
    assert_same_float32(
        cache.features(IMAGES), of(tiny_clip).features(IMAGES)
    )  # without `augmented` they are plain
    assert torch.equal(of(tiny_clip, **views).features(IMAGES, augmented=True), features)
    assert_same_float32(
        of(tiny_clip, workers=2, **views).features(IMAGES, augmented=True), features
    )
    assert not torch.allclose(
        of(tiny_clip, seed=2, **views).features(IMAGES, augmented=True), features
    )
    with_tokens = of(tiny_clip, **views).source(IMAGES, 3, augmented=True)
    assert_same_float32(
        torch.stack([whole(with_tokens, view).features for view in (0, 1)]), features
    )


def test_without_a_number_of_views_every_epoch_has_its_own(tiny_clip: Backbone) -> None:
    cache = of(tiny_clip, augmentation="standard")
    source = cache.source(IMAGES, 3, augmented=True)
    assert isinstance(source, Live)
    epochs = [whole(source, epoch).features for epoch in (0, 1, 2, 0)]
    assert all(not torch.allclose(epochs[0], other, atol=1e-3) for other in epochs[1:3])
    assert torch.equal(epochs[0], epochs[3])
    with pytest.raises(UserError, match="set their number, as in --set views=8"):
        cache.features(IMAGES, augmented=True)


@pytest.mark.parametrize(
    "given", [{}, {"augmentation": "standard"}, {"augmentation": "standard", "views": 2}], ids=str
)
def test_pixels_are_what_the_states_were_made_of(
    tiny_clip: Backbone, given: dict[str, Any]
) -> None:
    """The reference forward pass reads them, the lean one the states."""
    shots = Shots(IMAGES, of(tiny_clip, **given), progress=False)
    rows = torch.tensor([6, 2])
    for epoch in (0, 1, 2):
        images = shots.pixels(rows, epoch, 3)
        assert_same_states(shots.source(3).batch(rows, epoch), tiny_clip.image.frozen(images, 3))


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


@pytest.mark.parametrize("memory", [4.0, 0.0])
def test_tokens_are_held_in_the_requested_format_and_features_in_float32(
    tiny_clip: Backbone, tmp_path: Path, memory: float
) -> None:
    cache = of(tiny_clip, tmp_path, memory)
    half, full = cache.source(IMAGES, 2, precision="bf16"), cache.source(IMAGES, 2)
    assert isinstance(half, Held)
    assert isinstance(full, Held)
    assert torch.equal(half.x, full.x.bfloat16())
    assert torch.equal(half.y, full.y.bfloat16())
    assert_same_float32(half.features, full.features)
    assert len(list(tmp_path.glob("frozen-*.bin"))) == (0 if memory else 2)
    # From the file, if there is one.
    again = of(tiny_clip, tmp_path, memory).source(IMAGES, 2, precision="bf16")
    assert isinstance(again, Held)
    assert torch.equal(again.x, half.x)
    assert whole(cache.source(IMAGES, None, precision="bf16")).features.dtype == torch.float32


def test_live_states_equal_held_ones_under_autocast(tiny_clip: Backbone) -> None:
    live, held = (of(tiny_clip, memory=memory).source(IMAGES, 2) for memory in (0.0, 4.0))
    assert isinstance(live, Live)
    with torch.autocast("cpu", torch.bfloat16):
        states = whole(live)
    assert_same_states(states, whole(held))


def test_held_views_alternate_by_epoch() -> None:
    features, x, y = torch.randn(6, 4), torch.randn(6, 5, 3), torch.randn(6, 5, 3)
    held = Held(2, Grid(None), torch.device("cpu"), features, x, y, views=2)
    assert len(held) == 3
    rows = torch.tensor([2, 0])
    for epoch, own in ((0, [2, 0]), (1, [5, 3]), (2, [2, 0])):
        batch = held.batch(rows, epoch)
        assert batch.first == 2
        assert torch.equal(batch.features, features[own])
        assert torch.equal(batch.x, x[own])
        assert torch.equal(batch.y, y[own])
    assert [len(batch.x) for batch in held.batches(0, [rows, rows[:1]])] == [2, 1]


def test_held_features_alone_are_views_without_tokens() -> None:
    features = torch.randn(2, 7, 4)
    held = Held.of_features(features)
    assert (len(held), held.views) == (7, 2)
    batch = held.batch(torch.tensor([3]), 3)
    assert torch.equal(batch.features, features[1, 3:4])
    assert batch.x.numel() == batch.y.numel() == 0
