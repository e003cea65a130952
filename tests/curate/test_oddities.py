"""Odd images among ordinary ones that the test makes, and each measure against another way to
compute it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps
from scipy import ndimage

from rmadapter.curate import oddities
from rmadapter.data.duplicates import looks
from rmadapter.data.read import ImageSet


def scene(seed: int, side: int = 96) -> Image.Image:
    """Blobs with fine grain."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    blobs = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), float)
    return Image.fromarray(np.clip(blobs + rng.normal(0, 20, blobs.shape), 0, 255).astype(np.uint8))


def test_measures_are_those_of_other_libraries() -> None:
    image = scene(0)
    [[shorter, sharpness, spread]] = oddities.measure([image])
    grey = np.asarray(image.convert("L"), float)
    assert shorter == 96
    assert sharpness == pytest.approx(ndimage.laplace(grey)[1:-1, 1:-1].var(), rel=1e-5)
    assert spread == pytest.approx(
        max(np.asarray(image, float)[..., i].std() for i in range(3)), rel=1e-5
    )
    large = scene(0, 1000)  # is reduced first
    small = large.resize((256, 256), Image.Resampling.BICUBIC)
    assert oddities.measure([large])[0, 1] == pytest.approx(
        oddities.measure([small])[0, 1], rel=0.01
    )
    assert oddities.measure([Image.new("RGB", (2, 2), "red")]).tolist() == [[2, 0, 0]]


def test_odd_images_are_found_among_others() -> None:
    images = [scene(seed) for seed in range(30)]
    images[3] = images[3].filter(ImageFilter.GaussianBlur(4))
    images[5] = images[5].resize((24, 24), Image.Resampling.NEAREST)
    images[7] = Image.new("RGB", (96, 96), (200, 30, 30))
    found = oddities.odd(oddities.measure(images))
    assert {i: reasons for i, reasons in enumerate(found) if reasons} == {
        3: ["blurred"],
        5: ["tiny"],
        7: ["one colour"],
    }
    alike = [scene(seed, 24) for seed in range(30)]  # small where all are
    assert not any(oddities.odd(oddities.measure(alike)))


def test_the_modified_z_score_by_hand() -> None:
    assert oddities.modified_z(np.array([1.0, 2, 3, 4, 100])) == pytest.approx(
        0.6745 * np.array([-2, -1, 0, 1, 97])
    )  # median 3, median distance from it 1
    assert oddities.modified_z(np.ones(4)).tolist() == [0] * 4
    assert len(oddities.modified_z(np.array([]))) == 0


def test_the_hundredth_that_is_farthest_from_others() -> None:
    cosines = np.sort(np.random.default_rng(0).uniform(0.5, 0.8, (250, 6)))[:, ::-1].copy()
    cosines[7] = [0.9, 0.9, 0.9, 0.9, 0.1, 0.0]  # few like it, by the 5th
    cosines[9] = [0.2, 0.2, 0.2, 0.2, 0.2, -np.inf]
    cosines[11] = -np.inf
    assert np.flatnonzero(oddities.outliers(cosines)).tolist() == [7, 9]
    assert not oddities.outliers(cosines[:20]).any()  # a fifth of an image
    assert not oddities.outliers(np.full((250, 1), -np.inf)).any()


def test_copies_of_one_label_leave_the_first_and_those_of_two_labels_are_all_named(
    tmp_path: Path,
) -> None:
    for name, image in (("a", scene(0)), ("b", scene(1)), ("c", scene(2))):
        image.save(tmp_path / f"{name}.png")
    (tmp_path / "b2.png").write_bytes((tmp_path / "b.png").read_bytes())
    ImageOps.mirror(scene(2)).save(tmp_path / "c2.png")
    names = ["a", "b", "b2", "c", "c2"]
    paths, labels = tuple(tmp_path / f"{name}.png" for name in names), (0, 0, 0, 0, 1)
    images = ImageSet(paths, labels, ("cat", "dog"), tmp_path)
    assert oddities.copies(images, looks(paths)) == [
        [],
        [],
        ["same file as b.png"],
        ["two labels: nearly the same as c2.png, labelled dog"],
        ["two labels: nearly the same as c.png, labelled cat"],
    ]
