"""Rules for wrong labels by hand, and odd images among ordinary ones that the test makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps
from scipy import ndimage

from rmadapter.curate import checks
from rmadapter.data.read import ImageSet

TABLE = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
LABELS = np.array([0, 0, 1, 2])


def test_logit_margin_by_hand() -> None:
    expected = np.log([0.1 / 0.9, 0.7 / 0.2, 0.5 / 0.3, 0.2 / 0.7])
    assert checks.logit_margin(TABLE, LABELS) == pytest.approx(expected, abs=1e-4)
    assert np.isfinite(checks.logit_margin(np.eye(2), np.array([0, 1]))).all()


def test_confident_class_by_hand() -> None:
    """Thresholds, the means over images of a label: (0.9 + 0.2) / 2, 0.3, 0.7."""
    assert checks.confident(TABLE, LABELS).tolist() == [0, 1, 1, 2]
    unsure = np.vstack([TABLE, [[0.5, 0.2, 0.3]]])
    assert (
        checks.confident(unsure, np.array([0, 0, 1, 2, 0]))[4] == -1
    )  # 0.533, 0.3, 0.7: below all
    without = checks.confident(np.array([[0.4, 0.6], [0.3, 0.7]]), np.array([0, 0]))
    assert without.tolist() == [0, -1]  # a class without a label has no threshold


def scene(seed: int, side: int = 96) -> Image.Image:
    """Blobs with fine grain."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    blobs = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), float)
    return Image.fromarray(np.clip(blobs + rng.normal(0, 20, blobs.shape), 0, 255).astype(np.uint8))


def test_measures_agree_with_other_libraries() -> None:
    image = scene(0)
    [[shorter, sharpness, spread]] = checks.measure([image])
    grey = np.asarray(image.convert("L"), float)
    assert shorter == 96
    assert sharpness == pytest.approx(ndimage.laplace(grey)[1:-1, 1:-1].var(), rel=1e-5)
    assert spread == pytest.approx(
        max(np.asarray(image, float)[..., i].std() for i in range(3)), rel=1e-5
    )
    large = scene(0, 1000)  # is reduced first
    small = large.resize((256, 256), Image.Resampling.BICUBIC)
    assert checks.measure([large])[0, 1] == pytest.approx(checks.measure([small])[0, 1], rel=0.01)
    assert checks.measure([Image.new("RGB", (2, 2), "red")]).tolist() == [[2, 0, 0]]


def test_odd_images_are_found() -> None:
    images = [scene(seed) for seed in range(30)]
    images[3] = images[3].filter(ImageFilter.GaussianBlur(4))
    images[5] = images[5].resize((24, 24), Image.Resampling.NEAREST)
    images[7] = Image.new("RGB", (96, 96), (200, 30, 30))
    found = checks.odd(checks.measure(images))
    assert {i: reasons for i, reasons in enumerate(found) if reasons} == {
        3: ["blurred"],
        5: ["tiny"],
        7: ["one colour"],
    }
    alike = [scene(seed, 24) for seed in range(30)]  # small where all are
    assert not any(checks.odd(checks.measure(alike)))


def test_modified_z_score_by_hand() -> None:
    assert checks.modified_z(np.array([1.0, 2, 3, 4, 100])) == pytest.approx(
        0.6745 * np.array([-2, -1, 0, 1, 97])
    )  # median 3, median distance from it 1
    assert checks.modified_z(np.ones(4)).tolist() == [0] * 4
    assert len(checks.modified_z(np.array([]))) == 0


def test_outliers_are_the_farthest_percent() -> None:
    cosines = np.sort(np.random.default_rng(0).uniform(0.5, 0.8, (250, 6)))[:, ::-1].copy()
    cosines[7] = [0.9, 0.9, 0.9, 0.9, 0.1, 0.0]  # few like it, by the 5th
    cosines[9] = [0.2, 0.2, 0.2, 0.2, 0.2, -np.inf]
    cosines[11] = -np.inf
    assert np.flatnonzero(checks.outliers(cosines)).tolist() == [7, 9]
    assert not checks.outliers(cosines[:20]).any()  # a fifth of an image
    assert not checks.outliers(np.full((250, 1), -np.inf)).any()


def test_copies_name_all_but_the_first_unless_labels_differ(tmp_path: Path) -> None:
    for name, image in (("a", scene(0)), ("b", scene(1)), ("c", scene(2))):
        image.save(tmp_path / f"{name}.png")
    (tmp_path / "b2.png").write_bytes((tmp_path / "b.png").read_bytes())
    ImageOps.mirror(scene(2)).save(tmp_path / "c2.png")
    names = ["a", "b", "b2", "c", "c2"]
    paths, labels = tuple(tmp_path / f"{name}.png" for name in names), (0, 0, 0, 0, 1)
    images = ImageSet(paths, labels, ("cat", "dog"), tmp_path)
    assert checks.copies(images, images.looks()) == [
        [],
        [],
        ["same file as b.png"],
        ["two labels: nearly the same as c2.png, labelled dog"],
        ["two labels: nearly the same as c.png, labelled cat"],
    ]
