"""Build open_clip's SigLIP from Hugging Face's SigLIP and SigLIP 2: a timm trunk that pools by
attention, and a text transformer.

On the hub, SigLIP 2 for one image size also has the type `siglip`. `siglip2` is its NaFlex variant
for images of many shapes; here it takes only squares with as many patches as it has positions,
where both compute the same.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import nn

from rmadapter.backbones.hf_clip import BLOCKS, TEXT, Config, Pair, mlp_ratio, renamed, tower
from rmadapter.errors import UserError
from rmadapter.support.files import JsonObject

TRANSFORM = {
    "mean": (0.5,) * 3,
    "std": (0.5,) * 3,
    "interpolation": "bicubic",
    "resize_mode": "squash",
}
ACTS = {
    "gelu": ("gelu", None),
    "gelu_pytorch_tanh": ("gelu_tanh", {"approximate": "tanh"}),
}  # timm's, open_clip's

VISION: list[Pair] = [
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.trunk.patch_embed.proj."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.trunk.pos_embed"),
    (r"^(vision_model\.encoder\.layers\.\d+)\.layer_norm([12])\.", r"\1.norm\2."),
    (r"^(vision_model\.encoder\.layers\.\d+)\.self_attn\.out_proj\.", r"\1.attn.proj."),
    (
        r"^(vision_model\.encoder\.layers\.\d+)\.self_attn\.([qkv])_proj\.(weight|bias)$",
        r"\1.attn.qkv.\3.\2",
    ),
    (r"^vision_model\.encoder\.layers\.", "visual.trunk.blocks."),
    (r"^vision_model\.post_layernorm\.", "visual.trunk.norm."),
    (r"^vision_model\.head\.probe$", "visual.trunk.attn_pool.latent"),
    (r"^vision_model\.head\.attention\.out_proj\.", "visual.trunk.attn_pool.proj."),
    (r"^vision_model\.head\.layernorm\.", "visual.trunk.attn_pool.norm."),
    (r"^vision_model\.head\.mlp\.", "visual.trunk.attn_pool.mlp."),
]
WORDS: list[Pair] = [
    (pattern, f"text.{name}")
    for pattern, name in [*TEXT, (r"^text_model\.head\.", "text_projection.")]
]


def siglip(config: Config, file: Path, scratch: Path) -> tuple[nn.Module, JsonObject]:
    """Build a SigLIP, as `Family.build` says."""
    return _build(config, file, scratch, config.vision_config.image_size)


def siglip2(config: Config, file: Path, scratch: Path) -> tuple[nn.Module, JsonObject]:
    """Build a SigLIP 2 for square images."""
    patches = config.vision_config.num_patches
    side = math.isqrt(patches)
    if side**2 != patches:
        raise UserError(f"{file}: {patches} patches do not make a square image")
    return _build(config, file, scratch, side * config.vision_config.patch_size)


def rename(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the state of SiglipModel or Siglip2Model to that of open_clip's CustomTextCLIP."""
    image = {name: w for name, w in weights.items() if name.startswith("vision_model.")}
    text = {name: w for name, w in weights.items() if name not in image}
    found = {**renamed(image, VISION), **renamed(text, [*WORDS, *BLOCKS])}
    pool = "visual.trunk.attn_pool"
    for part in ("weight", "bias"):
        joined = found.pop(f"vision_model.head.attention.in_proj_{part}")
        third = len(joined) // 3
        found[f"{pool}.q.{part}"], found[f"{pool}.kv.{part}"] = joined.split([third, 2 * third])
    positions, patches = "visual.trunk.pos_embed", "visual.trunk.patch_embed.proj.weight"
    found[positions] = found[positions][None]
    if found[patches].ndim == 2:  # NaFlex: a linear layer on pixels, row by row, colours last
        side = math.isqrt(found[patches].shape[1] // 3)
        found[patches] = found[patches].unflatten(1, (side, side, 3)).permute(0, 3, 1, 2)
    return {
        name: w.reshape(()) if name in ("logit_scale", "logit_bias") else w
        for name, w in found.items()
    }


def _build(
    config: Config, file: Path, scratch: Path, image_size: int
) -> tuple[nn.Module, JsonObject]:
    import open_clip

    vision, words = config.vision_config, config.text_config
    for act in (vision.hidden_act, words.hidden_act):
        if act not in list(ACTS):
            raise UserError(f"{file}: activation {act}; must be one of {', '.join(ACTS)}")
    if not vision.vision_use_head:
        raise UserError(
            f"{file}: its image encoder has no head, so it gives no features to compare with texts"
        )
    args = {
        "img_size": image_size, "patch_size": vision.patch_size, "embed_dim": vision.hidden_size,
        "depth": vision.num_hidden_layers, "num_heads": vision.num_attention_heads,
        "mlp_ratio": mlp_ratio(vision), "act_layer": ACTS[vision.hidden_act][0],
    }  # fmt: skip
    trunk = {
        "architecture": "vit_base_patch16_siglip_224", "num_classes": 0, "model_args": args,
        "pretrained_cfg": {"input_size": [3, image_size, image_size], "num_classes": 0},
    }  # fmt: skip
    (scratch / "config.json").write_text(json.dumps(trunk))
    image = {
        "timm_model_name": f"local-dir:{scratch}", "timm_model_pretrained": False,
        "timm_pool": "map", "timm_proj": "none", "image_size": image_size,
    }  # fmt: skip
    text = {
        **tower(words), "heads": words.num_attention_heads, "vocab_size": words.vocab_size,
        "context_length": words.max_position_embeddings, "no_causal_mask": True, "proj_bias": True,
        "pool_type": "last", "act_kwargs": ACTS[words.hidden_act][1],
    }  # fmt: skip
    model = open_clip.CustomTextCLIP(words.projection_size, image, text, init_logit_bias=0.0)
    for module in model.visual.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = vision.layer_norm_eps
    return model, {"context_length": text["context_length"]}
