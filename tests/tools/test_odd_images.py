"""tools/odd_images.py: plain cases are found, it goes on where it was, and its table is that of its
lines."""

from __future__ import annotations

import numpy as np
import odd_images
import pytest
from PIL import Image

from rmadapter.curate import checks
from rmadapter.data.read import ImageSet
from tests.helpers.studies import Study, study

__all__ = ["study"]  # a fixture


def test_noise_that_is_blurred_is_found_and_as_it_is_not() -> None:
    rng = np.random.default_rng(0)
    noise = tuple(
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)) for _ in range(40)
    )
    images = ImageSet(noise, (0,) * 40, ("a",))
    measured = checks.measure(noise)
    assert odd_images.blurred(images, measured, 4, seed=1) == 1
    assert odd_images.blurred(images, measured, 0, seed=1) == 0


def test_a_stranger_is_found_where_the_others_are_close_together() -> None:
    rng = np.random.default_rng(0)
    close, far = rng.normal([10, 0, 0], 0.1, (120, 3)), np.array([[0.0, 10, 0]])
    assert odd_images.strangers(close, np.arange(120), far, seed=1) == 1
    assert odd_images.strangers(close, np.arange(120), close[:1], seed=1) == 0


def test_finished_lines_are_kept_and_the_table_is_their_mean(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    study(odd_images, "--seeds", "1")
    lines = study(odd_images, "--seeds", "1", "2")
    assert [line["seed"] for line in lines] == [1, 2]
    assert lines[0]["images"] == 24
    assert lines[0]["as they are"] == {"blurred": 0, "one colour": 0, "tiny": 0}
    capsys.readouterr()
    study(odd_images, "--tables")
    [_, _, row] = capsys.readouterr().out.splitlines()
    mean = 50 * (lines[0]["blurred"]["4"] + lines[1]["blurred"]["4"])
    assert row.split(" | ")[6] == f"{mean:.0f}"
