"""What was fetched from the hub once is used as it is, without asking again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from rmadapter.backbones.load import fetch, load_backbone, model_folder, tokenizer_folder
from rmadapter.errors import UserError
from rmadapter.support.hub import Unreachable
from tests.helpers.fake_hub import Hub, Repository, hub, point_to

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


def test_a_refusal_names_what_to_set(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub hides what is private, so a token may be missing wherever a repository seems to."""
    hub.repositories["bert/own"] = Repository(private=True, **FILES)
    pickled = {name: data for name, data in FILES.items() if name != "model.safetensors"}
    hub.repositories["anna/pickled"] = Repository(**pickled)
    for name in ("bert/own", "anna/none", "anna/pickled"):
        with pytest.raises(UserError, match=f"{name}.*HF_TOKEN.*safetensors.*backbones convert"):
            load_backbone(f"hf-hub:{name}")
    gate = (403, {"error": "Access is restricted"}, {"X-Error-Code": "GatedRepo"})
    with monkeypatch.context() as gated:
        gated.setattr(hub, "answer", lambda *given: gate)
        with pytest.raises(UserError, match=r"anna/clip.*conditions.*HF_TOKEN"):
            load_backbone(f"hf-hub:{NAME}")
    point_to("http://127.0.0.1:9", Path(constants.HF_HUB_CACHE), monkeypatch)
    for name in (f"hf-hub:{NAME}", "ViT-B-32/openai"):
        with pytest.raises(Unreachable, match=r"HTTPS_PROXY, SSL_CERT_FILE or HF_ENDPOINT"):
            load_backbone(name)
