"""What a model without a text encoder, and a name that is none, are told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rmadapter.deploy.export.adding import Naming
from rmadapter.errors import UserError


def test_without_a_text_encoder(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="takes no other classes; `rmadapter export RUN --text` makes one"
    ):
        Naming(tmp_path)


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("Night-Sky", "already exists"),
        ("The dark", "already exists"),
        ("_", "give one name"),
        ("crane | tall bird", "give one name"),
    ],
)
def test_names_that_are_refused(label: str, said: str) -> None:
    naming, labels = Naming.__new__(Naming), ["night_sky", "red"]
    naming.weights, naming.names = np.zeros((2, 3), np.float32), ["the dark", "red"]
    with pytest.raises(UserError, match=said):
        naming.add(label, labels)
    assert (labels, naming.weights.shape) == (["night_sky", "red"], (2, 3))


def test_a_class_is_called_what_the_package_calls_it() -> None:
    naming, labels, asked = Naming.__new__(Naming), ["red"], list[str]()
    naming.weights, naming.names = np.zeros((1, 3), np.float32), ["red"]
    naming.tokens = lambda name: asked.append(name) or np.zeros((1, 1))  # type: ignore[func-returns-value,method-assign,return-value]
    naming._session = SimpleNamespace(run=lambda *_: [np.ones((1, 3), np.float32)])
    naming.add("Other", labels)
    naming.add("sea-horse", labels)
    assert (asked, labels) == (["something else", "sea horse"], ["red", "Other", "sea-horse"])
    with pytest.raises(UserError, match="already exists"):
        naming.add("none", labels)
