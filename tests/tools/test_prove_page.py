"""tools/prove_page.py: what it asks about, and what it counts."""

from __future__ import annotations

import numpy as np
import prove_page
import pytest
from PIL import Image


def test_tall_and_large_images() -> None:
    image = Image.new("RGB", (400, 300))
    image.paste((255, 0, 0), (150, 0, 250, 300))  # its middle strip
    found = prove_page.tall(image)
    assert (found.size, found.getcolors()) == ((300, 900), [(300 * 900, (255, 0, 0))])
    assert prove_page.tall(Image.new("RGB", (20, 300))).size == (300, 900)
    found = prove_page.large(Image.new("RGB", (40, 30)))
    assert 24_000_000 < found.width * found.height < 26_000_000


def test_what_counts_as_another_answer() -> None:
    ours = np.array([[0.7, 0.3], [0.5, 0.5001]], np.float32)
    theirs = [{"cat": 0.7, "dog": 0.3}, {"dog": 0.49, "cat": 0.51}]
    found = prove_page.compare(["cat", "dog"], ours, theirs)
    assert (found["images"], found["other answers"], found["same to 1e-4"]) == (2, 1, 1)
    assert found["largest difference"] == pytest.approx(0.0101, abs=1e-5)
