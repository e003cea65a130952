"""Runs that somebody changed: files that do not belong together, backbones that nobody but the run
names, and forged weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rmadapter import FewShotClassifier
from rmadapter.artifacts.checkpoint import load, read_draw, save
from rmadapter.backbones import Backbone
from rmadapter.errors import UserError
from rmadapter.methods import METHODS
from rmadapter.support.files import sha256, write_sums
from tests.helpers.methods import probabilities, quick_method
from tests.helpers.shots import noisy_colors, shots_of

FILE = "model.safetensors"


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def refused(folder: Path, words: str, backbone: Backbone | str | None = None) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load(folder, backbone)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1300


# ---- the backbone ----


def renamed(folder: Path, name: str) -> None:
    """model.json that names another backbone, by somebody who knows of SHA256SUMS."""
    content = json.loads((folder / "model.json").read_text("utf-8"))
    content["backbone"]["name"] = name
    (folder / "model.json").write_text(json.dumps(content))
    (folder / "SHA256SUMS").unlink(missing_ok=True)


def test_a_backbone_passed_to_load_replaces_the_saved_name(copy: Path, tiny_clip: Backbone) -> None:
    renamed(copy, "/gone")
    refused(copy, "'/gone'.+--backbone")
    refused(copy, "'/gone'", "/gone")
    assert load(copy, replace(tiny_clip, name="here")).fitted.backbone.name == "here"
    assert load(copy, tiny_clip.name).fitted.backbone.name == tiny_clip.name


def test_a_folder_or_repository_needs_to_be_named_by_the_user(
    copy: Path, tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A published name needs nobody's word, unless it is a folder here."""
    monkeypatch.setattr(
        "rmadapter.artifacts.checkpoint.load_backbone", lambda name: pytest.fail(f"{name} was read")
    )
    for name in (
        "hf-hub:somebody/else",
        tiny_clip.name,
        f"ViT-B-16/{tmp_path}/a.safetensors",
        "./x",
        "x" * 9000,
    ):
        renamed(copy, name)
        refused(copy, "name it yourself: --backbone '")
    monkeypatch.setattr("rmadapter.artifacts.checkpoint.load_backbone", lambda name: tiny_clip)
    for name in ("pocket", "ViT-B-16/openai", "ViT-B-32/none"):
        renamed(copy, name)
        assert load(copy).fitted.backbone is tiny_clip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ViT-B-32" / "none").mkdir(parents=True)
    refused(copy, "backbone 'ViT-B-32/none'")
    with pytest.raises(UserError, match="name it yourself"):
        FewShotClassifier.load(copy)


def test_another_tokenizer_or_transform_is_refused(
    finished: Path, tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads((finished / "model.json").read_text("utf-8"))
    assert content["tokenizer"] == tiny_clip.tokenizer_digest != ""
    for part, other in (
        ("tokenizer", {"tokenizer_digest": "0" * 64}),
        ("image transform", {"mean": (0.5, 0.4, 0.31)}),
    ):
        changed: Any = replace(tiny_clip, **other)  # type: ignore[arg-type]
        refused(finished, f"the {part} of its backbone", changed)
    assert content["transform"]["resize"] == "shortest"
    visual: Any = tiny_clip.model.visual
    for field, value in (("resize_mode", "squash"), ("interpolation", "bilinear")):
        monkeypatch.setattr(visual, "preprocess_cfg", {**visual.preprocess_cfg, field: value})
        refused(finished, "the image transform of its backbone", tiny_clip)
        monkeypatch.undo()


def test_a_model_that_does_not_say_its_tokenizer_or_resizing_is_read(
    copy: Path, tiny_clip: Backbone
) -> None:
    content = json.loads((copy / "model.json").read_text("utf-8"))
    for field in ("resize", "interpolation", "fill"):
        del content["transform"][field]
    del content["tokenizer"]
    (copy / "model.json").write_text(json.dumps(content))
    (copy / "SHA256SUMS").unlink()
    assert load(copy, replace(tiny_clip, tokenizer_digest="another")).name == "rmadapter"


# ---- files that do not belong together ----


def test_save_refuses_the_folder_of_a_run(copy: Path, tiny_clip: Backbone) -> None:
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    with pytest.raises(UserError, match="holds a run of `fit`"):
        FewShotClassifier.load(copy, backbone=tiny_clip.name).save(copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


@pytest.mark.parametrize(
    "name", ["config.yaml", "run.json", "history.csv", "split.json", "report.html", "model.json"]
)
def test_one_changed_byte_of_any_file_is_refused(
    copy: Path, tiny_clip: Backbone, name: str
) -> None:
    content = (copy / name).read_bytes()
    place = content.index(b"blue") if name == "model.json" else len(content) // 2
    (copy / name).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    refused(copy, rf"{name}: does not match SHA256SUMS", tiny_clip)


def test_a_record_that_the_sums_do_not_list_is_refused(copy: Path) -> None:
    assert read_draw(copy)[:2] == (4, 1)
    write_sums(copy, (FILE, "model.json"))
    with pytest.raises(UserError, match=r"run\.json: not listed in SHA256SUMS"):
        read_draw(copy)


def test_a_run_without_sums_is_read(copy: Path, tiny_clip: Backbone) -> None:
    (copy / "SHA256SUMS").unlink()
    assert load(copy, tiny_clip).name == "rmadapter"
    assert read_draw(copy)[:2] == (4, 1)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(
    copy: Path, tiny_clip: Backbone, number: float
) -> None:
    fitted = load(copy, tiny_clip).fitted
    tensors = {name: tensor.clone() for name, tensor in fitted.tensors.items()}
    tensors["text.4.down.weight"][1, 1] = number
    (copy / "run.json").unlink()
    save(copy, replace(fitted, tensors=tensors), "rmadapter")
    refused(copy, rf"{FILE}: 'text.4.down.weight'", tiny_clip)


FORGED: dict[str, Callable[[Tensor], Tensor]] = {
    "more rows": lambda x: torch.cat([x, x]) if x.ndim else torch.stack([x, x]),
    "one number less": lambda x: x.flatten()[:-1],
    "a number": lambda x: torch.tensor(1.0) if x.ndim else torch.tensor(1),
    "one more side": lambda x: x[None],
    "whole numbers": lambda x: torch.ones(x.shape, dtype=torch.int64),
    "float8": lambda x: torch.ones(x.shape).to(torch.float8_e4m3fn),
    "double": lambda x: x.double(),
    "bfloat16": lambda x: x.bfloat16(),
}
# Those that make no module of their tensors, which torch would check, and some that do.
BY_HAND = (
    "linear-probe",
    "linear-probe-zero-shot",
    "linear-probe-pair",
    "clap",
    "lp-plus-plus",
    "tip-adapter-f",
)
BY_HAND += ("zero-shot-descriptions", "rmadapter-plus", "prompt-kd", "lweib", "mma")


@pytest.mark.parametrize("name", BY_HAND)
def test_forged_weights_are_refused_or_give_probabilities(
    name: str, tiny_clip: Backbone, tmp_path: Path
) -> None:
    assert name in METHODS
    images = noisy_colors(1)
    save(tmp_path, quick_method(name).fit(tiny_clip, shots_of(tiny_clip, images)), name)
    file, model = tmp_path / "model.safetensors", tmp_path / "model.json"
    whole, said = load_file(file), json.loads(model.read_text())
    last = {what.rpartition(".")[2]: what for what in whole}  # one of each kind
    for what in last.values():
        for how, change in FORGED.items():
            save_file({**whole, what: change(whole[what]).contiguous()}, file)
            model.write_text(json.dumps({**said, "sha256": sha256(file)}))
            try:
                loaded = load(tmp_path, tiny_clip).fitted
            except UserError:
                continue
            assert how in ("double", "bfloat16", "whole numbers"), what
            assert probabilities(loaded, images).shape == (len(images), len(images.classes))
