"""Frozen activations of image sets, against the encoder's own on each batch: held in memory or a
file, or live."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
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
from rmadapter.encoders import PARTS, Grid, States
from rmadapter.errors import UserError
from rmadapter.settings import Machine
from rmadapter.training import cache as cache_module
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


def encoder_calls(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[int, list[int | None]]]:
    """Record number of images and requested blocks of every pass of the encoder; a blank image only
    tells shapes."""
    calls: list[tuple[int, list[int | None]]] = []
    frozen_at = backbone.image.frozen_at

    def recorded(images: Tensor, firsts: Sequence[int | None], **options: bool) -> list[States]:
        if images.any():
            calls.append((len(images), [*firsts]))
        return frozen_at(images, firsts, **options)

    monkeypatch.setattr(backbone.image, "frozen_at", recorded)
    return calls


@pytest.mark.parametrize("hold", [True, False])
@pytest.mark.parametrize("first", [1, 4, None])
@pytest.mark.parametrize("name", BACKBONES)
def test_held_and_live_states_equal_those_of_the_encoder(
    name: str, first: int | None, hold: bool, request: pytest.FixtureRequest
) -> None:
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
            features = backbone.image.encode(batch.x, batch.layout, first)
        assert_same_float32(features, expected.features)


@pytest.mark.parametrize("first", [4, None])
def test_subsets_of_held_images_are_not_computed_again(
    first: int | None, tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, subset = of(tiny_clip), IMAGES.subset([5, 0, 6])
    cache.source(IMAGES, 4)
    expected = of(tiny_clip).source(subset, first)
    partly_held = ImageSet.from_lists([ARRAYS[0], 255 - ARRAYS[1]], ["a", "b"])
    fresh = of(tiny_clip).source(partly_held, first).batch(torch.arange(2))
    assert_same_states(cache.source(partly_held, first).batch(torch.arange(2)), fresh)
    calls = encoder_calls(tiny_clip, monkeypatch)
    source = cache.source(subset, first)
    assert isinstance(source, Held)
    assert_same_states(source.batch(torch.arange(3)), expected.batch(torch.arange(3)))
    assert len(cache.source(subset.subset([1]), first).batch(torch.tensor([0])).features) == 1
    assert not calls


def test_an_expected_part_makes_all_images_computed_at_once(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = ([5, 2], [0, 1, 3], [*range(7)])
    expected = [tiny_clip.image.frozen(pixels(tiny_clip, rows), 2) for rows in parts]
    calls, cache = encoder_calls(tiny_clip, monkeypatch), of(tiny_clip)
    cache.expect_parts(IMAGES)
    for rows, states in zip(parts, expected, strict=True):
        source = cache.source(IMAGES.subset(rows), 2)
        assert_same_states(source.batch(torch.arange(len(rows))), states)
    cache.source(ImageSet.from_lists([255 - ARRAYS[0]], ["a"]), 2)
    assert [count for count, _ in calls] == [7, 1]


def test_subsets_of_augmented_images_are_computed_again(tiny_clip: Backbone) -> None:
    """Augmentation depends on the place of an image in its set."""
    views: dict[str, Any] = {"augmentation": "standard", "views": 2}
    cache, fresh, subset = of(tiny_clip, **views), of(tiny_clip, **views), IMAGES.subset([5, 0])
    cache.source(IMAGES, 4, augmented=True)
    sources = [one.source(subset, 4, augmented=True) for one in (cache, fresh)]
    for epoch in range(2):
        assert_same_states(*(source.batch(torch.arange(2), epoch) for source in sources))


@pytest.mark.parametrize("tokens_first", [False, True])
def test_features_come_with_the_tokens_of_any_block(
    tiny_clip: Backbone, tokens_first: bool
) -> None:
    cache = of(tiny_clip)
    if tokens_first:
        cache.source(IMAGES, 2)
    computed = cache.seconds
    held = cache.source(IMAGES)
    assert (cache.seconds == computed) == tokens_first
    assert isinstance(held, Held)
    assert_same_float32(held.features, tiny_clip.image.frozen(pixels(tiny_clip)).features)
    assert held.x.numel() == held.y.numel() == 0
    if tokens_first:
        assert held.features._base is None  # not a view that keeps the tokens' memory
    assert torch.equal(cache.features(IMAGES)[0], held.features)


def test_activations_are_found_by_the_content_of_images(tiny_clip: Backbone) -> None:
    cache = of(tiny_clip)
    first = cache.source(IMAGES, 3)
    assert cache.source(IMAGES.subset(range(7)), 3) is first
    assert cache.source(IMAGES, 2) is not first
    assert cache.source(IMAGES.subset([0, 1]), 3) is not first
    assert cache.source(IMAGES, 3) is first


@pytest.mark.parametrize("hold", [True, False])
def test_a_run_keeps_freed_memory_before_it_encodes(
    hold: bool, tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in an app, which holds no activations and gives memory back."""
    order: list[str] = []
    monkeypatch.setattr(cache_module, "keep_freed_memory", lambda: order.append("kept"))
    encode = type(tiny_clip.image).frozen_at
    monkeypatch.setattr(
        type(tiny_clip.image), "frozen_at",
        lambda *args, **given: (order.append("encoded"), encode(*args, **given))[1],
    )  # fmt: skip
    whole(of(tiny_clip, hold=hold).source(IMAGES, 3))
    assert order[0] == ("kept" if hold else "encoded")
    assert "encoded" in order


def test_a_full_memory_drops_the_least_recently_used(tiny_clip: Backbone) -> None:
    held = of(tiny_clip).source(IMAGES, 3)
    assert isinstance(held, Held)
    one = sum(4 * getattr(held, name).numel() for name in NAMES) / GB
    cache = of(tiny_clip, memory=2.5 * one)
    sets = [IMAGES.subset(reversed(range(7))), IMAGES, IMAGES.subset([1, 0, *range(2, 7)])]
    first, second = (cache.source(images, 3) for images in sets[:2])
    assert cache.source(sets[0], 3) is first
    cache.source(sets[2], 3)  # there is room for two, and the second was used before the first
    assert cache.source(sets[0], 3) is first
    assert cache.source(sets[1], 3) is not second


def test_activations_beyond_the_memory_lie_in_a_file(tiny_clip: Backbone, tmp_path: Path) -> None:
    expected = whole(of(tiny_clip).source(IMAGES, 2))
    first = of(tiny_clip, tmp_path / "files", 0)
    assert_same_states(whole(first.source(IMAGES, 2)), expected)
    file = next((tmp_path / "files").glob("frozen-*.bin"))
    written = file.stat().st_mtime_ns, file.read_bytes()
    second = of(tiny_clip, tmp_path / "files", 0)  # like the next process
    assert_same_states(whole(second.source(IMAGES, 2)), expected)
    assert (file.stat().st_mtime_ns, file.read_bytes()) == written
    assert [file] == list((tmp_path / "files").iterdir())
    marked = np.memmap(file, np.float32, "r+")
    marked[0] += 1
    marked.flush()
    third = of(tiny_clip, tmp_path / "files", 0).source(IMAGES, 2)
    assert whole(third).features[0, 0] == expected.features[0, 0] + 1


def test_activations_without_room_are_live(
    tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(of(tiny_clip, memory=0).source(IMAGES, 2), Live)
    assert isinstance(of(tiny_clip, memory=0).source(IMAGES), Held)  # features alone are small
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    assert isinstance(of(tiny_clip, tmp_path, 0).source(IMAGES, 2), Live)
    assert not list(tmp_path.iterdir())


def test_a_stream_yields_all_images_in_order(
    tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whole(of(tiny_clip).source(IMAGES, 2))
    monkeypatch.setattr("rmadapter.training.cache.BATCH_SIZE", 4)
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


def test_an_interrupted_file_is_removed(tiny_clip: Backbone, tmp_path: Path) -> None:
    broken = ImageSet.from_lists([*ARRAYS[:3], tmp_path / "missing.png"], ["a", "b", "a", "b"])
    with pytest.raises((OSError, ValueError)):
        of(tiny_clip, tmp_path, 0).source(broken, 2)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_reported_before_anything_is_computed(
    tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk under a mapped file would end the process by SIGBUS."""
    calls = encoder_calls(tiny_clip, monkeypatch)
    sentence = r"frozen-\w+\.bin: .*(File too large|No space left on device)"
    with limited_file_size(), pytest.raises(UserError, match=sentence):
        of(tiny_clip, tmp_path, 0).source(IMAGES, 2)

    def full(file: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=sentence):
        of(tiny_clip, tmp_path, 0).source(IMAGES, 2)
    assert not list(tmp_path.iterdir())
    assert not calls


def test_a_truncated_file_is_written_again(tiny_clip: Backbone, tmp_path: Path) -> None:
    expected = whole(of(tiny_clip, tmp_path, 0).source(IMAGES, 2))
    [file] = tmp_path.iterdir()
    size = file.stat().st_size
    os.truncate(file, size // 2)
    assert_same_states(whole(of(tiny_clip, tmp_path, 0).source(IMAGES, 2)), expected)
    assert file.stat().st_size == size


def test_a_file_name_covers_everything_that_activations_depend_on(
    tiny_clip: Backbone, tiny_siglip: Backbone, tmp_path: Path
) -> None:
    views = {"augmentation": "standard", "views": 2}
    darker = replace(tiny_clip, mean=(0.1, 0.1, 0.1))
    halved = replace(tiny_clip, preprocess=lambda image: tiny_clip.preprocess(image) / 2)
    cases: list[tuple[Backbone, dict[str, Any], ImageSet, int]] = [
        (tiny_clip, {}, IMAGES, 2),
        (tiny_clip, {}, IMAGES, 3),
        (tiny_clip, {}, IMAGES.subset(range(6)), 2),
        (tiny_siglip, {}, IMAGES, 2),
        (halved, {}, IMAGES, 2),
        (tiny_clip, views, IMAGES, 2),
        (tiny_clip, {**views, "views": 3}, IMAGES, 2),
        (tiny_clip, {**views, "seed": 2}, IMAGES, 2),
        (darker, views, IMAGES, 2),
    ]
    for count, (backbone, options, images, first) in enumerate(cases, 1):
        of(backbone, tmp_path, 0, **options).source(images, first, augmented=True)
        assert len(list(tmp_path.iterdir())) == count
    # Without augmentation the seed does not matter.
    of(tiny_clip, tmp_path, 0, seed=7).source(IMAGES, 2, augmented=True)
    assert len(list(tmp_path.iterdir())) == len(cases)


@pytest.mark.parametrize("hold", [True, False])
def test_epochs_take_augmented_views_in_turn(tiny_clip: Backbone, hold: bool) -> None:
    cache = of(tiny_clip, hold=hold, augmentation="standard", views=2, seed=5)
    source = cache.source(IMAGES, 2, augmented=True)
    assert (len(source), source.views) == (7, 2)
    transform = TrainTransform(32, tiny_clip.mean, tiny_clip.std)
    for epoch, view in ((0, 0), (1, 1), (2, 0)):
        tensors = ImageTensors(IMAGES, transform, (5, view))
        expected = tiny_clip.image.frozen(torch.stack([tensors[i] for i in (3, 4)]), 2)
        assert_same_states(source.batch(torch.tensor([3, 4]), epoch), expected)


def test_views_differ_and_are_reproducible(tiny_clip: Backbone) -> None:
    views = {"augmentation": "standard", "views": 2}
    cache = of(tiny_clip, **views)
    features = cache.features(IMAGES, augmented=True)
    assert features.shape[:2] == (2, 7)
    assert not torch.allclose(features[0], features[1], atol=1e-3)
    assert_same_float32(cache.features(IMAGES), of(tiny_clip).features(IMAGES))
    again, workers, other_seed = (
        of(tiny_clip, **views, **options).features(IMAGES, augmented=True)
        for options in ({}, {"workers": 2}, {"seed": 2})
    )
    assert torch.equal(again, features)
    assert_same_float32(workers, features)
    assert not torch.allclose(other_seed, features)
    tokens = of(tiny_clip, **views).source(IMAGES, 3, augmented=True)
    assert_same_float32(torch.stack([whole(tokens, view).features for view in (0, 1)]), features)


def test_without_a_number_of_views_every_epoch_draws_new_ones(tiny_clip: Backbone) -> None:
    cache = of(tiny_clip, augmentation="standard")
    source = cache.source(IMAGES, 3, augmented=True)
    assert isinstance(source, Live)
    epochs = [whole(source, epoch).features for epoch in (0, 1, 2, 0)]
    assert all(not torch.allclose(epochs[0], other, atol=1e-3) for other in epochs[1:3])
    assert torch.equal(epochs[0], epochs[3])
    with pytest.raises(UserError, match="views=8"):
        cache.features(IMAGES, augmented=True)


@pytest.mark.parametrize(
    "given", [{}, {"augmentation": "standard"}, {"augmentation": "standard", "views": 2}], ids=str
)
def test_pixels_belong_to_the_states_of_the_same_rows(
    tiny_clip: Backbone, given: dict[str, Any]
) -> None:
    """The reference forward pass reads the pixels, the lean one the states."""
    shots = Shots(IMAGES, of(tiny_clip, **given), progress=False)
    rows = torch.tensor([6, 2])
    for epoch in (0, 1, 2):
        images = shots.pixels(rows, epoch, 3)
        assert_same_states(shots.source(3).batch(rows, epoch), tiny_clip.image.frozen(images, 3))


@pytest.mark.parametrize("name", BACKBONES)
def test_expected_blocks_come_from_one_pass(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = request.getfixturevalue(name)
    expected = {first: backbone.image.frozen(pixels(backbone), first) for first in (None, 4, 2)}
    calls, cache = encoder_calls(backbone, monkeypatch), of(backbone, blocks={2, 4})
    for first, states in expected.items():
        assert_same_states(whole(cache.source(IMAGES, first)), states)
    assert calls == [(7, [None, 2, 4])]
    # An unexpected block or format takes a pass without other blocks.
    cache.source(IMAGES, 3)
    cache.source(IMAGES, 2, precision="bf16")
    assert calls[1:] == [(7, [3]), (7, [2])]


def test_blocks_are_computed_one_by_one_if_memory_is_short(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {first: tiny_clip.image.frozen(pixels(tiny_clip), first) for first in (2, 3)}
    held = of(tiny_clip).source(IMAGES, 2)
    assert isinstance(held, Held)
    each = held.bytes / GB
    calls = encoder_calls(tiny_clip, monkeypatch)
    cache = of(tiny_clip, memory=7 * each, blocks={2, 3})
    for first, states in expected.items():
        assert_same_states(whole(cache.source(IMAGES, first)), states)
    assert calls == [(7, [2]), (7, [3])]


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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_parts_are_held_in_float16_and_bring_the_features(
    tiny_clip: Backbone, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tiny_clip.image.frozen(pixels(tiny_clip), PARTS)
    calls, cache = encoder_calls(tiny_clip, monkeypatch), of(tiny_clip)
    held = cache.source(IMAGES, PARTS, precision=precision)
    assert isinstance(held, Held)
    assert held.x.shape == (7, 16, 64)
    assert held.x.dtype == torch.float16
    assert torch.equal(held.x, expected.x)
    assert_same_float32(held.features, expected.features)
    assert cache.source(IMAGES, PARTS) is held
    assert torch.equal(cache.features(IMAGES)[0], held.features)
    subset = whole(cache.source(IMAGES.subset([5, 2, *range(2, 7)]), PARTS))
    assert torch.equal(subset.x, held.x[[5, 2, *range(2, 7)]])
    assert calls == [(7, [PARTS])]


def test_expected_blocks_take_a_pass_of_their_own_beside_parts(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As parts have a format of their own, in whatever order they are asked for."""
    expected = {first: tiny_clip.image.frozen(pixels(tiny_clip), first) for first in (PARTS, 2, 4)}
    for order in ([PARTS, 2, 4], [2, PARTS, 4]):
        with monkeypatch.context() as patch:
            calls, cache = encoder_calls(tiny_clip, patch), of(tiny_clip, blocks={PARTS, 2, 4})
            for first in order:
                states = whole(cache.source(IMAGES, first))
                for name in NAMES:
                    found, wanted = (getattr(one, name) for one in (states, expected[first]))
                    assert_same_float32(found.float(), wanted.float())
        assert sorted(calls) == [(7, [PARTS]), (7, [2, 4])]


def test_shots_have_parts_held_or_live_without_augmentation(
    tiny_clip: Backbone, tmp_path: Path
) -> None:
    expected = tiny_clip.image.frozen(pixels(tiny_clip), PARTS).x
    views: dict[str, Any] = {"augmentation": "standard", "views": 2}
    held, live = of(tiny_clip, **views), of(tiny_clip, hold=False, **views)
    in_a_file = of(tiny_clip, tmp_path, memory=0.0)
    assert isinstance(live.source(IMAGES, PARTS), Live)
    for cache in (held, live, in_a_file):
        shots = Shots(IMAGES, cache, progress=False)
        assert torch.equal(shots.parts(), expected)
        sums = shots.parts(lambda states: states.x.float().sum(1) + len(states.features))
        torch.testing.assert_close(sums, expected.float().sum(1) + 7)
    [file] = tmp_path.iterdir()
    assert file.stat().st_size == expected.numel() * 2 + 7 * 40 * 4


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
