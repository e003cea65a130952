"""Shared activations are those that the model itself computes, and are computed once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from rmadapter.backbone import Backbone
from rmadapter.bench.activations import Activations
from rmadapter.config import Config
from rmadapter.data.images import ImageSet, read_images
from rmadapter.errors import UserError
from rmadapter.features import GB
from rmadapter.model import AdaptedCLIP

CPU = torch.device("cpu")


@pytest.fixture
def images(colors: Path) -> ImageSet:
    return read_images(colors)["test"].subset(range(0, 16, 3))


def of(backbone: Backbone, folder: Path | None = None, **words: object) -> Activations:
    return Activations(backbone, Config.make({"backbone": backbone.name, "device": "cpu", **words}), folder)


def pictures(backbone: Backbone, images: ImageSet) -> Tensor:
    return torch.stack([backbone.preprocess(Image.open(str(path)).convert("RGB")) for path in images.images])


def tokens(activations: Activations, images: ImageSet, first: int) -> float:
    """GB of the tokens into a block."""
    found = activations.states(images, first, progress=False)
    return sum(4 * part.numel() for part in (found.x, found.y, found.features)) / GB


@pytest.mark.parametrize("first", [1, 3, 4])
def test_states_are_the_models(tiny_clip: Backbone, images: ImageSet, first: int) -> None:
    held = of(tiny_clip).states(images, first, progress=False)
    model = AdaptedCLIP(tiny_clip, Config.make({"first_block": first, "rank": 4}))
    expected = model.frozen("image", pictures(tiny_clip, images))
    rows = torch.tensor([4, 0])
    batch = held.batch(rows, CPU)
    torch.testing.assert_close(batch.x, expected.x[rows])
    torch.testing.assert_close(batch.y, expected.y[rows])
    torch.testing.assert_close(batch.features, expected.features[rows])
    # and an adapter makes the same of both
    torch.testing.assert_close(model.features("image", batch)[0], model.features("image", expected)[0][rows])


@pytest.mark.parametrize("tokens_first", [False, True])
def test_features_alone_are_the_encoders(tiny_clip: Backbone, images: ImageSet, tokens_first: bool) -> None:
    activations = of(tiny_clip)
    if tokens_first:
        activations.states(images, 2, progress=False)
    computed = activations.seconds
    found = activations.states(images, None, progress=False)
    assert (activations.seconds == computed) == tokens_first  # they come with the tokens
    with torch.no_grad():
        expected = tiny_clip.model.encode_image(pictures(tiny_clip, images))  # type: ignore[operator]
    torch.testing.assert_close(found.features, expected, rtol=1e-5, atol=1e-5)
    assert found.x.numel() == found.y.numel() == 0
    assert found.features._base is None or not tokens_first  # not a view that keeps the tokens' memory


def test_what_was_computed_is_kept_also_for_another_object_of_the_same_images(
    tiny_clip: Backbone, images: ImageSet
) -> None:
    activations = of(tiny_clip)
    first = activations.states(images, 3, progress=False)
    again = activations.states(images.subset(range(len(images))), 3, progress=False)
    assert again is first
    assert activations.states(images, 2, progress=False) is not first
    assert activations.states(images.subset([0, 1]), 3, progress=False) is not first


def test_the_least_recently_used_leaves_a_full_memory(tiny_clip: Backbone, images: ImageSet) -> None:
    one = tokens(of(tiny_clip), images, 3)
    activations = of(tiny_clip, cache_memory=2.5 * one)
    sets = [images.subset(reversed(range(len(images)))), images, images.subset([1, 0, 2, 3, 4, 5])]
    first, second = (activations.states(s, 3, progress=False) for s in sets[:2])
    assert activations.states(sets[0], 3, progress=False) is first
    activations.states(sets[2], 3, progress=False)  # room for two: the second goes, it was used before the first
    assert activations.states(sets[0], 3, progress=False) is first
    assert activations.states(sets[1], 3, progress=False) is not second


def test_what_memory_cannot_hold_lies_in_a_file_or_is_computed_anew(
    tiny_clip: Backbone, images: ImageSet, tmp_path: Path
) -> None:
    expected = of(tiny_clip).states(images, 2, progress=False)
    small = of(tiny_clip, tmp_path / "files", cache_memory=1e-6)
    in_file = small.states(images, 2, progress=False)
    assert len(list((tmp_path / "files").glob("frozen-*.bin"))) == 1
    torch.testing.assert_close(in_file.x, expected.x)
    nowhere = of(tiny_clip, cache_memory=1e-6)
    with pytest.raises(UserError, match="no room for the activations of 6 images"):
        nowhere.states(images, 2, progress=False)
    for activations in (small, nowhere, of(tiny_clip)):
        parts = list(activations.stream(images, 2, batch_size=4, progress=False))
        assert [len(part.features) for part in parts] == [4, 2]
        for name in ("x", "y", "features"):
            got = torch.cat([getattr(part, name) for part in parts])
            torch.testing.assert_close(got, getattr(expected, name))


def test_augmented_views_differ_from_each_other_and_repeat_themselves(tiny_clip: Backbone, images: ImageSet) -> None:
    activations = of(tiny_clip, augmentation="standard", views=2)
    views = activations.states(images, 3, augmented=True, progress=False)
    assert (views.views, len(views), len(views.x)) == (2, 6, 12)
    rows = torch.arange(6)
    zero, one, two = (views.batch(rows, CPU, view).features for view in range(3))
    assert not torch.allclose(zero, one, atol=1e-3)
    assert torch.equal(zero, two)
    plain = activations.states(images, 3, progress=False)
    assert plain.views == 1
    torch.testing.assert_close(plain.x, of(tiny_clip).states(images, 3, progress=False).x)
    alone = activations.states(images, None, augmented=True, progress=False)
    assert alone.views == 2
    torch.testing.assert_close(alone.features, views.features)
    again = of(tiny_clip, augmentation="standard", views=2)
    torch.testing.assert_close(again.states(images, None, augmented=True, progress=False).features, views.features)
    other = of(tiny_clip, augmentation="standard", views=2, seed=2)
    assert not torch.allclose(other.states(images, 3, augmented=True, progress=False).features, views.features)
