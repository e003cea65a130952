"""Backbones by name: what plain open_clip computes, no pickle, one copy in memory, and refusals."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from rmadapter.backbones import Backbone, load_backbone
from rmadapter.backbones.load import first_of, hub_file, identity_of, is_published, reload, shared
from rmadapter.errors import UserError
from rmadapter.support.hub import Unreachable
from tests.helpers.models import write_fixed_backbone

SMALL = "ViT-S-32-alt"  # the smallest of open_clip's architectures
TEXTS = ["a photo of a cat.", "a red dog", ""]


def noise(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["tiny_clip", "tiny_siglip", "tiny_eva", "tiny_hf"])
def test_computes_what_plain_open_clip_computes(kind: str, request: pytest.FixtureRequest) -> None:
    backbone = request.getfixturevalue(kind)
    plain, _, transform = open_clip.create_model_and_transforms(f"local-dir:{backbone.name}")
    tokens = open_clip.get_tokenizer(f"local-dir:{backbone.name}")(TEXTS)
    images = torch.stack([transform(noise(size)) for size in [(40, 50), (90, 33)]])
    assert torch.equal(backbone.preprocess(noise((40, 50))), images[0])
    assert torch.equal(backbone.tokenizer(TEXTS), tokens)
    plain.eval().requires_grad_(False)  # torch picks other kernels for weights that want gradients
    with torch.inference_mode():
        assert torch.equal(backbone.model.encode_image(images), plain.encode_image(images))
        assert torch.equal(backbone.model.encode_text(tokens), plain.encode_text(tokens))
    assert backbone.model.logit_scale == plain.logit_scale
    assert not backbone.model.training
    parameters = backbone.model.parameters()
    assert {(p.requires_grad, p.dtype) for p in parameters} == {(False, torch.float32)}
    white = backbone.preprocess(Image.new("RGB", (64, 64), "white"))
    expected = [(1 - mean) / std for mean, std in zip(backbone.mean, backbone.std, strict=True)]
    assert white.shape == (3, backbone.image_size, backbone.image_size)
    torch.testing.assert_close(white[:, 0, 0], torch.tensor(expected))


@pytest.mark.ci
def test_random_weights_are_always_the_same_and_come_back_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, second = load_backbone(f"{SMALL}/none"), load_backbone(f"{SMALL}/none")
    assert torch.equal(torch.rand(3), expected), "the global random generator was used"
    assert first.digest == second.digest
    halves = {name: tensor.half() for name, tensor in first.model.state_dict().items()}
    save_file(halves, tmp_path / "half.safetensors")
    from_file = load_backbone(f"{SMALL}/{tmp_path}/half.safetensors").model.state_dict()
    assert {tensor.dtype for tensor in from_file.values()} == {torch.float32}
    assert all(torch.equal(from_file[name], half.float()) for name, half in halves.items())


def test_every_published_checkpoint_names_a_safetensors_file() -> None:
    for architecture, tag in open_clip.list_pretrained():
        repository, file = hub_file(open_clip.get_pretrained_cfg(architecture, tag)["hf_hub"])
        assert repository.count("/") == 1, (architecture, tag)
        assert file.endswith(".safetensors"), (architecture, tag)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("ViT-B-32-quickgelu/laion2b_s34b_b79k", "use 'ViT-B-32/laion2b_s34b_b79k'"),
        ("ViT-B16/openai", "nearest are ViT-B-16"),
        ("ViT-B-16/openia", "nearest are openai"),
        ("ViT-S-16/openai", "'ViT-S-16/none' has random weights"),
        ("pockett", "write 'pocket'"),
        ("./no/such/folder", "existing folder"),
        ("hf-hub:no/such/name", "hub has no 'no/such/name'"),
        ("ViT-B-16/missing.safetensors", "missing.safetensors: no such weights file"),
    ],
)
def test_a_wrong_name_is_refused(name: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        load_backbone(name)


class Malicious:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


def test_pickles_are_never_opened(tiny_clip: Backbone, tmp_path: Path) -> None:
    torch.save({"weights": Malicious()}, tmp_path / "open_clip_pytorch_model.bin")
    shutil.copy(Path(tiny_clip.name) / "open_clip_config.json", tmp_path)
    for name in (str(tmp_path), f"ViT-B-16/{tmp_path}/open_clip_pytorch_model.bin"):
        with pytest.raises(UserError, match="convert it"):
            load_backbone(name)


def test_damaged_or_foreign_weights_are_refused(tiny_clip: Backbone, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_clip.name, tmp_path / "model")
    file = folder / "open_clip_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"open_clip_model.safetensors: not a readable"):
        load_backbone(str(folder))
    save_file({"a": torch.zeros(3)}, file)
    with pytest.raises(UserError, match="do not fit"):
        load_backbone(str(folder))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("preprocess_cfg", "mean"), "half"),
        (("preprocess_cfg", "std"), [0.5, 0.5]),
        (("preprocess_cfg", "resize_mode"), ["shortest"]),
        (("model_cfg", "vision_cfg", "layers"), 2**31),
        (("model_cfg", "text_cfg", "width"), None),
        (("model_cfg", "vision_cfg", "mlp_ratio"), "x"),
        (("model_cfg",), "[" * 5_000),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_a_folder_with_an_invalid_config_is_refused(tmp_path: Path, place: Any, value: Any) -> None:
    folder = write_fixed_backbone(tmp_path / "model")
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    inner = config
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    file.write_text(json.dumps(config).replace(f'"{"[" * 5_000}"', "[" * 5_000))
    with pytest.raises(UserError) as caught:
        load_backbone(str(folder))
    assert len(str(caught.value)) < 600


def test_published_names_determine_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ViT-L-14" / "openai").mkdir(parents=True)  # a folder hides the published weights
    for name in ("pocket", "ViT-B-16/openai", "ViT-B-16-quickgelu/openai", f"{SMALL}/none"):
        assert is_published(name), name
    others = ["ViT-L-14/openai", "ViT-B-16/mine", "ViT-B-16/a.safetensors", "none", "x/none"]
    for name in [*others, "hf-hub:a/b", ".", ""]:
        assert not is_published(name), name


def test_a_run_depends_on_transform_and_tokenizer_too(tiny_clip: Backbone) -> None:
    assert identity_of(replace(tiny_clip)) == identity_of(tiny_clip) != tiny_clip.digest
    assert identity_of(replace(tiny_clip, mean=(0.1, 0.1, 0.1))) != identity_of(tiny_clip)
    assert identity_of(replace(tiny_clip, tokenizer_digest="0")) != identity_of(tiny_clip)
    for published in (
        replace(tiny_clip, name="pocket"),
        replace(tiny_clip, name="pocket", mean=(0.1, 0.1, 0.1)),
    ):
        assert identity_of(published) == tiny_clip.digest


@pytest.mark.parametrize("name", ["hf-hub:someone/tiny", "ViT-B-16/openai"])
def test_without_network_the_message_names_an_alternative(name: str, empty_hub: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be reached .*pocket"):
        load_backbone(name)


CPU = torch.device("cpu")


def test_a_published_backbone_is_loaded_once_while_it_is_in_use(
    monkeypatch: pytest.MonkeyPatch, tiny_clip: Backbone
) -> None:
    loaded: list[str] = []

    def load(name: str, revision: str) -> Backbone:
        loaded.append(name)
        return replace(tiny_clip, name=name)

    monkeypatch.setattr("rmadapter.backbones.load.load_backbone", load)
    first = shared("ViT-B-32/none", CPU)
    assert shared("ViT-B-32/none", CPU) is first
    assert reload("ViT-B-32/none", first.digest, CPU) is first
    assert loaded == ["ViT-B-32/none"]
    with ThreadPoolExecutor(1) as pool:  # another thread trains on a copy of its own
        assert pool.submit(shared, "ViT-B-32/none", CPU).result() is not first
    del first
    shared("ViT-B-32/none", CPU)
    assert len(loaded) == 3


def test_a_folder_is_read_again_except_for_a_known_digest(tiny_clip: Backbone) -> None:
    first = shared(tiny_clip.name, CPU)
    second = shared(tiny_clip.name, CPU)
    assert second is not first
    assert reload(tiny_clip.name, tiny_clip.digest, CPU) is second
    with pytest.raises(UserError, match=r"\(0{12}\).* has other weights"):
        reload(tiny_clip.name, "0" * 64, CPU)


def test_the_first_available_backbone_is_loaded(
    tiny_clip: Backbone, empty_hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert first_of(f"{tiny_clip.name},pocket").digest == tiny_clip.digest
    assert first_of(f"ViT-B-16/openai, {tiny_clip.name}").name == tiny_clip.name
    assert f"using {tiny_clip.name} instead" in capsys.readouterr().err
    assert first_of(tiny_clip.name).name == tiny_clip.name
    assert capsys.readouterr().err == ""
    with pytest.raises(Unreachable):
        first_of("ViT-B-32/openai,ViT-B-16/openai")
    with pytest.raises(UserError, match="no architecture 'ViT-B-61'"):  # no reason to go on
        first_of(f"ViT-B-61/openai,{tiny_clip.name}")
    with pytest.raises(UserError, match="single commas"):
        first_of("pocket,")
