"""What was fetched from the hub once is used as it is, without asking again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import timm
from huggingface_hub import constants
from open_clip import factory
from packaging.version import Version
from safetensors.torch import load_file, save as safetensors
from torch import Tensor

from rmadapter.artifacts.checkpoint import from_values, load, save, to_values
from rmadapter.backbones import Backbone
from rmadapter.backbones.load import (
    fetch,
    load_backbone,
    load_known,
    model_folder,
    tokenizer_folder,
)
from rmadapter.errors import UserError
from rmadapter.support.hub import Unreachable
from tests.helpers.fake_hub import Hub, Repository, hub, point_to
from tests.helpers.methods import quick_method
from tests.helpers.shots import noisy_colors, shots_of

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


CLOSED = "http://127.0.0.1:9"  # where nobody listens


def closed_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    point_to(CLOSED, Path(constants.HF_HUB_CACHE), monkeypatch)


def refusing_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    point_to("https://huggingface.co", Path(constants.HF_HUB_CACHE), monkeypatch)
    monkeypatch.setenv("HTTPS_PROXY", CLOSED)


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("cut", [closed_endpoint, refusing_proxy, offline])
def test_what_was_fetched_is_used_at_once_where_nothing_answers(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, cut: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """The library lists the files of a commit when it fetches some, and finds others missing."""
    hub.repositories[NAME] = Repository(**FILES)
    folder = model_folder(NAME)
    listed = [*folder.parents[1].glob("trees/*.json")]
    if Version(huggingface_hub.__version__) >= Version("1.22"):  # earlier ones keep no list
        assert [file.stem for file in listed] == [folder.name]
    assert not (folder / "README.md").exists()
    huggingface_hub.close_session()  # which has the proxy that was set when it was opened
    cut(monkeypatch)
    hub.asked.clear()
    start = time.monotonic()
    assert model_folder(NAME) == tokenizer_folder(NAME) == folder
    assert fetch(NAME, "model.safetensors") == folder / "model.safetensors"
    assert time.monotonic() - start < 1
    assert hub.asked == []
    with pytest.raises(Unreachable, match="anna/absent"):  # what is not here cannot come
        model_folder("anna/absent")
    huggingface_hub.close_session()


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


def test_a_run_is_loaded_with_the_commit_that_it_was_fitted_on(
    hub: Hub, tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is cached, too, though the repository has other weights by now."""
    source = Path(tiny_clip.name)
    files = {file.name: file.read_bytes() for file in source.iterdir()}
    repository = hub.repositories[NAME] = Repository(**files)
    first, name = repository.log[-1][0], f"hf-hub:{NAME}"
    backbone = load_backbone(name)
    shots = shots_of(backbone, noisy_colors(2))
    save(tmp_path / "run", quick_method("coop").fit(backbone, shots), "coop")
    kept = json.loads((tmp_path / "run" / "model.json").read_text())["backbone"]
    assert kept == {"name": name, "digest": backbone.digest, "revision": first}
    weights = load_file(source / "open_clip_model.safetensors")
    changed = {key: tensor + 1 for key, tensor in weights.items()}
    repository.commit({**files, "open_clip_model.safetensors": safetensors(changed)}, "newer")
    point_to(hub.url, tmp_path / "another cache", monkeypatch)
    fitted = load(tmp_path / "run", name, device="cpu").fitted
    assert (fitted.backbone.digest, fitted.backbone.revision) == (backbone.digest, first)
    restored = from_values(to_values(fitted), "coop", "cpu")  # as in another process
    assert restored.backbone.digest == backbone.digest
    point_to(hub.url, tmp_path / "a third cache", monkeypatch)
    assert load_backbone(name).digest != backbone.digest


def in_open_clip(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str, dict[str, Tensor]]:
    """Have open_clip list the repository for a small architecture."""
    source = Path(tiny_clip.name)
    config = json.loads((source / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-B-32", config)
    listed = {"hf_hub": f"{NAME}/"}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: listed)
    weights = load_file(source / "open_clip_model.safetensors")
    return "ViT-B-32/openai", "open_clip_model.safetensors", weights


def in_timm(
    tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str, dict[str, Tensor]]:
    """Have timm list the repository for its smallest model."""
    listed = timm.get_pretrained_cfg("test_vit.r160_in1k")
    monkeypatch.setattr(listed, "hf_hub_id", NAME)
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda *_: listed)
    weights = timm.create_model("test_vit", num_classes=1000).state_dict()
    return "timm:test_vit.r160_in1k", "model.safetensors", weights


@pytest.mark.parametrize("listed", [in_open_clip, in_timm])
def test_weights_that_a_library_lists_keep_their_commit(
    hub: Hub,
    tiny_clip: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    listed: Callable[..., tuple[str, str, dict[str, Tensor]]],
) -> None:
    name, file, weights = listed(tiny_clip, monkeypatch)
    repository = hub.repositories[NAME] = Repository(**{file: safetensors(weights)})
    first = load_known(name)
    assert first.revision == repository.log[-1][0]
    changed = {key: tensor + 1 for key, tensor in weights.items()}
    repository.commit({file: safetensors(changed)}, "newer")
    point_to(hub.url, tmp_path / "another cache", monkeypatch)
    assert load_known(name, first.revision).digest == first.digest
    point_to(hub.url, tmp_path / "a third cache", monkeypatch)
    newer = load_known(name)
    assert newer.digest != first.digest
    assert newer.revision == repository.log[-1][0]
