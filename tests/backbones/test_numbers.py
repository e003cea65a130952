"""Numbers in a model folder against the headers of its weights, before anything is built."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rmadapter.backbones import load_backbone, numbers as module
from rmadapter.backbones.load import check_vocabulary
from rmadapter.backbones.numbers import check_numbers, read_headers
from rmadapter.errors import UserError
from rmadapter_pocket import POCKET

WIDTH, LAYERS, WORDS = 64, 3, 5000
CONFIG = {
    "image_size": 224,
    "patch_size": 16,
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": LAYERS,
    "vocab_size": WORDS,
    "eos_token_id": WORDS - 1,
    "layer_norm_eps": 1e-5,
    "mlp_ratio": 4.0,
    "mean": [0.5, 0.5, 0.5],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Weights of a text encoder, and tokenizer files with the numbers that transformers writes."""
    tensors = {"words": torch.zeros(WORDS, WIDTH)}
    for layer in range(LAYERS):
        for part in ("q", "k", "v", "out"):
            tensors[f"{layer}.{part}"] = torch.zeros(WIDTH, WIDTH)
        tensors[f"{layer}.mlp"] = torch.zeros(4 * WIDTH, WIDTH)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1e30}')
    (tmp_path / "model.safetensors.index.json").write_text('{"total_size": 123456789012}')
    return tmp_path


def write(folder: Path, file: str = "config.json", **changed: object) -> None:
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(json.dumps({**CONFIG, **changed}))


def test_sound_numbers(folder: Path) -> None:
    write(folder)
    write(folder, "inner/config.json")
    (folder / "preprocessor_config.json").write_text('{"size": {"shortest_edge": 224}}')
    check_numbers(folder)
    headers = read_headers(folder)
    assert (headers.tensors, headers.largest) == (1 + 5 * LAYERS, WORDS)
    assert headers.numbers == WORDS * WIDTH + LAYERS * 8 * WIDTH**2


@pytest.mark.parametrize("file", ["config.json", "inner/config.json", "open_clip_config.json"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 100_000), ("num_hidden_layers", 1_000_000), ("depth", 101),
        ("layers", [90] * 30), ("hidden_size", 4000), ("embed_dim", 100_000),
        ("vocab_size", 70_000), ("context_length", 5000),
        ("intermediate_size", 2000), ("mlp_ratio", 1e5), ("max_position_embeddings", 10**6),
        ("num_attention_heads", 10**400), ("dropout", math.nan), ("dropout", math.inf),
        ("patch_size", 1), ("depths", [1] * 2000), ("mean", [1e300]),
    ],
)  # fmt: skip
def test_a_number_beyond_the_weights(folder: Path, file: str, field: str, value: object) -> None:
    write(folder, file, **{field: value})
    if field == "patch_size" and file != "config.json":
        write(folder)
    with pytest.raises(
        UserError, match=file.rpartition("/")[2] if field != "patch_size" else "patches"
    ):
        check_numbers(folder)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tokenizer.json", '{"a": NaN}'),
        ("tokenizer_config.json", '{"model_max_length": 1e300}'),
        ("preprocessor_config.json", '{"size": {"height": 100000, "width": 100000}}'),
        ("preprocessor_config.json", '{"size": ' + "[" * 100_000),
    ],
)
def test_other_files(folder: Path, file: str, text: str) -> None:
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=file):
        check_numbers(folder)


def test_damaged_weights(folder: Path) -> None:
    (folder / "other.safetensors").write_bytes(b"none")
    with pytest.raises(UserError, match=r"other\.safetensors"):
        check_numbers(folder)


def test_open_clips_own_configurations_pass() -> None:
    """With as many tensors and numbers as a model of twice the width and layers, to be quick."""
    open_clip = pytest.importorskip("open_clip")
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        for field, number in module._numbers(config, "", False):
            module._check(field, number, module.Headers(400, 1_000_000, 10**8))


@pytest.mark.skipif(not POCKET.place().is_dir(), reason="pocket is not built here")
def test_a_tokenizer_with_words_that_the_encoder_lacks(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(POCKET.place(), folder)
    for file in ("open_clip_config.json", "tokenizer.json"):
        text = (folder / file).read_text().replace(str(POCKET.place()), str(folder))
        (folder / file).write_text(text.replace('"photo":', '"photography_":99999999,"photo":'))
    with pytest.raises(UserError, match="photography_"):
        load_backbone(str(folder))
    check_vocabulary(folder, load_backbone("pocket"))
