"""tools/smoke.py: commands that exist, images that can be read, a fault that is told; the real
thing is a release."""

from __future__ import annotations

from pathlib import Path

import smoke

from rmadapter.data.read import read_images
from tests.helpers.commands import assert_parses


def test_its_images_are_read(tmp_path: Path) -> None:
    images = read_images(smoke.draw(tmp_path / "images"))["all"]
    assert (images.classes, len(images)) == (("blue", "green", "red"), 12)


def test_its_commands_parse(tmp_path: Path) -> None:
    for words in smoke.steps(tmp_path / "images", tmp_path / "run", "pocket"):
        assert_parses(words)
