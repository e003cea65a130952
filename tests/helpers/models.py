"""Write model folders with small random weights, in the formats that open_clip reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

SIZE, PATCH, WIDTH, DEPTH = 32, 8, 64, 4  # image towers: 16 patches


CLIP_TEXT = {"context_length": 16, "vocab_size": 49408, "width": 48, "heads": 3, "layers": DEPTH}
BERT = {
    "model_type": "bert", "vocab_size": 100, "hidden_size": 48, "num_hidden_layers": DEPTH,
    "num_attention_heads": 3, "intermediate_size": 96, "max_position_embeddings": 32,
    "pad_token_id": 0,
}  # fmt: skip
WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] a photo of the cat dog car tree house bird . , red blue small"
)
RESIZING = {"interpolation": "bicubic", "resize_mode": "shortest"}


def write_model(folder: Path, model_cfg: dict[str, Any], seed: int = 0) -> Path:
    """Write a model folder as open_clip reads it, with random weights, none of them zero."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {**RESIZING, "mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.1]}
    config = {"model_cfg": {"embed_dim": 40, **model_cfg}, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(
        json.dumps(config), encoding="utf-8", newline="\n"
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.create_model(
            f"local-dir:{folder}", load_weights=False, pretrained_text=False
        )
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases, norms, layer scales
                parameter.data += 0.1 * torch.randn_like(parameter)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def write_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """Write a model with open_clip's own vision transformer and causal text transformer."""
    vision = {"image_size": SIZE, "patch_size": PATCH, "width": WIDTH, "head_width": 16}
    vision["layers"] = DEPTH
    return write_model(folder, {"vision_cfg": vision, "text_cfg": CLIP_TEXT}, seed)


def timm_vision(folder: Path, architecture: str, pool: str, **arguments: Any) -> dict[str, Any]:
    """Write timm's configuration of a small trunk; return open_clip's `vision_cfg` for it."""
    folder.mkdir(parents=True, exist_ok=True)
    size = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH}
    size["num_heads"] = 4
    config = {"architecture": architecture, "num_classes": 0, "model_args": {**size, **arguments}}
    config["pretrained_cfg"] = {"input_size": [3, SIZE, SIZE], "num_classes": 0}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8", newline="\n")
    vision = {"timm_model_name": f"local-dir:{folder}", "timm_pool": pool, "timm_proj": "linear"}
    return {**vision, "image_size": SIZE}


def write_bert(folder: Path) -> Path:
    """Write the configuration of a small BERT and a word-level tokenizer for it."""
    from transformers import BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text(WORDS.replace(" ", "\n"), encoding="utf-8", newline="\n")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(BERT), encoding="utf-8", newline="\n")
    return folder


def write_timm_bert(folder: Path, pooler: str = "mean_pooler", **bert_config: Any) -> Path:
    """Write a model with a DINOv2 of timm and a BERT of Hugging Face: `pocket` in small."""
    write_bert(folder)  # open_clip takes the tokenizer from the folder itself
    vision = timm_vision(folder / "vit", "vit_small_patch14_dinov2", "token", init_values=0.1)
    bert = str(write_bert(folder / "bert"))
    (folder / "bert/config.json").write_text(
        json.dumps({**BERT, **bert_config}), encoding="utf-8", newline="\n"
    )
    text = {"hf_model_name": bert, "hf_tokenizer_name": bert, "hf_model_pretrained": False}
    text |= {"context_length": 16, "hf_pooler_type": pooler, "hf_proj_type": "linear"}
    return write_model(folder, {"vision_cfg": vision, "text_cfg": text, "custom_text": True})


def write_fixed_backbone(folder: Path) -> Path:
    """Write a model whose weights are equal bit for bit on every machine."""
    import numpy as np
    import open_clip
    from safetensors.torch import save_file

    vision = {"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 2}
    text = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    model_cfg = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    preprocess = {**RESIZING, "mean": [0.5] * 3, "std": [0.25] * 3}
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(
        json.dumps(config), encoding="utf-8", newline="\n"
    )
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    rng, state = np.random.default_rng(0), model.state_dict()
    drawn = {}
    for name in sorted(state):
        numbers = rng.integers(-800, 800, tuple(state[name].shape)) / 4096  # exact in float32
        drawn[name] = torch.tensor(numbers, dtype=torch.float32)
    drawn["logit_scale"] = torch.tensor(4.5)
    save_file(drawn, folder / "open_clip_model.safetensors")
    return folder


def write_timm(
    folder: Path, architecture: str = "test_vit", classes: int = 5, seed: int = 0,
    **arguments: Any,
) -> Path:  # fmt: skip
    """Write a folder as timm's `save_for_hf` does, with random weights, none of them zero.
    arguments: of the model's constructor, kept as `model_args`."""
    import timm
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm.create_model(architecture, num_classes=classes, **arguments)
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases, norms, layer scales
                parameter.data += 0.1 * torch.randn_like(parameter)
    side = arguments.get("img_size", SIZE)
    own = {"input_size": [3, side, side], "interpolation": "bicubic", "crop_pct": 1.0}
    own |= {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.1], "num_classes": classes}
    own |= {"fixed_input_size": "img_size" in arguments, "license": "mit"}
    own |= {key: model.pretrained_cfg[key] for key in ("first_conv", "classifier")}
    config = {"architecture": architecture, "num_classes": classes, "pretrained_cfg": own}
    config |= {"num_features": model.num_features, "model_args": arguments}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8", newline="\n")
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def write_tiny_timm(folder: Path) -> Path:
    """Write a vision transformer without text."""
    sizes = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 2, "num_heads": 4}
    return write_timm(folder, **sizes)
