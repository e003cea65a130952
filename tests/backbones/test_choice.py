"""Choosing a backbone: the first of several, advice, and what is on this disk."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch

import rmadapter_pocket
from rmadapter.artifacts.record import read_record
from rmadapter.backbones import Backbone, choice
from rmadapter.errors import UserError
from rmadapter.support.hub import Unreachable
from rmadapter.support.machine import processor
from tests.helpers.shell import Command, refused, rmadapter

__all__ = ["rmadapter"]  # a fixture


@pytest.mark.parametrize("name", [one for one in choice.KNOWN if one.endswith("/openai")])
def test_sizes_are_those_of_the_weights(name: str) -> None:
    architecture, tag = name.split("/")
    assert open_clip.get_pretrained_cfg(architecture, tag)["hf_hub"].startswith("timm/")
    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config(architecture))  # type: ignore[arg-type]
    megabytes = sum(p.numel() for p in model.parameters()) * 4 / 1e6
    assert round(megabytes) == choice.KNOWN[name].megabytes


@pytest.mark.parametrize("name", [one for one in choice.KNOWN if one.startswith("timm:")])
def test_image_encoders_are_those_of_timm(name: str) -> None:
    import timm

    own = name.removeprefix("timm:")
    with torch.device("meta"):
        model = timm.create_model(own.partition(".")[0], num_classes=0)
    megabytes = sum(p.numel() for p in model.parameters()) * 4 / 1e6
    assert round(megabytes) == choice.KNOWN[name].megabytes
    config = timm.get_pretrained_cfg(own)
    assert config is not None
    assert config.license == choice.KNOWN[name].licence
    assert config.hf_hub_id == f"timm/{own}"  # under which the hub's cache keeps it


@pytest.mark.parametrize("name", [name for name, one in choice.KNOWN.items() if one.architecture])
def test_special_models_have_the_size_of_their_architecture(name: str) -> None:
    special = choice.KNOWN[name]
    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config(special.architecture))  # type: ignore[arg-type]
    megabytes = sum(p.numel() for p in model.parameters()) * 4 / 1e6
    assert round(megabytes) == special.megabytes


def test_the_page_has_the_listed_backbones() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/backbones.md").read_text(encoding="utf-8")
    rows = ["| name | use | MB | licence | weights |", "|---|---|---|---|---|"]
    for name, known in choice.KNOWN.items():
        use = f"{known.use}, no text" if name.startswith("timm:") else known.use
        cells = [f"`{name}`", use, f"{known.megabytes:,}", choice.licence_of(name), known.weights]
        rows.append(f"| {' | '.join(cells)} |")
    assert "\n" + "\n".join(rows) + "\n\n" in page


def test_pocket_alone_is_advised_against() -> None:
    assert re.search(r"ViT-B-16/openai \(598 MB from the Hugging Face hub", choice.advise("pocket"))
    assert choice.advise("ViT-B-16/openai") == ""


def test_the_first_available_backbone_is_loaded(
    tiny_clip: Backbone, empty_hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert choice.first_of(f"{tiny_clip.name},pocket").digest == tiny_clip.digest
    assert choice.first_of(f"ViT-B-16/openai, {tiny_clip.name}").name == tiny_clip.name
    assert f"using {tiny_clip.name} instead" in capsys.readouterr().err
    assert choice.first_of(tiny_clip.name).name == tiny_clip.name
    assert capsys.readouterr().err == ""
    with pytest.raises(Unreachable):
        choice.first_of("ViT-B-32/openai,ViT-B-16/openai")
    with pytest.raises(UserError, match="no architecture 'ViT-B-61'"):  # no reason to go on
        choice.first_of(f"ViT-B-61/openai,{tiny_clip.name}")
    with pytest.raises(UserError, match="single commas"):
        choice.first_of("pocket,")


def test_fit_names_the_backbone_that_it_takes_and_never_changes_a_run(
    rmadapter: Command, tiny_clip: Backbone, tiny_eva: Backbone, colors: Path, empty_hub: Path
) -> None:
    run = empty_hub.parent / "run"
    words = ["fit", colors, "--method", "zero-shot", "--shots", 2, "--set", "device=cpu"]
    words += ["--out", run]
    done = rmadapter(*words, "--backbone", f"ViT-B-16/openai,{tiny_clip.name}")
    assert done.code == 0
    assert re.search("vit_base_patch16.*; left out", done.err)
    assert choice.BETTER not in done.err  # it is not pocket
    assert read_record(run / "run.json").task.backbone == tiny_clip.name
    assert rmadapter(*words, "--backbone", tiny_clip.name).code == 0  # the same run
    other = rmadapter(*words, "--backbone", tiny_eva.name)
    assert (other.code, other.out) == (2, "")
    assert "holds another run" in other.err


def test_speed_is_the_median_of_several_batches(
    monkeypatch: pytest.MonkeyPatch, tiny_clip: Backbone
) -> None:
    loaded: list[str] = []

    def load(name: str) -> Backbone:
        loaded.append(name)
        return tiny_clip

    monkeypatch.setattr(choice, "load_backbone", load)
    slow, fast = iter(range(0, 1000, 2)), iter(range(1000))
    monkeypatch.setattr(choice, "time", SimpleNamespace(perf_counter=lambda: next(slow)))
    size = choice.megabytes_of(tiny_clip)
    cpu = torch.device("cpu")
    assert choice.cost_of("ViT-B-32/openai", cpu) == (4, size)  # 8 images in 2 s
    monkeypatch.setattr(choice, "time", SimpleNamespace(perf_counter=lambda: next(fast)))
    assert choice.cost_of("pocket", cpu) == (8, size)
    assert loaded == ["ViT-B-32/none", "pocket"]


def test_the_command_gets_one_and_lists_all(
    rmadapter: Command, tiny_clip: Backbone, empty_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = rmadapter("backbones", "get", tiny_clip.name, "--json")
    assert json.loads(done.out) == {"name": tiny_clip.name, "digest": tiny_clip.digest}
    for wrong in (["get"], ["fetch", "pocket"]):
        refused(rmadapter("backbones", *wrong), "`rmadapter backbones get NAME`")
    refused(rmadapter("backbones", "get", "ViT-B-16/openai"), "cannot be reached")
    speeds = {"ViT-B-16/openai": 12.34, choice.SMALL: 50.0}
    monkeypatch.setattr(choice, "cost_of", lambda name, device: (speeds.get(name, 1.0), 598.5))
    rows = {row["name"]: row for row in json.loads(rmadapter("backbones", "--speed", "--json").out)}
    assert [rows["ViT-B-16/openai"][key] for key in choice.MEASURED] == [12.3, 598.5]
    assert "598 MB" in rows["ViT-B-16/openai"]["state"]
    assert choice.SMALL not in {
        row["name"] for row in json.loads(rmadapter("backbones", "--json").out)
    }
    shown = rmadapter("backbones", "--speed").out
    assert "images/s here" in shown
    assert shown.index("MobileCLIP2-S0") < shown.index("ViT-B-16/openai")  # the fastest first
    assert processor() in shown


def test_a_licence_is_known_or_called_unknown() -> None:
    assert choice.licence_of("pocket") == rmadapter_pocket.LICENCE
    assert choice.licence_of("ViT-B-16/openai") == "Apache-2.0 (its card on the hub)"
    assert choice.licence_of("hf-hub:imageomics/bioclip") == "MIT (its card on the hub)"
    assert "not known here" in choice.licence_of("somewhere/else")


def test_pocket_is_listed_with_its_download_and_then_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path))
    rows = {row["name"]: row for row in choice.listed()}
    assert rows["pocket"]["mb"] is None
    assert "174 MB to download" in rows["pocket"]["state"]
    rmadapter_pocket.place().mkdir()
    (rmadapter_pocket.place() / "open_clip_model.safetensors").write_bytes(bytes(3_000_000))
    rows = {row["name"]: row for row in choice.listed()}
    assert (rows["pocket"]["state"], rows["pocket"]["mb"]) == ("ready", 3)
    assert rows["pocket"]["folder"] == str(rmadapter_pocket.place())
    assert rows["pocket"]["about"].startswith("needs PyPI once")


def test_weights_in_the_hubs_cache_are_listed_under_the_name_that_loads_them(
    tmp_path: Path,
) -> None:
    for name, file in {
        "models--timm--vit_base_patch16_clip_224.openai": "open_clip_model.safetensors",
        "models--somebody--their-clip": "open_clip_model.safetensors",
        "models--a--pickle": "weights.bin",
    }.items():
        snapshot = tmp_path / name / "snapshots" / ("0123456789abcdef" * 3)[:40]
        snapshot.mkdir(parents=True)
        (snapshot / file).write_bytes(bytes(2_000_000))
    rows = {row["name"]: row for row in choice.listed(tmp_path)}
    cached, absent = rows["ViT-B-16/openai"], rows["ViT-L-14/openai"]
    assert (cached["state"], cached["mb"]) == ("ready", 2)
    assert (absent["state"], absent["mb"]) == (f"1,710 MB {choice.TO_COME}", None)
    assert "75.5 % zero-shot on ImageNet" in absent["about"]
    other = rows["hf-hub:somebody/their-clip"]
    assert (other["mb"], other["about"]) == (2, "")
    assert not any("pickle" in name for name in rows)
    assert choice.listed(tmp_path / "nowhere")
