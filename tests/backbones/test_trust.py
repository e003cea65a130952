"""Folders that try to run code, or lead elsewhere: refused in a sentence, and no payload ran
(`evil_models.model`)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rmadapter.backbones import load_backbone
from tests.helpers.malicious_models import (
    CONFIG,
    MALICIOUS,
    TOKENIZER,
    add_fields,
    assert_refused,
    built_model,
    edit_json,
    model,
    text,
    vision,
    write_payload,
)
from tests.helpers.models import SIZE

__all__ = ["built_model", "model"]  # fixtures


def test_a_folder_without_any_of_it_is_read(model: Path) -> None:
    text(model, tokenizer_kwargs={"clean": "canonicalize", "strip_sep_token": True})
    (model / "words.json").write_text(
        '{"vocab": {"auto_map": 7, "tokenizer_class": 8}}'
    )  # words like any other
    os.symlink(model / "README.md", model / "card.md")
    (model / "README.md").write_text("a link inside is fine")
    assert load_backbone(str(model)).tokenizer(["A dog!"]).shape == (1, 16)


# ---- code ----


def by_tokenizer_settings(folder: Path) -> None:
    text(folder, tokenizer_kwargs={"trust_remote_code": True})
    add_fields(folder, TOKENIZER, auto_map=MALICIOUS)
    write_payload(folder)


def by_tokenizer_settings_alone(folder: Path) -> None:
    text(folder, tokenizer_kwargs={"trust_remote_code": True})


def by_the_tokenizers_configuration(folder: Path) -> None:
    add_fields(folder, TOKENIZER, auto_map=MALICIOUS, tokenizer_class="Evil")
    write_payload(folder)


def by_the_tokenizers_configuration_and_another_repository(folder: Path) -> None:
    add_fields(folder, TOKENIZER, auto_map={"AutoTokenizer": ["somebody/code--evil.Evil", None]})


def by_the_text_encoders_configuration(folder: Path) -> None:
    add_fields(folder, "bert/config.json", auto_map=MALICIOUS, model_type="evil")
    write_payload(folder / "bert")


def by_a_list(folder: Path) -> None:
    add_fields(folder, TOKENIZER, auto_map=["evil.Evil", None])


def by_a_class_that_loads_models(folder: Path) -> None:
    add_fields(folder, TOKENIZER, tokenizer_class="AutoModel")


def by_a_kernel_from_the_hub(folder: Path) -> None:
    add_fields(folder, "bert/config.json", attn_implementation="somebody/kernel")


def by_a_kernel_under_its_inner_name(folder: Path) -> None:
    add_fields(folder, "bert/config.json", _attn_implementation_internal="somebody/kernel")


def deep_in_a_file(folder: Path) -> None:
    (folder / "vit" / "more.json").write_text(json.dumps({"a": [{"b": {"auto_map": MALICIOUS}}]}))


def by_an_encoder_that_builds_others(folder: Path) -> None:
    add_fields(
        folder, "bert/config.json", model_type="timm_wrapper", architecture="hf-hub:somebody/else"
    )


def by_a_python_file(folder: Path) -> None:
    write_payload(folder)


def by_a_library(folder: Path) -> None:
    (folder / "vit" / "fast.SO").write_bytes(b"\x7fELF")


def by_a_pickle(folder: Path) -> None:
    (folder / "bert" / "pytorch_model.bin").write_bytes(b"\x80\x04N.")


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (by_tokenizer_settings, r"evil\.py is code, which a model folder may not hold"),
        (
            by_tokenizer_settings_alone,
            r"open_clip_config\.json: its field 'trust_remote_code' asks to run code",
        ),
        (
            by_the_tokenizers_configuration,
            r"evil\.py is code|tokenizer_config\.json: its field .* asks to run code",
        ),
        (
            by_the_tokenizers_configuration_and_another_repository,
            r"tokenizer_config\.json: its field .* asks to run code",
        ),
        (
            by_the_text_encoders_configuration,
            r"config\.json: its field 'auto_map' asks to run code|is code",
        ),
        (by_a_list, "its field 'auto_map' asks to run code"),
        (by_a_class_that_loads_models, "its field 'tokenizer_class' asks to run code"),
        (by_a_kernel_from_the_hub, "its field 'attn_implementation' asks to run code"),
        (
            by_a_kernel_under_its_inner_name,
            "its field '_attn_implementation_internal' asks to run code",
        ),
        (deep_in_a_file, r"more\.json: its field 'auto_map' asks to run code"),
        (
            by_an_encoder_that_builds_others,
            "model_type 'timm_wrapper' is not a text encoder; known are roberta, ",
        ),
        (by_a_python_file, r"evil\.py is code"),
        (by_a_library, r"fast\.SO is code"),
        (by_a_pickle, r"pytorch_model\.bin is a pickle, which is never read"),
    ],
)
def test_code_is_refused_and_does_not_run(
    model: Path, attack: Callable[[Path], None], words: str
) -> None:
    attack(model)
    assert_refused(model, words)


# ---- ways out of the folder ----


@pytest.mark.parametrize(
    "name",
    [
        "local-dir:{outside}/vit",
        "LOCAL-DIR:{outside}/vit",
        "local-dir:outside/vit",
        "local-dir:model/../outside/vit",
        "local-dir:{outside}/../model/../outside/vit",
        "local-dir:model/gone",
        "hf-hub:somebody/else",
        "hf_hub:somebody/else",
        "https://example.com/vit",
        "somebody/else",
        ["vit_base_patch16_224"],
    ],
)
def test_names_of_image_encoders_stay_inside(model: Path, tmp_path: Path, name: Any) -> None:
    outside = shutil.copytree(model, tmp_path / "outside")
    vision(model, timm_model_name=name.format(outside=outside) if isinstance(name, str) else name)
    assert_refused(model, "timm_model_name leads out of the folder|timm_model_name is a")


@pytest.mark.parametrize(
    "name",
    [
        "{outside}/bert",
        "outside/bert",
        "model/../outside/bert",
        "./gone",
        "somebody/else",
        "roberta-base",
        {"a": 1},
    ],
)
def test_names_of_text_encoders_stay_inside(model: Path, tmp_path: Path, name: Any) -> None:
    """A plain name of open_clip's own is let through, unless a folder here is called so."""
    outside = shutil.copytree(model, tmp_path / "outside")
    shutil.copytree(outside / "bert", tmp_path / "roberta-base")
    text(model, hf_model_name=name.format(outside=outside) if isinstance(name, str) else name)
    assert_refused(
        model, "hf_model_name leads out of the folder|hf_model_name must be a plain value"
    )


def test_relative_names_that_stay_inside_are_read(model: Path) -> None:
    vision(model, timm_model_name="local-dir:model/bert/../vit")
    text(model, hf_model_name="./model/bert")
    assert load_backbone("model").image_size == SIZE


def test_a_folder_here_is_not_read_in_place_of_the_hubs(model: Path, tmp_path: Path) -> None:
    add_fields(model, "bert/config.json", auto_map=MALICIOUS, model_type="evil")
    write_payload(model / "bert")
    (model / "bert").rename(tmp_path / "roberta-base")
    assert_refused(
        "roberta-ViT-B-32/none", "roberta-base would be read instead of the hub's 'roberta-base'"
    )


@pytest.mark.parametrize(
    "name", ["bert", "vit/config.json", TOKENIZER, "open_clip_model.safetensors"]
)
def test_links_out_of_the_folder_are_refused(model: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").mkdir()
    (model / name).rename(tmp_path / "outside" / "it")
    os.symlink(tmp_path / "outside" / "it", model / name)
    assert_refused(model, f"{name} leads out of its folder, to .+/outside/it")


def test_broken_links_and_pipes_are_refused(model: Path, tmp_path: Path) -> None:
    os.symlink("gone.json", model / "a.json")
    assert_refused(model, r"a\.json is not a plain file")
    (model / "a.json").unlink()
    os.mkfifo(model / "b.json")  # opening it would wait for ever
    assert_refused(model, r"b\.json is not a plain file")


def test_a_config_that_is_no_table(model: Path) -> None:
    (model / "open_clip_config.json").write_text('[{"model_cfg": {}}]')
    assert_refused(model, "a model_cfg with a vision_cfg and a text_cfg is missing")


@pytest.mark.parametrize(
    ("place", "fields", "words"),
    [
        ((), {"pretrained": "x"}, "'pretrained' is not a field"),
        (
            ("model_cfg",),
            {"multimodal_cfg": {"hf_model_name": "x"}},
            "multimodal_cfg.hf_model_name' is not a field",
        ),
        (("model_cfg", "vision_cfg"), {"timm_modelname": "x"}, "did you mean 'timm_model_name'"),
        (
            ("model_cfg", "text_cfg"),
            {"tokenizer_kwargs": {"bpe_path": "/etc/passwd"}},
            "bpe_path' is not a field",
        ),
        (
            ("model_cfg", "text_cfg"),
            {"tokenizer_kwargs": {"gguf_file": "x"}},
            "gguf_file' is not a field",
        ),
        (
            ("model_cfg", "text_cfg"),
            {"norm_kwargs": {"device": "meta"}},
            "norm_kwargs.device' is not a field",
        ),
        (
            ("model_cfg", "text_cfg"),
            {"width": {"a": 1}},
            "width must be a plain value, not a table",
        ),
        (
            ("preprocess_cfg",),
            {"mean": [{"a": 1}]},
            "preprocess_cfg.mean must be a list of plain values",
        ),
        ((), {"model_cfg": []}, "a model_cfg with a vision_cfg and a text_cfg is missing"),
    ],
)
def test_fields_that_open_clip_does_not_have_are_refused(
    model: Path, place: tuple[str, ...], fields: dict[str, Any], words: str
) -> None:
    def more(config: Any) -> Any:
        table = config
        for name in place:
            table = table[name]
        table |= fields
        return config

    edit_json(model / CONFIG, more)
    assert_refused(model, words)


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "\ufeff{}", '"\ud800"'])
def test_files_that_are_no_json_are_refused(model: Path, content: str) -> None:
    (model / "more.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    assert_refused(model, r"more\.json: not readable JSON")
