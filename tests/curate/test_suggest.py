"""From a run and a pool to suggestions: which images are left out, and what is said of the others."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from rmadapter.artifacts.checkpoint import load
from rmadapter.backbones import Backbone
from rmadapter.curate.suggest import first_images, suggest_images
from rmadapter.errors import UserError


@pytest.fixture
def pool(colors: Path, tmp_path: Path) -> Path:
    """The 24 training images, of which the run has seen 16, and one of them mirrored; 16 test
    images and a copy."""
    folder = tmp_path / "pool"
    for image in sorted(colors.glob("*/*/*.png")):
        folder.mkdir(exist_ok=True)
        shutil.copy(image, folder / f"{image.parts[-3]}-{image.parts[-2]}-{image.name}")
    shutil.copy(folder / "test-red-0.png", folder / "test-red-copy.png")
    with Image.open(folder / "test-blue-0.png") as image:
        ImageOps.mirror(image).save(folder / "test-blue-mirrored.png")
    return folder


def test_what_is_known_or_there_twice_is_never_suggested(
    finished: Path, tiny_clip: Backbone, pool: Path
) -> None:
    for rule in ("margin", "entropy", "coverage", "typicality", "mix", "random"):
        found = suggest_images(finished, pool, 100, rule=rule, backbone=tiny_clip, progress=False)
        assert (found.rule, found.pool, found.known) == (rule, 42, 16)
        names = {one.image.name for one in found.suggestions}
        assert len(found.suggestions) == 42 - 16 - found.copies == len(names)
        assert not {"test-red-copy.png", "test-red-0.png"} <= names
        assert not {"test-blue-mirrored.png", "test-blue-0.png"} <= names
        assert [one.rank for one in found.suggestions] == list(range(1, len(names) + 1))


def test_scores_and_classes_are_those_of_the_run(
    finished: Path, tiny_clip: Backbone, pool: Path
) -> None:
    saved = load(finished, tiny_clip)
    found = suggest_images(saved, [pool], 3, rule="margin", progress=False)
    [table] = saved.fitted.probabilities([one.image for one in found.suggestions])
    for one, row in zip(found.suggestions, table, strict=True):
        first, second = row.sort(descending=True).values[:2].tolist()
        assert [share for _, share in one.best] == pytest.approx([first, second], abs=1e-5)
        assert one.score == pytest.approx(1 - first + second, abs=1e-5)
        assert one.best[0][0] == saved.labels[int(row.argmax())]
    assert found.suggestions[0].score >= found.suggestions[1].score


def test_a_run_without_features_of_its_images_says_so(
    finished: Path, tiny_clip: Backbone, pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = load(finished, tiny_clip)
    suggest_images(saved, [pool], 3, progress=False)
    assert capsys.readouterr().err == ""
    bare = saved._replace(fitted=replace(saved.fitted, examples=None))
    assert suggest_images(bare, [pool], 3, progress=False).known == 0
    assert (
        "holds no features of its training images, so those in the pool are not left out"
        in capsys.readouterr().err
    )


def test_without_a_run(tiny_clip: Backbone, pool: Path) -> None:
    found = first_images(pool, 4, rule="typicality", backbone=tiny_clip, progress=False)
    assert found.suggestions[0].best == ()
    assert found.known == 0
    named = first_images(
        pool, 4, names=["cat", "dog"], rule="balanced", backbone=tiny_clip, progress=False
    )
    assert {label for one in named.suggestions for label, _ in one.best} == {"cat", "dog"}


def test_mistakes(
    finished: Path, tiny_clip: Backbone, pool: Path, colors: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="did you mean 'margin'"):
        suggest_images(finished, pool, 4, rule="margins", backbone=tiny_clip)
    with pytest.raises(UserError, match="names of the classes"):
        first_images(pool, 4, rule="balanced", backbone=tiny_clip)
    with pytest.raises(UserError, match="at least two"):
        first_images(pool, 4, names=["cat", "cat"], backbone=tiny_clip)
    with pytest.raises(UserError, match="at least one image"):
        suggest_images(finished, pool, 0, backbone=tiny_clip, progress=False)
    (tmp_path / "broken.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"broken\.png"):
        suggest_images(
            finished, [pool, tmp_path / "broken.png"], 4, backbone=tiny_clip, progress=False
        )
    with pytest.raises(UserError, match="no readable image"):
        suggest_images(
            finished, tmp_path / "broken.png", 4, backbone=tiny_clip, skip_bad=True, progress=False
        )
