"""at_test_time.py: some test images of each class, the same for every method."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import at_test_time

from rmadapter.backbones import Backbone
from rmadapter.data.image_set import ImageSet
from rmadapter.runs.lab import Lab
from rmadapter.settings import Machine


def test_some_images_of_each_class_are_drawn_by_the_seed() -> None:
    images = ImageSet([f"{i}.jpg" for i in range(11)], [0] * 6 + [1] * 2 + [2] * 3, ["a", "b", "c"])
    some = at_test_time.some_of_each(images, 3, seed=1)
    assert Counter(some.labels) == {0: 3, 1: 2, 2: 3}
    assert len({*some.images}) == len(some)
    assert some.images == at_test_time.some_of_each(images, 3, seed=1).images
    assert some.images != at_test_time.some_of_each(images, 3, seed=2).images


def test_each_method_is_compared_with_zero_shot_over_the_sets_for_reporting() -> None:
    def lines(data: str, *tests: float) -> list[dict[str, Any]]:
        both = zip(at_test_time.METHODS, tests, strict=True)
        return [
            {"data": data, "shots": 1, "seed": 1, "method": name, "test": test}
            for name, test in both
        ]

    found = at_test_time.tables(
        [
            *lines("rooms", 10, 20, 30, 40),
            *lines("food", 50, 51, 49, 60),
            *lines("sports", 60, 63, 59, 74),
        ]
    )
    assert "1 sets for choosing | 2 sets for reporting" in found["test time"]
    assert "| `tpt` | 40.0 | 67.0 |" in found["test time"]
    rows = [row.split("|") for row in found["test-time verdicts"].splitlines()[2:]]
    assert [row[3].strip() for row in rows] == ["+2.0", "-1.0", "+12.0"]


def test_all_methods_are_asked_about_the_same_images(tiny_clip: Backbone, colors: Path) -> None:
    lab = Lab(Machine(device="cpu"), colors.parent, keep=True, progress=False)
    lines = at_test_time.measured(lab, colors.name, 1, ["zero-shot", "stata"], 2, tiny_clip.name)
    classes = lines[0]["classes"]
    assert [line["images"] for line in lines] == [2 * classes] * 2
    assert len({line["test_digest"] for line in lines}) == 1
    assert lines[0]["test_digest"] != lab.splits(colors.name)["test"].digest
