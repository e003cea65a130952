"""Suspects of a data set that the test spoils: what is wrong is found, said and ordered, and
nothing is touched."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rmadapter.backbones import Backbone
from rmadapter.curate.suspects import ORDER, Found, find_suspects, kind
from rmadapter.data.read import ImageSet, read_images
from rmadapter.errors import UserError
from rmadapter.runs.run import Lab
from tests.helpers.spoiled import spoil


def found_in(backbone: Backbone, data: Path | ImageSet, **more: Any) -> Found:
    lab = Lab(progress=False)
    lab.add_backbone(backbone)
    return find_suspects(
        data, settings={"backbone": backbone.name}, progress=False, lab=lab, **more
    )


def test_what_was_spoiled_is_found(tiny_clip: Backbone, colors: Path, tmp_path: Path) -> None:
    data = spoil(colors, tmp_path / "data")
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    found = found_in(tiny_clip, data)
    by_name = {one.image: one for one in found.suspects}
    assert [one.image for one in found.suspects[:1]] == ["train/green/broken.png"]
    assert by_name["train/green/broken.png"].reasons[0].startswith("broken: not a")
    wrong = by_name["train/blue/is red.png"]
    assert (wrong.given, wrong.suggested, wrong.reasons) == ("blue", "red", ("wrong label",))
    assert wrong.confidence is not None
    assert 0.25 < wrong.confidence <= 1
    assert by_name["train/red/copy.png"].reasons == ("same file as train/red/0.png",)
    assert by_name["train/green/two.png"].reasons[0] == (
        "two labels: same file as train/night_sky/1.png, labelled night_sky"
    )
    assert by_name["train/night_sky/1.png"].reasons[0].startswith("two labels")
    order = [ORDER.index(kind(one.reasons[0])) for one in found.suspects]
    assert order == sorted(order)
    assert found.total == 28
    assert len(found.images) == 27
    assert found.counts()["two labels"] == 2
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before


def test_neighbours_are_the_nearest_by_untouched_features(
    tiny_clip: Backbone, colors: Path, tmp_path: Path
) -> None:
    from rmadapter.training.cache import Cache

    data = spoil(colors, tmp_path / "data")
    found = found_in(tiny_clip, data)
    features = Cache(tiny_clip, progress=False).features(found.images)[0].numpy()
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    [one] = [one for one in found.suspects if one.image == "train/blue/is red.png"]
    assert one.row is not None
    cosines = features @ features[one.row]
    cosines[one.row] = -1
    best = np.argsort(-cosines)[:5]
    assert [other.image for other in one.neighbours] == [found.images.name(int(i)) for i in best]
    assert [other.similarity for other in one.neighbours] == pytest.approx(
        cosines[best].tolist(), abs=1e-5
    )


def test_a_clean_set_and_one_in_memory(tiny_clip: Backbone, colors: Path) -> None:
    images = read_images(colors, progress=False)["train"]
    clean = found_in(tiny_clip, images)
    assert (clean.total, clean.judged) == (24, 24)
    assert "broken" not in clean.counts()
    labels = list(images.labels)
    labels[0] = 3
    flipped = found_in(
        tiny_clip, ImageSet(images.images, tuple(labels), images.classes, images.root)
    )
    assert [one.suggested for one in flipped.suspects if one.row == 0] == ["blue"]
    assert found_in(tiny_clip, images, method="zero-shot").judged == 24


def test_one_image_a_class_judges_no_label(tiny_clip: Backbone) -> None:
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range(2)]
    found = found_in(tiny_clip, ImageSet.from_lists(noise, ["a", "b"]))
    assert (found.judged, found.total) == (0, 2)
    assert "wrong label" not in found.counts()


def test_only_a_test_split_is_refused(tiny_clip: Backbone, colors: Path, tmp_path: Path) -> None:
    shutil.copytree(colors / "test", tmp_path / "test")
    with pytest.raises(UserError, match="no training images: the data has only test"):
        found_in(tiny_clip, tmp_path)
