"""Count how often each image file is decoded."""

from __future__ import annotations

from collections import Counter
from typing import BinaryIO

import pytest
from PIL import Image

from rmadapter.data import decode


def count_decodes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return a counter by file name that grows as files are decoded."""
    counts: Counter[str] = Counter()
    read_image = decode.read_image

    def counted(file: BinaryIO, name: str) -> Image.Image:
        counts[name] += 1
        return read_image(file, name)

    monkeypatch.setattr(decode, "read_image", counted)
    return counts
