"""Build open_clip's CLIP from Hugging Face's, also from variants with another text encoder."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from rmadapter.errors import UserError
from rmadapter.support.files import JsonObject

CLIP_VOCABULARY = 49408
CHINESE_CONTEXT = 52  # tokens that Chinese-CLIP was trained with; its BERT has room for more
Pair = tuple[str, str]
Config: TypeAlias = Any  # of transformers: each class has other attributes

# Names in Hugging Face's models -> names in open_clip's; the three projections of attention are
# joined below.
BLOCKS: list[Pair] = [
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.self_attn\.([qkv])_proj\.(weight|bias)$", r".attn.in_proj_\2.\1"),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
]
TEXT: list[Pair] = [
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_projection\.weight$", "text_projection"),
]
VISION: list[Pair] = [
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^visual_projection\.weight$", "visual.proj"),
]
BERT: list[Pair] = [(r"^text_model\.", "text.transformer."), (r"^text_projection\.", "text.proj.")]
TRANSPOSED = (
    "text_projection",
    "visual.proj",
)  # x @ W in open_clip, a linear layer in Hugging Face


def clip(config: Config, file: Path, scratch: Path) -> tuple[nn.Module, JsonObject]:
    """Build a CLIP, as `Family.build` says."""
    if config.text_config.vocab_size != CLIP_VOCABULARY:
        raise UserError(
            f"{file}: a vocabulary of {config.text_config.vocab_size}; only CLIP's, of "
            f"{CLIP_VOCABULARY}, is supported"
        )
    return _clip(config, file)


def metaclip_2(config: Config, file: Path, scratch: Path) -> tuple[nn.Module, JsonObject]:
    """Build a multilingual CLIP, which reads the first end-of-text token, whatever its number."""
    return _clip(config, file, pool_type="eos", eos_id=config.text_config.eos_token_id)


def chinese_clip(config: Config, file: Path, scratch: Path) -> tuple[nn.Module, JsonObject]:
    """Build a CLIP with a BERT for text, which is read at its first token."""
    import open_clip

    text = config.text_config
    (scratch / "config.json").write_text(json.dumps({**text.to_dict(), "model_type": "bert"}))
    named = {"hf_model_name": str(scratch), "hf_model_pretrained": False, "hf_proj_type": "linear"}
    named["hf_pooler_type"] = "cls_last_hidden_state_pooler"
    quick_gelu = _quick_gelu(file, config.vision_config)
    model = open_clip.CustomTextCLIP(
        config.projection_dim, vision(config.vision_config), named, quick_gelu
    )
    return model, {"context_length": min(CHINESE_CONTEXT, text.max_position_embeddings)}


def rename(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the state of Hugging Face's CLIPModel to that of open_clip's CLIP."""
    return renamed(weights, [*TEXT, *VISION, *BLOCKS])


def rename_chinese(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the state of ChineseCLIPModel to that of open_clip's CustomTextCLIP."""
    return renamed(weights, [*BERT, *VISION, *BLOCKS])


def renamed(weights: dict[str, torch.Tensor], names: Sequence[Pair]) -> dict[str, torch.Tensor]:
    """Replace the patterns in turn, then join names that end in .q, .k and .v."""
    found = {}
    for name, tensor in weights.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        found[name] = tensor.T if name in TRANSPOSED else tensor
    for name in [name for name in found if name.endswith(".q")]:
        joined = name.removesuffix(".q")
        found[joined] = torch.cat([found.pop(f"{joined}.{part}") for part in "qkv"])
    return found


def tower(config: Config) -> JsonObject:
    """Return the sizes of a transformer, as in open_clip's configurations."""
    return {
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "mlp_ratio": mlp_ratio(config),
        "norm_kwargs": {"eps": config.layer_norm_eps},
    }


def mlp_ratio(config: Config) -> float:
    """Return a ratio for which int(ratio * width) is exactly the MLP's width."""
    return float((config.intermediate_size + 0.5) / config.hidden_size)


def vision(config: Config) -> JsonObject:
    """Return open_clip's `vision_cfg`."""
    return {
        **tower(config),
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "head_width": config.hidden_size // config.num_attention_heads,
    }


def _clip(config: Config, file: Path, **pooling: Any) -> tuple[nn.Module, JsonObject]:
    import open_clip

    text = {
        **tower(config.text_config),
        "heads": config.text_config.num_attention_heads,
        "context_length": config.text_config.max_position_embeddings,
        "vocab_size": config.text_config.vocab_size,
        **pooling,
    }
    quick_gelu = _quick_gelu(file, config.vision_config, config.text_config)
    return open_clip.CLIP(
        config.projection_dim, vision(config.vision_config), text, quick_gelu
    ), text


def _quick_gelu(file: Path, *towers: Any) -> bool:
    acts = [one.hidden_act for one in towers]
    if len(set(acts)) > 1 or acts[0] not in ("quick_gelu", "gelu"):
        names = " and ".join(map(str, acts))
        raise UserError(f"{file}: activations {names}; all must be quick_gelu, or all gelu")
    return bool(acts[0] == "quick_gelu")
