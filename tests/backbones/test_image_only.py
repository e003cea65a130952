from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from rmadapter.backbones import Backbone, load_backbone
from rmadapter.backbones.image_only import load_image_only
from rmadapter.backbones.load import identity_of, is_published
from rmadapter.backbones.names import TimmName
from rmadapter.backbones.published import licence_of
from rmadapter.errors import UserError
from rmadapter.support.files import write_json
from tests.helpers.models import SIZE, WIDTH, write_timm, write_tiny_timm

DINO = "vit_small_patch14_dinov2"


def features(backbone: Backbone, pixels: torch.Tensor) -> torch.Tensor:
    return backbone.image.frozen(pixels).features


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("test_vit", {"img_size": SIZE, "patch_size": 8}),
        ("test_vit3", {"img_size": SIZE, "patch_size": 8}),  # registers, attention pooling
        ("test_convnext", {}),
        ("test_resnet", {}),
        ("test_efficientnet", {}),
        ("test_nfnet", {}),
    ],
)
@torch.no_grad()
def test_features_are_those_of_timm_without_its_classifier(
    tmp_path: Path, architecture: str, arguments: dict[str, int]
) -> None:
    folder = write_timm(tmp_path / "model", architecture, **arguments)
    backbone = load_backbone(str(folder))
    own = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    pixels = torch.randn(3, 3, SIZE, SIZE)
    assert torch.allclose(features(backbone, pixels), own(pixels), rtol=1e-5, atol=1e-6)
    assert backbone.embedding_size == own(pixels).shape[1]
    assert not backbone.has_text
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


@torch.no_grad()
def test_a_dinov3_gives_its_class_token_unless_its_folder_says_otherwise(tmp_path: Path) -> None:
    """As its authors read it; timm's default is the mean of the patches."""
    sizes = {"img_size": SIZE, "patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": 4}
    folder = write_timm(tmp_path / "model", "vit_small_patch16_dinov3", **sizes)
    own = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    pixels = torch.randn(3, 3, SIZE, SIZE)
    tokens, backbone = own.forward_features(pixels), load_backbone(f"timm:{folder}")
    assert torch.allclose(features(backbone, pixels), tokens[:, 0], rtol=1e-5, atol=1e-6)
    own.reset_classifier(0, "token")
    assert torch.allclose(features(backbone, pixels), own(pixels), rtol=1e-5, atol=1e-6)
    mean = load_backbone(f"timm:{changed(folder, global_pool='avg')}")
    patches = tokens[:, own.num_prefix_tokens :].mean(1)
    assert torch.allclose(features(mean, pixels), patches, rtol=1e-5, atol=1e-6)
    # so that no run, record or file of features of one is taken for the other's
    assert mean.digest != backbone.digest
    assert mean.structure != backbone.structure
    shutil.copytree(folder, tmp_path / "said")
    said = load_backbone(f"timm:{changed(tmp_path / 'said', global_pool='token')}")
    assert said.digest == backbone.digest


def test_images_are_prepared_as_timm_prepares_them(tmp_path: Path) -> None:
    folder = write_tiny_timm(tmp_path / "model")
    backbone = load_backbone(f"timm:{folder}")
    own = timm.create_model(f"local-dir:{folder}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(own))
    image = Image.radial_gradient("L").resize((70, 50)).convert("RGB")
    assert torch.allclose(backbone.preprocess(image), transform(image), atol=1e-6)
    assert backbone.resizing == {"resize": "shortest", "interpolation": "bicubic", "fill": 0}
    assert (backbone.image_size, backbone.mean) == (SIZE, (0.5, 0.4, 0.3))


def test_a_folder_is_the_same_with_and_without_the_prefix(tmp_path: Path) -> None:
    folder = write_tiny_timm(tmp_path / "model")
    with_prefix, without = load_backbone(f"timm:{folder}"), load_backbone(str(folder))
    assert with_prefix.digest == without.digest
    assert identity_of(with_prefix) == identity_of(without)
    assert not is_published(with_prefix.name)
    other = load_backbone(str(write_timm(tmp_path / "other", seed=1, img_size=SIZE)))
    assert other.digest != without.digest


def test_a_size_after_the_name_sets_that_of_images(tmp_path: Path) -> None:
    folder = write_tiny_timm(tmp_path / "model")
    larger = load_backbone(f"timm:{folder}@48")
    assert larger.image_size == 48
    assert features(larger, torch.zeros(1, 3, 48, 48)).shape == (1, WIDTH)
    convolutional = write_timm(tmp_path / "convnext", "test_convnext")
    assert load_backbone(f"timm:{convolutional}@64").image_size == 64
    with pytest.raises(UserError, match=r"timm:.*@50"):  # not a multiple of the patch
        load_backbone(f"timm:{folder}@50")


def test_random_weights_are_always_the_same() -> None:
    first, second = (load_backbone("timm:test_resnet/none") for _ in range(2))
    assert first.digest == second.digest
    assert is_published(first.name)
    assert first.image_size == 160


def test_a_file_of_weights_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=1000).eval()
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    backbone = load_backbone(f"timm:test_resnet/{tmp_path / 'own.safetensors'}")
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(pixels), pre_logits=True)
    assert torch.allclose(features(backbone, pixels), expected, atol=1e-6)


def test_published_weights_come_from_the_hub_that_timm_names(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=1000)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    asked = []

    def fetch(repository: str, file: str) -> Path:
        asked.append((repository, file))
        return tmp_path / file

    backbone = load_image_only("timm:test_resnet.r160_in1k", fetch)
    assert asked == [("timm/test_resnet.r160_in1k", "model.safetensors")]
    assert backbone.image_size == 160
    assert is_published(backbone.name)
    assert licence_of(backbone.name) == "apache-2.0 (timm's table of weights)"


def test_offline_a_name_that_is_not_cached_is_refused(empty_hub: Path) -> None:
    with pytest.raises(UserError, match=rf"timm:{DINO}\.lvd142m"):
        load_backbone(f"timm:{DINO}.lvd142m")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("timm:vit_smal_patch14_dinov2.lvd142m", f"nearest are {DINO}"),
        (f"timm:{DINO}", r"name its weights.*/none"),
        (f"timm:{DINO}/gone.safetensors", "no such weights file"),
        ("timm:/gone/folder", "/gone/folder is not a folder"),
        ("timm:", "name its weights"),
    ],
)
def test_a_wrong_name_is_refused(name: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        load_backbone(name)


def test_an_unknown_tag_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UserError, match=r"no weights 'lvd142'.*lvd142m"):
        load_backbone(f"timm:{DINO}.lvd142")


def test_names_are_split() -> None:
    assert TimmName.of(f"timm:{DINO}.lvd142m@224") == (None, DINO, "lvd142m", 224)
    assert TimmName.of("timm:resnet50//a/b.safetensors") == (
        None,
        "resnet50",
        "/a/b.safetensors",
        0,
    )
    assert TimmName.of("timm:resnet50/none@x") == (None, "resnet50", "none@x", 0)


def changed(folder: Path, **fields: object) -> Path:
    file = folder / "config.json"
    write_json(file, {**json.loads(file.read_text()), **fields})
    return folder


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"architecture": "local-dir:/etc"}, "no model 'local-dir:/etc'"),
        ({"architecture": "hf-hub:a/b"}, "no model 'hf-hub:a/b'"),
        ({"model_args": {"checkpoint_path": "x.pth"}}, "'checkpoint_path' is not a field"),
        ({"model_args": {"img_size": "x"}}, "img_size must be a number"),
        ({"global_pool": 3}, "global_pool must be a name"),
        ({"architecture": "vit_huge_patch14_224", "model_args": {}}, "parameters, and its weights"),
        ({"model_args": {"img_size": 32, "depth": 900}}, "depth.*at most"),
        (
            {"architecture": "test_resnet", "model_args": {}, "pretrained_cfg": {}},
            "do not fit",
        ),
        ({"auto_map": "x"}, "asks to run code"),
    ],
)
def test_a_folder_that_asks_for_more_than_its_weights_is_refused(
    tmp_path: Path, fields: dict[str, object], match: str
) -> None:
    folder = changed(write_tiny_timm(tmp_path / "model"), **fields)
    with pytest.raises(UserError, match=match):
        load_backbone(f"timm:{folder}")


def test_missing_and_foreign_weights_are_refused(tmp_path: Path) -> None:
    folder = write_tiny_timm(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    for change in ({}, {"surplus": torch.zeros(2)}):
        some = {**weights, **change}
        if not change:
            del some["norm.weight"]
        save_file(some, folder / "model.safetensors")
        with pytest.raises(UserError, match="do not fit"):
            load_backbone(f"timm:{folder}")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no model\.safetensors"):
        load_backbone(f"timm:{folder}")


def test_texts_are_refused(tiny_timm: Backbone) -> None:
    for ask in (lambda: tiny_timm.text, lambda: tiny_timm.tokenizer(["a cat"])):
        with pytest.raises(UserError, match="no text encoder"):
            ask()
