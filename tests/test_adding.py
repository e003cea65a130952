"""What a model without a text encoder, and a name that is none, are told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rmadapter.deploy.adding import Naming
from rmadapter.errors import UserError


def test_without_a_text_encoder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="takes no other classes; `rmadapter export RUN --text` makes one"):
        Naming(tmp_path)


@pytest.mark.parametrize(
    ("label", "said"),
    [("Night-Sky", "already exists"), ("_", "give one name"), ("crane | tall bird", "give one name")],
)
def test_names_that_are_refused(label: str, said: str) -> None:
    naming, labels = Naming.__new__(Naming), ["night_sky", "red"]
    naming.weights = np.zeros((2, 3), np.float32)
    with pytest.raises(UserError, match=said):
        naming.add(label, labels)
    assert (labels, naming.weights.shape) == (["night_sky", "red"], (2, 3))
