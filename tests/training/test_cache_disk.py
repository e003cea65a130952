"""The cache on disk: activations computed once for every method, seed and command."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from rmadapter.artifacts.record import Record
from rmadapter.backbones import Backbone
from rmadapter.bench.plan import Plan
from rmadapter.bench.protocols import expand
from rmadapter.bench.runner import run_all
from rmadapter.data.read import ImageSet, load_image
from rmadapter.encoders import PARTS
from rmadapter.settings import Machine, configured
from rmadapter.task import Task
from rmadapter.training.cache import Cache, Held, Live
from rmadapter.training.disk_cache import Store
from tests.helpers.rounding import assert_same_float32
from tests.helpers.shell import Command, refused, rmadapter
from tests.helpers.shots import noise_images

__all__ = ["rmadapter"]

IMAGES = noise_images(7)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the user's cache."""
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path / "user"))
    return tmp_path / "user"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of images that are decoded and encoded together."""
    found: list[int] = []
    pixels = Live.pixels

    def counted(self: Live, epoch: int, orders: Any) -> Any:
        for part in pixels(self, epoch, orders):
            found.append(len(part))
            yield part

    monkeypatch.setattr(Live, "pixels", counted)
    return found


def of(backbone: Backbone, gigabytes: float = 0.1, **given: Any) -> Cache:
    """A new one, as another process has it."""
    return Cache(backbone, Machine(device="cpu", disk_cache=gigabytes), progress=False, **given)


def held(cache: Cache, images: ImageSet = IMAGES, first: int | None = 3, **given: Any) -> Held:
    found = cache.source(images, first, **given)
    assert isinstance(found, Held)
    return found


def test_another_process_computes_only_new_images(tiny_clip: Backbone, seen: list[int]) -> None:
    first = held(of(tiny_clip))
    assert seen == [7]
    again = held(of(tiny_clip))
    assert seen == [7]
    for name in ("features", "x", "y"):
        assert torch.equal(getattr(again, name), getattr(first, name))
    assert torch.equal(held(of(tiny_clip), first=None).features, first.features)
    more = noise_images(9).subset([8, 2, 7, 0])  # other labels, another order and two other images
    found = held(of(tiny_clip), more)
    assert seen == [7, 2]
    assert torch.equal(found.x[[1, 3]], first.x[[2, 0]])
    assert_same_float32(found.features, of(tiny_clip, 0).features(more)[0])


def test_activations_are_those_of_float32_in_autocast_too(tiny_clip: Backbone) -> None:
    expected = held(of(tiny_clip, 0))
    with torch.autocast("cpu", torch.bfloat16):
        held(of(tiny_clip))
    found = held(of(tiny_clip))  # from disk
    for name in ("features", "x", "y"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_images_seen_once_are_kept_on_disk(tiny_clip: Backbone, seen: list[int]) -> None:
    """As `fit` and `eval` look at them; without a cache on disk they are not held at all."""
    assert isinstance(of(tiny_clip, 0, hold=False).source(IMAGES, 3), Live)
    assert isinstance(of(tiny_clip, hold=False).source(IMAGES, 3), Held)
    list(of(tiny_clip, hold=False).stream(IMAGES, 3))
    assert seen == [7]


def test_nothing_is_kept_without_disk_cache(
    tiny_clip: Backbone, place: Path, seen: list[int]
) -> None:
    for _ in range(2):
        held(of(tiny_clip, 0))
    assert seen == [7, 7]
    assert not place.exists()


def test_the_key_covers_everything_that_activations_depend_on(
    tiny_clip: Backbone, tiny_siglip: Backbone, seen: list[int]
) -> None:
    views = {"augmentation": "standard", "views": 2}
    asked: list[tuple[Backbone, dict[str, Any], dict[str, Any]]] = [
        (tiny_clip, {}, {}),
        (tiny_clip, {}, {"first": 2}),
        (tiny_clip, {}, {"precision": "bf16"}),
        (tiny_siglip, {}, {}),
        (tiny_clip, views, {"augmented": True}),
        (tiny_clip, {**views, "seed": 2}, {"augmented": True}),
        (tiny_clip, {**views, "views": 3}, {"augmented": True}),
        (replace(tiny_clip, mean=(0.1, 0.1, 0.1)), views, {"augmented": True}),
        (tiny_clip, views, {"augmented": True, "images": IMAGES.subset([1, 0, *range(2, 7)])}),
    ]
    heads = copy.deepcopy(tiny_clip)
    heads.model.visual.transformer.resblocks[0].attn.num_heads = 1  # type: ignore[union-attr]
    asked.append((replace(heads), {}, {}))  # of the same weights
    for backbone, made, wanted in asked:
        before = len(seen)
        first = held(of(backbone, **made), **wanted)
        assert len(seen) > before, wanted
        before = len(seen)
        again = held(of(backbone, **made), **wanted)
        assert len(seen) == before, wanted
        assert torch.equal(again.x, first.x)
    # which has no lasting name
    other = replace(tiny_clip, preprocess=lambda image: tiny_clip.preprocess(image) / 2)
    for _ in range(2):
        before = len(seen)
        held(of(other))
        assert len(seen) > before


def test_activations_of_other_versions_are_not_read(
    tiny_clip: Backbone, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    held(of(tiny_clip))
    version = metadata.version
    for library in ("rmadapter", "torch", "torchvision", "timm", "pillow"):
        monkeypatch.setattr(
            metadata, "version", lambda name, new=library: "999" if name == new else version(name)
        )
        before = len(seen)
        for _ in range(2):
            held(of(tiny_clip))
        assert len(seen) == before + 1


@pytest.mark.ci
def test_a_bench_encodes_each_image_once_and_the_next_bench_none(
    colors: Path,
    tiny_clip: Backbone,
    tmp_path: Path,
    seen: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever methods, seeds and alphas there are."""
    opened: list[object] = []
    monkeypatch.setattr(
        "rmadapter.data.image_set.load_image", lambda it: opened.append(it) or load_image(it)
    )
    common = configured(Task(), {"backbone": tiny_clip.name})
    machine = Machine(device="cpu", disk_cache=0.1)

    def bench(out: str, methods: list[str], **values: Any) -> list[Record]:
        jobs = expand(
            "few-shot", [colors.name], methods, [1, 2], [2], root=colors.parent, common=common
        )
        quick = {"rmadapter": {"epochs": 1, "first_block": 3, "rank": 4, **values}}
        plan = Plan(tuple(jobs), tmp_path / out, colors.parent, machine, quick)
        return run_all(plan, progress=False)

    first = bench("one", ["rmadapter", "linear-probe", "tip-adapter"])
    # the test images, and the shots of two seeds
    assert len(opened) == len({*opened}) == sum(seen) > 16
    again = bench("two", ["linear-probe", "rmadapter"], alpha=0.5)
    assert len(opened) == len({*opened})
    probes = [
        [record.metrics for record in some if record.method.name == "linear-probe"]
        for some in (first, again)
    ]
    assert probes[0] == probes[1]


def test_eval_reuses_the_disk_cache_and_cache_lists_and_clears_it(
    finished: Path,
    colors: Path,
    tiny_clip: Backbone,
    place: Path,
    seen: list[int],
    rmadapter: Command,
) -> None:
    command = ["eval", finished, colors, "--backbone", tiny_clip.name]
    for _ in range(2):
        rmadapter.done(*command, "--set", "disk_cache=0.1", "--json")
        assert sum(seen) == 16
    refused(rmadapter(*command, "--set", "compile=true"), "compile")  # a setting of training
    shown = rmadapter.json("cache")
    assert [(one["what"].partition(": ")[2], one["images"]) for one in shown["contents"]] == [
        ("features", 16),
        ("tokens of block 3, float32", 16),
    ]
    assert (shown["folder"], shown["removed_mb"]) == (str(place), 0)
    assert shown["mb"] == pytest.approx(sum(one["mb"] for one in shown["contents"]))
    assert [one["kind"] for one in shown["kinds"] if one["files"]] == ["activations"]
    assert "activations" in rmadapter("cache").out
    assert "tokens of block 3" in rmadapter("cache", "activations").out
    refused(rmadapter("cache", "activation"), "'activations'")
    assert rmadapter.json("cache", "unpacked", "--clear")["removed_mb"] == 0
    (place / "pocket").mkdir()
    assert rmadapter.json("cache", "--clear")["removed_mb"] == pytest.approx(shown["mb"])
    assert [path.name for path in place.iterdir()] == ["pocket"]
    assert rmadapter("cache").out == f"{place}: 0.0 MB\n"


def test_features_alone_are_kept_unasked_and_shrink_no_cache(
    tiny_clip: Backbone,
    place: Path,
    own_facts: Callable[[], Store],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Store, "of_features", own_facts)
    monkeypatch.setattr("rmadapter.training.disk_cache.FEATURES_BYTES", 1)
    held(of(tiny_clip))
    kept = sorted((place / "activations").rglob("*.safetensors"))
    cache = Cache(tiny_clip, Machine(device="cpu"), progress=False, keep_features=True)
    assert cache.store is not None
    assert cache.store.limit == sum(file.stat().st_size for file in kept)
    held(cache, noise_images(9), first=None)  # of those that are new, features alone
    assert len(sorted((place / "activations").rglob("*.safetensors"))) <= len(kept)


def test_tokens_are_not_kept_unasked(tiny_clip: Backbone, seen: list[int], tmp_path: Path) -> None:
    def made() -> Cache:
        return Cache(
            tiny_clip, Machine(device="cpu"), progress=False, keep_features=True, hold=False
        )

    assert isinstance(made().source(IMAGES, 3), Live)
    held(made(), first=None)
    assert isinstance(made().source(IMAGES, 3), Live)
    assert isinstance(made().source(IMAGES), Held)


@pytest.mark.parametrize("gigabytes", [0.0, 0.1])
def test_parts_are_kept_with_features_and_read_back(
    tiny_clip: Backbone, seen: list[int], gigabytes: float
) -> None:
    """Bit for bit, unasked too, and for images that are seen once."""

    def made(**given: Any) -> Cache:
        return of(tiny_clip, gigabytes, keep_features=True, **given)

    images = noise_images(8, seed=11)  # which no other test keeps
    first = held(made(), images, PARTS)
    assert seen == [8]
    for given in ({}, {"hold": False}):
        again = held(made(**given), images, PARTS)
        assert again.x.dtype == torch.float16
        assert torch.equal(again.x, first.x)
        assert torch.equal(again.features, first.features)
    assert torch.equal(held(made(), images, None).features, first.features)
    part = held(made(), images.subset([6, 1]), PARTS)
    assert torch.equal(part.x, first.x[[6, 1]])
    assert seen == [8]
