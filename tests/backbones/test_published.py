"""The list of backbones: sizes, licences, advice, and what is on this disk."""

from __future__ import annotations

import json
import re
from pathlib import Path

import open_clip
import pytest
import torch

from rmadapter.artifacts.record import read_record
from rmadapter.backbones import Backbone, load_backbone, published, speed
from rmadapter.backbones.names import PRESETS, check_name
from rmadapter.runs.request import Request
from rmadapter.support.hub import Unreachable
from rmadapter.support.machine import processor
from rmadapter_pocket import POCKET, POCKET_3
from tests.helpers.shell import Command, refused, rmadapter

__all__ = ["rmadapter"]  # a fixture


@pytest.mark.ci
@pytest.mark.parametrize(
    "name", [one for one in published.PUBLISHED if "/" in one and ":" not in one]
)
def test_sizes_are_those_of_the_weights(name: str) -> None:
    architecture, tag = name.split("/")
    assert open_clip.get_pretrained_cfg(architecture, tag)["hf_hub"].startswith(("timm/", "laion/"))
    config = {**open_clip.get_model_config(architecture)}  # type: ignore[dict-item]
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    with torch.device("meta"):
        model = kind(**config)
    megabytes = sum(p.numel() for p in model.parameters()) * 4 / 1e6
    assert round(megabytes) == published.PUBLISHED[name].megabytes


@pytest.mark.ci
@pytest.mark.parametrize("name", [one for one in published.PUBLISHED if one.startswith("timm:")])
def test_image_encoders_are_those_of_timm(name: str) -> None:
    import timm

    own = name.removeprefix("timm:").partition("@")[0]  # the size is not part of timm's name
    with torch.device("meta"):
        model = timm.create_model(own.partition(".")[0], num_classes=0)
    megabytes = sum(p.numel() for p in model.parameters()) * 4 / 1e6
    assert round(megabytes) == published.PUBLISHED[name].megabytes
    config = timm.get_pretrained_cfg(own)
    assert config is not None
    assert config.license == published.PUBLISHED[name].licence
    assert config.hf_hub_id == f"timm/{own}"  # under which the hub's cache keeps it


@pytest.mark.ci
@pytest.mark.parametrize(
    "name", [name for name, one in published.PUBLISHED.items() if one.architecture]
)
def test_special_models_have_the_size_of_their_architecture(name: str) -> None:
    special = published.PUBLISHED[name]
    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config(special.architecture))  # type: ignore[arg-type]
    megabytes = sum(p.numel() for p in model.parameters()) * 4 / 1e6
    assert round(megabytes) == special.megabytes


def test_the_page_has_the_listed_backbones() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/backbones.md").read_text(encoding="utf-8")
    rows = ["| name | use | MB | licence | weights |", "|---|---|---|---|---|"]
    for name, known in published.PUBLISHED.items():
        use = f"{known.use}, no text" if name.startswith("timm:") else known.use
        cells = [
            f"`{name}`",
            use,
            f"{known.megabytes:,}",
            published.licence_of(name),
            known.weights,
        ]
        rows.append(f"| {' | '.join(cells)} |")
    assert "\n" + "\n".join(rows) + "\n\n" in page


def test_only_a_small_backbone_of_a_package_has_a_caveat(monkeypatch: pytest.MonkeyPatch) -> None:
    text = published.caveat("pocket-3")
    assert text.startswith(f"backbone pocket-3 is {POCKET_3.PURPOSE};")
    assert text.endswith("`--backbone laptop`")
    assert len(f"note: {text}") <= 100
    assert POCKET.PURPOSE in published.caveat("pocket")
    assert published.caveat("ViT-B-16/openai") == published.caveat("nothing") == ""
    monkeypatch.setattr(published, "load_package", lambda name: object())  # of a large one
    assert published.caveat("pocket-3") == ""


def test_fit_names_the_backbone_that_it_takes_and_never_changes_a_run(
    rmadapter: Command, tiny_clip: Backbone, tiny_eva: Backbone, colors: Path, empty_hub: Path
) -> None:
    run = empty_hub.parent / "run"
    words = ["fit", colors, "--method", "zero-shot", "--shots", 2, "--set", "device=cpu"]
    words += ["--out", run]
    done = rmadapter(*words, "--backbone", f"ViT-B-16/openai,{tiny_clip.name}")
    assert done.code == 0
    assert re.search("ViT-B-16/openai.*; left out", done.err)
    assert published.caveat("pocket") not in done.err  # it is another
    assert read_record(run / "run.json").task.backbone == tiny_clip.name
    assert rmadapter(*words, "--backbone", tiny_clip.name).code == 0  # the same run
    other = rmadapter(*words, "--backbone", tiny_eva.name)
    assert (other.code, other.out) == (2, "")
    assert "holds another run" in other.err


def test_the_command_gets_one_and_lists_all(
    rmadapter: Command, tiny_clip: Backbone, empty_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = rmadapter("backbones", "get", tiny_clip.name, "--json")
    assert json.loads(done.out) == {"name": tiny_clip.name, "digest": tiny_clip.digest}
    for wrong in (["get"], ["fetch", "pocket"]):
        refused(rmadapter("backbones", *wrong), "`rmadapter backbones get NAME`")
    refused(rmadapter("backbones", "get", "ViT-B-16/openai"), "cannot be reached")
    monkeypatch.setattr(speed, "cost_of", lambda name, device: (12.34, 598.5))
    every = rmadapter("backbones", "--all", "--speed", "--json")
    rows = {row["name"]: row for row in json.loads(every.out)}
    for name in ("ViT-B-16/openai", *PRESETS.values()):
        assert [rows[name][key] for key in speed.SPEED_FIELDS] == [12.3, 598.5]
    assert "598 MB" in rows["ViT-B-16/openai"]["state"]
    shown = rmadapter("backbones", "--speed").out
    assert " 81 " in shown  # seconds for 1,000 images at 12.3 a second
    assert "598.5 MB in memory" in shown
    assert processor() in shown


def test_a_tokenizer_that_cannot_be_fetched_leaves_the_others_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Random weights are made here, but SigLIP's tokenizer is on the hub."""

    def cost(name: str, device: torch.device) -> tuple[float, float]:
        if name == PRESETS["accuracy"]:
            raise Unreachable(name)
        return 2.0, 1.0

    monkeypatch.setattr(speed, "cost_of", cost)
    rows = [{"name": name, "mb": None} for name in PRESETS.values()]
    found = speed.measured(rows, torch.device("cpu"))
    assert [row.get("images_per_second") for row in found] == [2.0, None, 2.0]


def test_three_come_first_and_others_that_are_not_here_only_with_all(
    rmadapter: Command, empty_hub: Path
) -> None:
    rows = json.loads(rmadapter("backbones", "--json").out)
    assert [row["name"] for row in rows[:3]] == [*PRESETS.values()]
    assert {row["state"] for row in rows[3:]} <= {published.READY}
    every = json.loads(rmadapter("backbones", "--all", "--json").out)
    assert len(every) > len(rows)
    shown = rmadapter("backbones").out
    for preset, name in PRESETS.items():
        [line] = [one for one in shown.splitlines() if f"{preset} (" in one]
        state, commercial, seconds = [cell.strip() for cell in line.split("│")[2:5]]
        assert state.startswith(f"{published.PUBLISHED[name].megabytes:,} MB")
        assert (commercial, seconds) == ("yes", "-")
    assert "--speed" in shown  # which measures the seconds
    assert "--backbone laptop" in shown


def test_commercial_use_is_as_the_licence_says() -> None:
    by_answer = {
        "yes": [*PRESETS.values(), "timm:vit_small_patch14_dinov2.lvd142m@224"],
        "no": ["pocket", "pocket-3"],  # for research and teaching
        "read it": ["timm:vit_small_patch16_dinov3.lvd1689m", "ViT-L-14/openai", "hf-hub:a/b"],
    }
    for answer, names in by_answer.items():
        assert {published.commercial_use(name) for name in names} == {answer}
    rows = {row["name"]: row["commercial"] for row in published.listed()}
    assert (rows["pocket-3"], rows[PRESETS["phone"]]) == ("no", "yes")


def test_a_preset_is_recorded_by_the_name_that_it_stands_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for given, name in (
        ("laptop", PRESETS["laptop"]),
        ("pocket,phone", "pocket,PE-Core-S-16-384/meta"),
    ):
        assert Request.make({"backbone": given}).task.backbone == name
    check_name("accuracy")
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(
        "rmadapter.backbones.load._from_architecture", lambda *given: asked.append(given)
    )
    load_backbone("phone")
    assert asked == [(PRESETS["phone"], "")]


def test_a_licence_is_known_or_called_unknown() -> None:
    assert published.licence_of("pocket") == POCKET.LICENCE
    assert published.licence_of("ViT-B-16/openai") == "Apache-2.0 (its card on the hub)"
    assert published.licence_of("hf-hub:imageomics/bioclip") == "MIT (its card on the hub)"
    assert "not known here" in published.licence_of("somewhere/else")


def test_pocket_is_listed_with_its_download_and_then_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RMADAPTER_CACHE", str(tmp_path))
    rows = {row["name"]: row for row in published.listed()}
    assert rows["pocket-3"]["mb"] is None
    assert "174 MB to download" in rows["pocket-3"]["state"]
    POCKET_3.place().mkdir()
    (POCKET_3.place() / "open_clip_model.safetensors").write_bytes(bytes(3_000_000))
    rows = {row["name"]: row for row in published.listed()}
    assert (rows["pocket-3"]["state"], rows["pocket-3"]["mb"]) == ("ready", 3)
    assert rows["pocket-3"]["folder"] == str(POCKET_3.place())
    assert "docs/reference/pocket.md" in rows["pocket-3"]["about"]


def test_weights_in_the_hubs_cache_are_listed_under_the_name_that_loads_them(
    tmp_path: Path,
) -> None:
    for name, file in {
        "models--timm--vit_base_patch16_clip_224.openai": "open_clip_model.safetensors",
        "models--timm--vit_small_patch14_dinov2.lvd142m": "model.safetensors",
        "models--somebody--their-clip": "open_clip_model.safetensors",
        "models--a--pickle": "weights.bin",
    }.items():
        snapshot = tmp_path / name / "snapshots" / ("0123456789abcdef" * 3)[:40]
        snapshot.mkdir(parents=True)
        (snapshot / file).write_bytes(bytes(2_000_000))
    rows = {row["name"]: row for row in published.listed(tmp_path)}
    cached, absent = rows["ViT-B-16/openai"], rows["ViT-L-14/openai"]
    assert (cached["state"], cached["mb"]) == ("ready", 2)
    assert (absent["state"], absent["mb"]) == (
        "1,710 MB from the Hugging Face hub when first used",
        None,
    )
    assert "75.5 % zero-shot on ImageNet" in absent["about"]
    dino = rows["timm:vit_small_patch14_dinov2.lvd142m@224"]  # its own 518 pixels are very slow
    assert (dino["state"], dino["mb"]) == ("ready", 2)
    assert published.licence_of(dino["name"]) == "apache-2.0 (timm's table of weights)"
    other = rows["hf-hub:somebody/their-clip"]
    assert (other["mb"], other["about"]) == (2, "")
    assert not any("pickle" in name for name in rows)
    assert published.listed(tmp_path / "nowhere")
