"""Read a Hugging Face CLIP folder into open_clip's CLIP, which computes the same function."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rmadapter.backbones.tokenizer import Tokenizer, load_tokenizer
from rmadapter.errors import UserError
from rmadapter.files import read_json

CLIP_VOCABULARY = 49408
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers

# Names in Hugging Face's CLIPModel -> names in open_clip's CLIP; the three projections of attention are joined below.
RENAMES = [
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_projection\.weight$", "text_projection"),
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^visual_projection\.weight$", "visual.proj"),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.self_attn\.([qkv])_proj\.(weight|bias)$", r".attn.in_proj_\2.\1"),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
]
TRANSPOSED = ("text_projection", "visual.proj")  # x @ W in open_clip, a linear layer in Hugging Face


def load_hf_clip(name: str, folder: Path) -> tuple[nn.Module, Tokenizer]:
    """Model and tokenizer of a folder with `config.json` (model type clip) and safetensors weights.

    Raises UserError when the folder is of another kind, its weights are damaged or do not fit, or it uses something
    that open_clip's CLIP cannot compute.
    """
    import open_clip
    from open_clip.transform import PreprocessCfg
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = _config(folder)
    with torch.random.fork_rng(devices=[]):
        model = open_clip.CLIP(**config)
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):  # large models are sharded
        try:
            weights |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: not a readable safetensors file ({error}); fetch or write it again") from error
    try:
        model.load_state_dict(rename(weights))
    except (RuntimeError, KeyError) as error:
        raise UserError(
            f"{folder}: the weights do not fit its config.json: {' '.join(str(error).split())[:300]}"
        ) from error
    size = config["vision_cfg"]["image_size"]
    open_clip.set_model_preprocess_cfg(model, vars(PreprocessCfg(size=size, **_transform(folder, size))))
    return model, load_tokenizer(name, config["text_cfg"])


def rename(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state of Hugging Face's CLIPModel as that of open_clip's CLIP."""
    renamed = {}
    for name, tensor in weights.items():
        if name.endswith("position_ids"):  # a constant that old versions saved
            continue
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor.T if name in TRANSPOSED else tensor
    for name in [name for name in renamed if name.endswith(".q")]:
        joined = name.removesuffix(".q")
        renamed[joined] = torch.cat([renamed.pop(f"{joined}.{part}") for part in "qkv"])
    return renamed


def _config(folder: Path) -> dict[str, Any]:
    """config.json as the arguments of open_clip's CLIP."""
    file = folder / "config.json"
    try:
        kind = read_json(file).get("model_type")
    except (UserError, AttributeError) as error:
        raise UserError(
            f"{folder} is no model folder: it needs an open_clip_config.json, or the config.json of a Hugging Face "
            f"CLIP ({type(error).__name__})"
        ) from None
    if kind != "clip":
        raise UserError(f"{file}: model type {kind!r}; of Hugging Face's models only 'clip' can be read")
    from transformers import CLIPConfig

    # transformers knows the values that the file leaves out
    config: Any = CLIPConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    text, vision = config.text_config, config.vision_config
    if text.vocab_size != CLIP_VOCABULARY:
        raise UserError(f"{file}: a vocabulary of {text.vocab_size}; only CLIP's own of {CLIP_VOCABULARY} can be read")
    if text.hidden_act != vision.hidden_act or text.hidden_act not in ("quick_gelu", "gelu"):
        raise UserError(
            f"{file}: activations {vision.hidden_act} and {text.hidden_act}; both must be quick_gelu or gelu"
        )
    return {
        "embed_dim": config.projection_dim,
        "quick_gelu": text.hidden_act == "quick_gelu",
        "vision_cfg": {
            **_tower(vision),
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
        },
        "text_cfg": {
            **_tower(text),
            "heads": text.num_attention_heads,
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
        },
    }


def _tower(config: Any) -> dict[str, Any]:
    return {
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "mlp_ratio": config.intermediate_size / config.hidden_size,
        "norm_kwargs": {"eps": config.layer_norm_eps},
    }


def _transform(folder: Path, image_size: int) -> dict[str, Any]:
    """preprocessor_config.json in open_clip's words; CLIP's own transform when there is none."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        transform = {
            "mean": tuple(values["image_mean"]),
            "std": tuple(values["image_std"]),
            "interpolation": RESAMPLING[values.get("resample", 3)],
        }
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not a readable image transform ({type(error).__name__}: {error})") from None
    size = values.get("size", image_size)
    edges = set(size.values()) if isinstance(size, dict) else {size}
    if edges != {image_size}:
        raise UserError(f"{file}: images are resized to {size}, but config.json says {image_size}")
    squash = isinstance(size, dict) and "shortest_edge" not in size
    return {**transform, "resize_mode": "squash" if squash else "shortest"}
