"""What was fetched from the hub once is used as it is, without asking again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rmadapter.backbones.load import fetch, model_folder, tokenizer_folder
from tests.helpers.fake_hub import Hub, Repository, hub

__all__ = ["hub"]
NAME = "anna/clip"
FILES = {
    "README.md": b"# A model",
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"the same weights, pickled",
    "onnx/model.onnx": b"for others",
}


@pytest.mark.parametrize("ask", [model_folder, tokenizer_folder])
def test_a_newer_revision_does_not_replace_what_is_cached(
    hub: Hub, ask: Callable[[str], Path]
) -> None:
    """A repository has files that nobody here asks for, whose absence is no reason to ask again."""
    repository = hub.repositories[NAME] = Repository(**FILES)
    first = ask(NAME)
    assert (first / "tokenizer.json").read_bytes() == b"{}"
    repository.commit({**FILES, "tokenizer.json": b"another", "model.safetensors": b"new"}, "newer")
    hub.asked.clear()
    assert ask(NAME) == first
    assert hub.asked == []
    assert (first / "tokenizer.json").read_bytes() == b"{}"


def test_weights_that_were_fetched_alone_are_completed(hub: Hub) -> None:
    """Such as by a tool that asks for this file only."""
    hub.repositories[NAME] = Repository(**FILES)
    folder = fetch(NAME, "model.safetensors").parent
    assert not (folder / "config.json").exists()
    assert model_folder(NAME) == folder
    assert (folder / "config.json").is_file()
