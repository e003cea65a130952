"""Data of unusual sizes, from fit to predict: two classes, a thousand, one image a class, very
uneven classes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rmadapter.artifacts.record import read_record
from rmadapter.backbones import Backbone
from rmadapter.data.read import ImageSet
from rmadapter.runs.lab import Lab
from rmadapter.runs.request import Request
from rmadapter.runs.run import run_task
from tests.helpers.html import Page
from tests.helpers.shell import (
    Command,
    backbone_option,
    fit_command,
    quick_options,
    refused,
    rmadapter,
)

__all__ = ["rmadapter"]  # a fixture

QUICK = quick_options(16)


def write(root: Path, **counts: int) -> Path:
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 255, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def test_one_class_is_refused(rmadapter: Command, tmp_path: Path, tiny_clip: Backbone) -> None:
    one, three = write(tmp_path / "one", cat=3), write(tmp_path / "three", ant=2, bee=2, cat=2)
    command = fit_command(one, tiny_clip, tmp_path / "run", *QUICK)
    refused(rmadapter(*command), "'cat' is the only class: give at least two")
    novel = fit_command(three, tiny_clip, tmp_path / "run", *QUICK, "--classes", "novel")
    refused(rmadapter(*novel), "novel classes: 'cat' is the only class")
    assert not (tmp_path / "run/run.json").exists()


def test_two_classes_of_one_image_each(
    rmadapter: Command, tmp_path: Path, tiny_clip: Backbone
) -> None:
    data, out = write(tmp_path / "data", cat=1, dog=1), tmp_path / "run"
    done = rmadapter.done(*fit_command(data, tiny_clip, out, *QUICK))
    assert "no image was left to evaluate" in done.err
    assert "class 'cat' has 1 image, fewer than 16 shots" in done.err
    assert "report: " in done.out
    answers = rmadapter.json("predict", out, data, *backbone_option(out))
    assert [len(answer["classes"]) for answer in answers] == [2, 2]


def test_very_uneven_classes(rmadapter: Command, tmp_path: Path, tiny_clip: Backbone) -> None:
    """60 images of one class and one of another: what is not drawn is of one class alone, and so
    the shots judge."""
    data, out = write(tmp_path / "data", cat=60, dog=1, owl=2), tmp_path / "run"
    err = rmadapter.done(*fit_command(data, tiny_clip, out, *quick_options(4))).err
    assert [re.sub(r",.*| from .* %", "", line) for line in err.splitlines()] == [
        "note: no test split: judging by 3-fold cross-validation of the 7 training images",
        "note: class 'dog' has 1 image", "note: class 'owl' has 2 images",
        "note: 6 images are too few to judge by: any accuracy is plausible; add images",
        "note: no images to judge these classes by: dog",
    ]  # fmt: skip
    own, score = read_record(out / "run.json").scores
    assert (own.split, own.images) == ("cross-validated", 6)
    assert (score.split, score.images, score.classes) == ("held out", 56, 3)
    assert "dog (0)" in Page(out / "report.html").text


@pytest.mark.parametrize("method", ["rmadapter", "tip-adapter-f"])
def test_a_thousand_classes(tiny_clip: Backbone, method: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (1000, 8, 8, 3), np.uint8)
    images = ImageSet.from_lists(
        list(pixels), list(range(1000)), [f"kind {i}" for i in range(1000)]
    )
    settings: dict[str, object] = {"epochs": 1, "device": "cpu"}
    if method == "rmadapter":
        settings |= {"first_block": 3, "rank": 4, "batch_size": 250}
    wanted = Request.make({**settings, "backbone": tiny_clip.name, "shots": 1}, method)
    lab = Lab(wanted.machine, progress=False)
    lab.add("", {"train": images, "test": images.subset(range(0, 1000, 50))})
    done = run_task(wanted.task, wanted.method, lab, method)
    assert done.record.scores[0].classes == 1000
    assert len(done.fitted.trained.history) >= 4
