"""What a run leaves on disk, what comes back from it, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from rmadapter.adapter import Adapters
from rmadapter.backbone import Backbone
from rmadapter.checkpoint import load_adapter, save_adapter
from rmadapter.config import Config
from rmadapter.data.fewshot import few_shot, split_digest
from rmadapter.data.images import read_images
from rmadapter.errors import UserError
from rmadapter.model import AdaptedCLIP

FILE = "adapter.safetensors"


def grown(adapters: torch.nn.Module) -> torch.nn.Module:
    """No weight at zero, so that no tensor can be lost unnoticed."""
    generator = torch.Generator().manual_seed(0)
    for parameter in adapters.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return adapters


@pytest.fixture(scope="module")
def model(tiny_clip: Backbone) -> AdaptedCLIP:
    model = AdaptedCLIP(tiny_clip, Config.make({"backbone": tiny_clip.name, "rank": 4, "first_block": 3}, "mma"))
    grown(model.adapters)
    return model


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def refused(folder: Path, words: str, backbone: Backbone | None = None) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load_adapter(folder, backbone)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("half", [False, True])
def test_round_trip(model: AdaptedCLIP, tmp_path: Path, half: bool) -> None:
    classes = ("größe", "night sky")
    save_adapter(tmp_path, model, classes, {"note": "x"}, half=half)
    loaded, names, run = load_adapter(tmp_path)  # by the name of its backbone alone
    assert names == classes
    assert run == {"note": "x"}
    assert loaded.config == model.config
    assert not loaded.training
    before, after = model.adapters.state_dict(), loaded.adapters.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == torch.float32
        if half:  # float16 has 11 significant bits: half a unit in the last place is 2^-11
            torch.testing.assert_close(after[name], tensor, rtol=2**-11, atol=2**-25)
        else:
            assert torch.equal(after[name], tensor)
    pictures = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = loaded.encode_image(pictures), model.encode_image(pictures)
    assert torch.equal(found, expected) or half


def test_the_adapters_alone_are_stored(model: AdaptedCLIP, tmp_path: Path) -> None:
    save_adapter(tmp_path, model, ("a",), {})
    layers = [f"{layer}.{kind}" for layer in ("down", "up") for kind in ("weight", "bias")]
    keys = {f"{side}.{block}.{layer}" for side in ("image", "text") for block in (3, 4) for layer in layers}
    keys |= {f"cross.{height}.{kind}" for height in (0, 1) for kind in ("weight", "bias")}
    stored = load_file(tmp_path / FILE)
    assert set(stored) == keys
    assert sum(tensor.numel() for tensor in stored.values()) == model.adapters.parameter_counts()["trainable"]
    assert {path.name for path in tmp_path.iterdir()} == {FILE, "config.yaml", "classes.json", "run.json"}


@pytest.mark.parametrize(("half", "megabytes"), [(False, 5), (True, 3)])
@pytest.mark.parametrize("preset", ["rmadapter", "mma"])
def test_size_for_vit_b16(tmp_path: Path, half: bool, megabytes: int, preset: str) -> None:
    config = Config.make(preset=preset)
    adapters = Adapters(config, (768, 512), (12, 12))
    backbone = SimpleNamespace(name="ViT-B-16", digest="0" * 64)
    model = SimpleNamespace(adapters=adapters, config=config, backbone=backbone)
    save_adapter(tmp_path, model, ("a",), {}, half=half)  # type: ignore[arg-type]
    size = (tmp_path / FILE).stat().st_size
    payload = adapters.parameter_counts()["trainable"] * (2 if half else 4)
    assert payload < size < payload + 20_000
    assert size < megabytes * 1e6


def test_record_of_a_run(finished: Path, colors: Path, tiny_clip: Backbone) -> None:
    run = json.loads((finished / "run.json").read_text("utf-8"))
    config = Config.load(finished / "config.yaml")
    assert run["config"] == config.model_dump(mode="json")
    assert run["backbone"] == {"name": tiny_clip.name, "digest": tiny_clip.digest}
    assert run["versions"]["torch"] == metadata.version("torch")
    assert {"python", "platform", "rmadapter", "open_clip_torch", "timm", "numpy"} <= set(run["versions"])
    assert run["seed"] == config.seed
    assert run["split_digest"] == split_digest(few_shot(read_images(colors), config.shots, config.seed))
    assert run["split_digest"] == json.loads((finished / "split.json").read_text())["digest"]
    assert run["seconds"]["train"] > 0 < run["seconds"]["evaluate"]
    assert run["parameters"] == load_adapter(finished, tiny_clip)[0].adapters.parameter_counts()
    stored = json.loads((finished / "classes.json").read_text("utf-8"))
    assert stored == {"classes": ["blue", "green", "night sky", "red"], "templates": ["a photo of a {}."]}


def test_the_same_adapters_are_the_same_bytes(model: AdaptedCLIP, tmp_path: Path) -> None:
    for number in range(5):
        save_adapter(tmp_path / str(number), model, ("a",), {})
    assert len({(tmp_path / str(number) / FILE).read_bytes() for number in range(5)}) == 1


@pytest.mark.parametrize("missing", [FILE, "run.json"])
def test_an_unfinished_run_is_refused(copy: Path, missing: str) -> None:
    (copy / missing).unlink()
    refused(copy, "not a finished run; `rmadapter fit DATA --out .+` makes one")


def test_no_folder_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none", "none: not a finished run")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (FILE, b"", "damaged or no safetensors file"),
        (FILE, b"PK\x03\x04 a pickle of torch.save", "damaged or no safetensors file"),
        ("config.yaml", None, r"config\.yaml: not a readable config"),
        ("config.yaml", b"rank: much", "rank='much'"),
        ("classes.json", None, r"classes\.json: not readable JSON"),
        ("classes.json", b"[]", r"classes\.json: holds no class names"),
        ("classes.json", b"{}", r"classes\.json: holds no class names"),
        ("classes.json", b'{"classes": [1]}', r"classes\.json: holds no class names"),
        ("run.json", b"{", r"run\.json: not readable JSON"),
        ("run.json", b"[]", r"run\.json: holds no record of a run"),
    ],
)
def test_damaged_files_are_refused(
    copy: Path, tiny_clip: Backbone, name: str, content: bytes | None, words: str
) -> None:
    (copy / name).unlink() if content is None else (copy / name).write_bytes(content)
    refused(copy, words, tiny_clip)


def test_a_file_cut_short_is_refused(copy: Path, tiny_clip: Backbone) -> None:
    content = (copy / FILE).read_bytes()
    for length in (4, 100, len(content) - 1):
        (copy / FILE).write_bytes(content[:length])
        refused(copy, "adapter.safetensors: damaged or no safetensors file", tiny_clip)


def test_foreign_tensors_are_refused(copy: Path, tiny_clip: Backbone) -> None:
    tensors = load_file(copy / FILE)
    save_file(tensors, copy / FILE)  # the right tensors of unknown origin
    refused(copy, "these are not rmadapter's adapters", tiny_clip)
    save_file(tensors, copy / FILE, {"rmadapter-0": "{}"})
    refused(copy, "or another version's", tiny_clip)


def test_another_backbone_is_refused(finished: Path, tiny_clip: Backbone, tiny_siglip: Backbone) -> None:
    refused(finished, f"was trained on {tiny_clip.name} .+, and {tiny_siglip.name} .+ has other weights", tiny_siglip)


def test_the_same_architecture_with_other_weights_is_refused(copy: Path, tiny_clip: Backbone, tmp_path: Path) -> None:
    """One weight of the named backbone has changed since the training: nothing but the digest can tell."""
    folder = Path(shutil.copytree(tiny_clip.name, tmp_path / "backbone"))
    config = Config.load(copy / "config.yaml")
    config.replace(backbone=str(folder)).save(copy / "config.yaml")
    load_adapter(copy)  # a copy elsewhere is the same backbone
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["visual.conv1.weight"][0, 0, 0, 0] += 1e-3
    save_file(weights, folder / "open_clip_model.safetensors")
    refused(copy, "has other weights: load it with the backbone that it was trained on")


@pytest.mark.parametrize("change", [{"rank": 5}, {"first_block": 2}, {"lambda_text_rec": 0.0}, {"cross_modal": True}])
def test_a_config_of_other_shapes_is_refused(copy: Path, tiny_clip: Backbone, change: dict[str, object]) -> None:
    Config.load(copy / "config.yaml").replace(**change).save(copy / "config.yaml")
    refused(copy, r"the adapters in it do not have the shapes that .+config\.yaml describes", tiny_clip)


def test_a_backbone_given_goes_before_the_one_named(copy: Path, tiny_clip: Backbone) -> None:
    Config.load(copy / "config.yaml").replace(backbone="/gone").save(copy / "config.yaml")
    refused(copy, "'/gone' is neither a folder nor a name")
    assert load_adapter(copy, replace(tiny_clip, name="here"))[0].backbone.name == "here"
