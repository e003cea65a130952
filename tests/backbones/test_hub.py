"""Weights from the Hugging Face hub: from its cache without a network, or one sentence; and no code
from there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from rmadapter.backbones import Backbone, load_backbone
from rmadapter.backbones.hub import fetch
from rmadapter.errors import UserError
from tests.helpers.malicious_models import (
    CONFIG,
    MALICIOUS,
    TOKENIZER,
    assert_refused,
    built_model,
    edit_json,
    model,
    text,
    vision,
    write_hub_cache,
    write_payload,
)

__all__ = ["built_model", "model"]  # fixtures


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
    with pytest.raises(UserError, match=r"cannot be reached .*pocket"):
        load_backbone(name)


# ---- hostile repositories ----


@pytest.fixture
def hub(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of `somebody/model`, each file a link to a blob, as the hub's own library makes
    them."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    vision(model, timm_model_name="vit_small_patch16_224")
    text(model, hf_tokenizer_name="somebody/model", hf_model_name=None, heads=3, width=48)
    return write_hub_cache(model, tmp_path / "cache" / "models--somebody--model")


def test_a_snapshot_of_links_is_read(tiny_clip: Backbone, cache: Path) -> None:
    snapshot = write_hub_cache(Path(tiny_clip.name), cache / "models--somebody--clip")
    assert (snapshot / CONFIG).is_symlink()
    for name in ("hf-hub:somebody/clip", str(snapshot)):
        found = load_backbone(name)
        assert (found.digest, found.tokenizer_digest) == (
            tiny_clip.digest,
            tiny_clip.tokenizer_digest,
        )


def test_code_in_a_repository_does_not_run(hub: Path) -> None:
    edit_json(hub / TOKENIZER, lambda config: config | {"auto_map": MALICIOUS})
    text(hub, tokenizer_kwargs={"trust_remote_code": True})
    write_payload(hub)
    assert_refused("hf-hub:somebody/model", r"evil\.py is code")
    (hub / "evil.py").unlink()
    assert_refused("hf-hub:somebody/model", "its field 'trust_remote_code' asks to run code")
    text(hub, tokenizer_kwargs={})
    assert_refused("hf-hub:somebody/model", "its field 'auto_map' asks to run code")


@pytest.mark.parametrize("name", ["somebody/tokenizer", "../../evil", "model", "/etc"])
def test_a_repository_does_not_lead_to_another_one(hub: Path, tmp_path: Path, name: str) -> None:
    write_hub_cache(tmp_path / "model", tmp_path / "cache" / "models--somebody--tokenizer")
    text(hub, hf_tokenizer_name=name)
    assert_refused("hf-hub:somebody/model", "hf_tokenizer_name leads out of the repository, to")


def test_the_tokenizer_that_open_clip_itself_takes_is_checked_too(
    hub: Path, tmp_path: Path
) -> None:
    other = write_hub_cache(
        tmp_path / "model", tmp_path / "cache" / "models--timm--ViT-B-16-SigLIP"
    )
    text(hub, hf_tokenizer_name="timm/ViT-B-16-SigLIP")
    edit_json(other / TOKENIZER, lambda config: config | {"auto_map": MALICIOUS})
    assert_refused("hf-hub:somebody/model", "SigLIP/.+ its field 'auto_map' asks to run code")


def test_a_link_from_a_snapshot_to_elsewhere_is_refused(hub: Path, tmp_path: Path) -> None:
    (hub / TOKENIZER).unlink()
    os.symlink(tmp_path / "model" / TOKENIZER, hub / TOKENIZER)
    assert_refused("hf-hub:somebody/model", f"{TOKENIZER} leads out of its folder")
