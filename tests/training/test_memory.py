"""What a training does where a device's memory ends, and encoders and models, which take half the
batch."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rmadapter.backbones import Backbone, load_backbone
from rmadapter.encoders import Encoder, TextEncoder, in_halves
from rmadapter.errors import UserError
from rmadapter.methods import load_method
from rmadapter.prompts import frozen_prompts, text_features
from rmadapter.runs.features import distances_of, examine, outputs_of, transformed, with_means
from rmadapter.training.cache import Cache
from rmadapter.training.contract import Batch, Fitted, Recipe, minimise
from tests.helpers.methods import probabilities, quick_method
from tests.helpers.pretend_gpu import limited, plugged_in
from tests.helpers.rounding import assert_same_float32
from tests.helpers.shots import noisy_colors, pixels_of, shots_of

SMALL = {"epochs": 1, "first_block": 2, "rank": 4}
BACKBONES = ["tiny_clip", "tiny_siglip", "tiny_eva", "tiny_hf", "tiny_timm"]
IMAGES = noisy_colors(3)  # 12
NAMES = ("cat", "dog", "a very small house", "tree", "car")


class Room:
    """Memory for so many images or prompts at once.

    Attributes:
        taken: How many each call that had room took.
    """

    def __init__(self, rows: int) -> None:
        self.rows, self.taken = rows, list[int]()

    def take(self, count: int) -> None:
        if count > self.rows:
            raise torch.OutOfMemoryError(f"no memory for {count} rows")
        self.taken.append(count)


@contextmanager
def room_for_images(backbone: Backbone, rows: int) -> Iterator[Room]:
    """Let the image encoder encode so many images at once."""
    room, visual = Room(rows), backbone.image.visual
    handle = visual.register_forward_pre_hook(lambda _, inputs: room.take(len(inputs[0])))
    try:
        yield room
    finally:
        handle.remove()


@contextmanager
def room_for_blocks(rows: int) -> Iterator[Room]:
    """Let blocks that run one by one, as those with adapters do, take so many images or prompts at
    once."""
    room, step = Room(rows), Encoder.step

    def limited_step(
        self: Any, block: int, x: Tensor, n: Tensor, layout: Any, *more: Any
    ) -> Tensor:
        room.take(layout.grid[0] if isinstance(self, TextEncoder) else len(x))
        return step(self, block, x, n, layout, *more)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Encoder, "step", limited_step)
        yield room


def test_a_batch_is_halved_until_it_fits_and_stays_in_order() -> None:
    room = Room(3)

    def double(rows: Tensor) -> list[float]:
        room.take(len(rows))
        return [2 * row for row in rows.tolist()]

    parts = in_halves(double, torch.arange(10.0))
    assert [row for part in parts for row in part] == [2.0 * row for row in range(10)]
    assert room.taken == [2, 3, 2, 3]
    assert in_halves(double, torch.arange(3.0)) == [[0.0, 2.0, 4.0]]
    assert in_halves(double, torch.empty(0)) == [[]]


@pytest.mark.parametrize("text", ["MPS backend out of memory", "CUBLAS_STATUS_ALLOC_FAILED"])
def test_a_batch_is_halved_for_each_way_of_a_device_to_say_so(text: str) -> None:
    def one(rows: Tensor) -> int:
        if len(rows) > 1:
            raise RuntimeError(text)
        return len(rows)

    assert in_halves(one, torch.arange(5.0)) == [1] * 5


def test_a_batch_is_not_halved_for_another_error() -> None:
    tried: list[int] = []

    def broken(rows: Tensor) -> None:
        tried.append(len(rows))
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        in_halves(broken, torch.arange(5.0))
    assert tried == [5]


@pytest.mark.parametrize(("rows", "whole"), [(0, False), (3, True)])
def test_a_single_row_or_a_whole_batch_without_room_ends(rows: int, whole: bool) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        in_halves(lambda part: Room(rows).take(len(part)), torch.arange(10.0), whole=whole)


def test_what_an_attempt_computed_is_freed_before_the_next() -> None:
    def grown(rows: Tensor) -> Tensor:
        some = rows.repeat(4)
        return some.repeat(2)

    # 100 rows take 400 bytes, then 1,600 and 3,200; what the first attempt made would be too much
    with plugged_in() as device, limited(4800):
        parts = in_halves(grown, torch.ones(100, device=device))
    assert [len(part) for part in parts] == [400, 400]


@pytest.mark.parametrize("name", BACKBONES)
def test_images_are_encoded_in_parts_that_fit(name: str, request: pytest.FixtureRequest) -> None:
    backbone = request.getfixturevalue(name)
    encoder, pixels = backbone.image, pixels_of(backbone, IMAGES)
    firsts = [None, 3, 1] if encoder.depth else [None]
    with room_for_images(backbone, 5) as room:
        found = encoder.frozen_at(pixels, firsts)
        views = encoder.frozen(pixels.unflatten(0, (4, 3)))
    assert max(room.taken) <= 5
    assert len(room.taken) == 4 + 1 + 2
    for states, expected in zip(found, encoder.frozen_at(pixels, firsts), strict=True):
        assert states.first == expected.first
        assert len(states) == 12
        for one, other in zip(states.tensors, expected.tensors, strict=True):
            assert_same_float32(one, other)
    assert_same_float32(views.views, encoder.frozen(pixels.unflatten(0, (4, 3))).views)


def test_a_cache_is_filled_in_parts_that_fit(tiny_clip: Backbone) -> None:
    def held() -> Any:
        return Cache(tiny_clip, progress=False).source(IMAGES, 3)

    with room_for_images(tiny_clip, 5) as room:
        found = held()
    assert sum(room.taken) == 12 + 1  # and a blank image, for the layout
    expected = held()
    for name in ("features", "x", "y"):
        assert_same_float32(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_siglip"])
def test_prompts_are_encoded_in_parts_that_fit(name: str, request: pytest.FixtureRequest) -> None:
    backbone = request.getfixturevalue(name)
    kinds: list[Callable[[], Tensor]] = [
        lambda: torch.cat(
            [x.features for x in frozen_prompts(backbone, NAMES, ["a {}.", "{}"], 3)]
        ),
        lambda: text_features(backbone, NAMES),
    ]
    for features in kinds:
        expected = features()
        with room_for_blocks(3) as room:
            found = features()
        assert set(room.taken) <= {1, 2, 3}
        assert_same_float32(found, expected)


@pytest.fixture(scope="module")
def adapted(tiny_clip: Backbone) -> Fitted:
    shots = shots_of(tiny_clip, IMAGES)
    fitted = quick_method("rmadapter").fit(tiny_clip, shots)
    return with_means(fitted, IMAGES, shots.cache)


@pytest.mark.parametrize("names", [None, (*IMAGES.classes, *NAMES)])
def test_a_model_scores_in_parts_that_fit(adapted: Fitted, names: Any) -> None:
    """Images, and prompts of RMAdapter, whose text encoder is adapted, too."""
    cache = Cache(adapted.backbone, progress=False)
    cache.source(IMAGES, adapted.first)  # held, so that no image is encoded below
    answers: list[Callable[[], Any]] = [
        lambda: probabilities(adapted, IMAGES, names),
        lambda: examine(adapted, IMAGES.images, False, names or (), with_distances=False)[0],
        lambda: np.concatenate(examine(adapted, IMAGES.images, False), axis=None),
        lambda: transformed(adapted, IMAGES.images, False, names or adapted.classes),
        lambda: distances_of(adapted, IMAGES, cache),
    ]
    for answer in answers:
        expected = answer()
        with room_for_blocks(5) as room:
            found = answer()
        assert max(room.taken) <= 5
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_answers_that_depend_on_a_batch_are_not_computed_in_parts(adapted: Fitted) -> None:
    states = adapted.states(pixels_of(adapted.backbone, IMAGES))
    with room_for_blocks(5):
        whole = replace(adapted, remembers=True)
        alone = [whole.score(), outputs_of(whole, whole.classes, with_distances=False)]
        assert len(adapted.score()(states)) == 12
        for score in alone:
            with pytest.raises(torch.OutOfMemoryError):
                score(states)


def test_a_gpu_that_is_nearly_full_gives_the_same_answers(adapted: Fitted) -> None:
    many = noisy_colors(16, seed=5)
    with plugged_in() as device:
        backbone = load_backbone(adapted.backbone.name).to(device)
        on_gpu = adapted.method.restore(
            backbone, adapted.known, {k: v.to(device) for k, v in adapted.tensors.items()}
        )
        with limited() as free:
            expected = probabilities(on_gpu, many)
        with limited(0.6 * free.peak) as room:
            found = probabilities(on_gpu, many)
    assert room.peak < free.peak
    assert_same_float32(found, expected)


def test_the_batch_size_that_is_named_fits(tiny_clip: Backbone) -> None:
    """In a device that has room for three quarters of what the first one took."""
    images = noisy_colors(16)

    def train(batch_size: int) -> None:
        method = load_method("rmadapter", {**SMALL, "batch_size": batch_size})
        method.fit(gpu, shots_of(gpu, images, device=device.type))

    def refused() -> str:
        """Return the message; the traceback, which is dropped, holds the tensors of the step."""
        with pytest.raises(UserError, match="64 images and 4 classes") as told:
            train(64)
        return str(told.value)

    with plugged_in() as device:
        gpu = load_backbone(tiny_clip.name).to(device)
        with limited() as free:
            train(64)
        with limited(0.75 * free.peak):
            found = re.search(r"batch_size=(\d+)", refused())
            gc.collect()
            assert found
            train(int(found[1]))


@pytest.mark.parametrize(
    ("batch_size", "precision", "named"),
    [
        (8, "fp32", {"batch_size=4", "precision=bf16"}),
        (100, "fp32", {"batch_size=6", "precision=bf16"}),  # of 12 images
        (8, "bf16", {"batch_size=4"}),
        (1, "fp32", {"precision=bf16"}),
        (1, "bf16", set()),
    ],
)
def test_only_what_can_still_be_lowered_is_named(
    batch_size: int, precision: str, named: set[str], tiny_clip: Backbone
) -> None:
    def full(batch: Batch) -> Tensor:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`")

    module, shots = nn.Linear(2, 2), shots_of(tiny_clip, IMAGES, precision=precision)
    with pytest.raises(UserError, match="smaller backbone or fewer classes") as told:
        minimise(module, full, Recipe(batch_size=batch_size), shots, shots.source())
    assert {*re.findall(r"\w+=\w+", str(told.value))} == named


def test_another_error_of_a_step_is_raised_as_it_is(tiny_clip: Backbone) -> None:
    def broken(batch: Batch) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    shots = shots_of(tiny_clip, IMAGES)
    with pytest.raises(RuntimeError, match="mat1"):
        minimise(nn.Linear(2, 2), broken, Recipe(), shots, shots.source())
