"""Weights from the Hugging Face hub: from its cache without a network, or one sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from rmadapter.backbones import load_backbone
from rmadapter.backbones.hub import fetch
from rmadapter.errors import UserError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_cached_repository_needs_no_network(tiny_clip, cache: Path) -> None:
    repository, revision = cache / "models--someone--tiny", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    shutil.copytree(tiny_clip.name, repository / "snapshots" / revision)
    backbone = load_backbone("hf-hub:someone/tiny")
    assert (backbone.name, backbone.digest) == ("hf-hub:someone/tiny", tiny_clip.digest)
    assert fetch("someone/tiny", "open_clip_model.safetensors").is_file()


@pytest.mark.parametrize("name", ["hf-hub:someone/tiny", "ViT-B-16/openai"])
def test_without_network_one_sentence_says_what_to_do(name: str, cache: Path) -> None:
    with pytest.raises(UserError, match=r"could not be fetched .* check the connection, give a local file"):
        load_backbone(name)
