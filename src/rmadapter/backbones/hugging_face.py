"""Read a model folder of Hugging Face's transformers as an open_clip model of the same function.

CLIP and its variants become open_clip's CLIP, or its CustomTextCLIP with a BERT. SigLIP becomes a
timm trunk that pools by attention, and a text transformer. On the hub, SigLIP 2 for one image size
also has the type `siglip`. `siglip2` is its NaFlex variant for images of many shapes; here it takes
only squares with as many patches as it has positions, where both compute the same.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from rmadapter.backbones.build import Tokenizer, Unfilled, first_line, load_tokenizer
from rmadapter.errors import UserError
from rmadapter.support.files import JsonObject, read_json
from rmadapter.support.terminal import silenced

RESAMPLING = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
UNSUPPORTED_TYPES = {"align": "its image encoder, an EfficientNet, is not one of open_clip's"}
Pair = tuple[str, str]
Config: TypeAlias = Any  # of transformers: each class has other attributes
Weights = dict[str, Tensor]
Built = tuple[nn.Module, JsonObject]  # an open_clip model and the settings of its tokenizer


class Family(NamedTuple):
    """A model type.

    Attributes:
        config: Class of transformers that fills in what config.json leaves out.
        build: Function from a config, its file and a folder that it may write into to an open_clip
            model and the settings of its tokenizer. It raises UserError, which names the file, for
            what open_clip cannot compute.
        rename: Function from weights to the same by open_clip's names.
        transform: Transform if the folder has none.
        own_tokenizer: Whether the tokenizer is in the folder.
    """

    config: str
    build: Callable[[Config, Path, Path], Built]
    rename: Callable[[Weights], Weights]
    transform: Mapping[str, object] = {}
    own_tokenizer: bool = True


def load_hf(name: str, folder: Path) -> tuple[nn.Module, Tokenizer]:
    """Load the model and tokenizer of a folder with `config.json` (a model type of FAMILIES) and
    safetensors weights.

    Raises UserError if the folder is of another kind, if its weights are damaged or do not fit, or
    if it uses something that open_clip cannot compute.
    """
    import open_clip
    import transformers
    from open_clip.transform import PreprocessCfg

    file = folder / "config.json"
    family = FAMILIES[_kind(folder)]
    kind = getattr(transformers, family.config)
    config = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with (
        tempfile.TemporaryDirectory() as scratch,
        torch.random.fork_rng(devices=[]),
        silenced(),
        Unfilled(),
    ):
        model, text = family.build(config, file, Path(scratch))
    try:
        model.load_state_dict(family.rename(_weights(folder)))
    except (RuntimeError, KeyError) as error:
        raise UserError(
            f"{folder}: the weights do not fit its config.json: {first_line(error)}"
        ) from error
    size = int(model.get_submodule("visual").image_size[0])  # type: ignore[index]
    transform = {**family.transform, **_transform(folder, size, family.transform)}
    open_clip.set_model_preprocess_cfg(model, vars(PreprocessCfg(size=size, **transform)))
    return model, load_tokenizer(name, text, folder if family.own_tokenizer else None)


def _kind(folder: Path) -> str:
    file = folder / "config.json"
    try:
        kind = read_json(file).get("model_type")
    except (UserError, AttributeError) as error:
        raise UserError(
            f"{folder} is not a model folder: it needs an open_clip_config.json, or the "
            f"config.json of a Hugging Face model ({type(error).__name__})"
        ) from None
    if kind not in list(FAMILIES):
        why = f"{UNSUPPORTED_TYPES[kind]}; " if kind in list(UNSUPPORTED_TYPES) else ""
        raise UserError(
            f"{file}: unsupported model type {str(kind)[:100]!r}; {why}supported Hugging Face "
            f"types are {', '.join(FAMILIES)}"
        )
    return str(kind)


def _weights(folder: Path) -> Weights:
    from safetensors.torch import load_file

    weights: Weights = {}
    for file in sorted(folder.glob("model*.safetensors")):  # large models are sharded
        weights |= load_file(file)  # whose headers `check_numbers` has read
    # old versions stored position_ids
    return {name: one for name, one in weights.items() if not name.endswith("position_ids")}


def _transform(folder: Path, image_size: int, usual: Mapping[str, object]) -> JsonObject:
    """Return preprocessor_config.json, or its part of processor_config.json, as open_clip's
    settings; empty if there is neither."""
    file = folder / "preprocessor_config.json"
    inside = not file.is_file()
    if inside:
        file = folder / "processor_config.json"  # where transformers 5 saves it
        if not file.is_file():
            return {}
    try:
        values = read_json(file)["image_processor"] if inside else read_json(file)
        transform = {
            "mean": tuple(values["image_mean"]),
            "std": tuple(values["image_std"]),
            "interpolation": RESAMPLING[values.get("resample", 3)],
        }
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{file}: not a readable image transform ({type(error).__name__}: {error})"
        ) from None
    size = values.get("size", image_size)
    edges = set(size.values()) if isinstance(size, dict) else {size}
    if edges != {image_size}:
        raise UserError(f"{file}: images are resized to {size}, but config.json says {image_size}")
    squash = usual.get("resize_mode") == "squash"
    if isinstance(size, dict):
        squash = "shortest_edge" not in size
    return {**transform, "resize_mode": "squash" if squash else "shortest"}


# CLIP

CLIP_VOCABULARY = 49408
CHINESE_CONTEXT = 52  # tokens that Chinese-CLIP was trained with; its BERT has room for more

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
TRANSPOSED = ("text_projection", "visual.proj")  # x @ W in open_clip, else a linear layer


def _clip(config: Config, file: Path, scratch: Path) -> Built:
    """Build a CLIP, as `Family.build` says."""
    if config.text_config.vocab_size != CLIP_VOCABULARY:
        raise UserError(
            f"{file}: a vocabulary of {config.text_config.vocab_size}; only CLIP's, of "
            f"{CLIP_VOCABULARY}, is supported"
        )
    return _build_clip(config, file)


def _metaclip_2(config: Config, file: Path, scratch: Path) -> Built:
    """Build a multilingual CLIP, which reads the first end-of-text token, whatever its number."""
    return _build_clip(config, file, pool_type="eos", eos_id=config.text_config.eos_token_id)


def _chinese_clip(config: Config, file: Path, scratch: Path) -> Built:
    """Build a CLIP with a BERT for text, which is read at its first token."""
    import open_clip

    from rmadapter.backbones.importing import import_needed

    text = config.text_config
    (scratch / "config.json").write_text(
        json.dumps({**text.to_dict(), "model_type": "bert"}), newline="\n", encoding="utf-8"
    )
    named = {"hf_model_name": str(scratch), "hf_model_pretrained": False, "hf_proj_type": "linear"}
    named["hf_pooler_type"] = "cls_last_hidden_state_pooler"
    import_needed({"text_cfg": named})
    quick_gelu = _quick_gelu(file, config.vision_config)
    model = open_clip.CustomTextCLIP(
        config.projection_dim, _vision(config.vision_config), named, quick_gelu
    )
    return model, {"context_length": min(CHINESE_CONTEXT, text.max_position_embeddings)}


def _renamed(weights: Weights, names: Sequence[Pair]) -> Weights:
    """Return weights under open_clip's names.

    Args:
        weights: Tensors by Hugging Face's names.
        names: Patterns with what replaces them, in turn; then tensors whose names end in .q, .k and
            .v are joined.
    """
    renamed = {}
    for name, tensor in weights.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor.T if name in TRANSPOSED else tensor
    for name in [name for name in renamed if name.endswith(".q")]:
        joined = name.removesuffix(".q")
        renamed[joined] = torch.cat([renamed.pop(f"{joined}.{part}") for part in "qkv"])
    return renamed


def _tower(config: Config) -> JsonObject:
    """Return the sizes of a transformer, as in open_clip's configurations."""
    return {
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "mlp_ratio": _mlp_ratio(config),
        "norm_kwargs": {"eps": config.layer_norm_eps},
    }


def _mlp_ratio(config: Config) -> float:
    """Return a ratio for which int(ratio * width) is exactly the MLP's width."""
    return float((config.intermediate_size + 0.5) / config.hidden_size)


def _vision(config: Config) -> JsonObject:
    """Return open_clip's `vision_cfg`."""
    return {
        **_tower(config),
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "head_width": config.hidden_size // config.num_attention_heads,
    }


def _build_clip(config: Config, file: Path, **pooling: str | int) -> Built:
    import open_clip

    text = {
        **_tower(config.text_config),
        "heads": config.text_config.num_attention_heads,
        "context_length": config.text_config.max_position_embeddings,
        "vocab_size": config.text_config.vocab_size,
        **pooling,
    }
    quick_gelu = _quick_gelu(file, config.vision_config, config.text_config)
    return open_clip.CLIP(
        config.projection_dim, _vision(config.vision_config), text, quick_gelu
    ), text


def _quick_gelu(file: Path, *towers: Config) -> bool:
    acts = [tower.hidden_act for tower in towers]
    if len(set(acts)) > 1 or acts[0] not in ("quick_gelu", "gelu"):
        names = " and ".join(map(str, acts))
        raise UserError(f"{file}: activations {names}; all must be quick_gelu, or all gelu")
    return bool(acts[0] == "quick_gelu")


# SigLIP

SIGLIP_TRANSFORM = {
    "mean": (0.5,) * 3,
    "std": (0.5,) * 3,
    "interpolation": "bicubic",
    "resize_mode": "squash",
}
# activations of Hugging Face -> timm's name, open_clip's settings
ACTS = {"gelu": ("gelu", None), "gelu_pytorch_tanh": ("gelu_tanh", {"approximate": "tanh"})}

SIGLIP_VISION: list[Pair] = [
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
SIGLIP_TEXT: list[Pair] = [
    (pattern, f"text.{name}")
    for pattern, name in [*TEXT, (r"^text_model\.head\.", "text_projection.")]
]


def _siglip(config: Config, file: Path, scratch: Path) -> Built:
    """Build a SigLIP, as `Family.build` says."""
    return _build_siglip(config, file, scratch, config.vision_config.image_size)


def _siglip2(config: Config, file: Path, scratch: Path) -> Built:
    """Build a SigLIP 2 for square images."""
    patches = config.vision_config.num_patches
    side = math.isqrt(patches)
    if side**2 != patches:
        raise UserError(f"{file}: {patches} patches do not make a square image")
    return _build_siglip(config, file, scratch, side * config.vision_config.patch_size)


def _rename_siglip(weights: Weights) -> Weights:
    """Rename the state of SiglipModel or Siglip2Model to that of open_clip's CustomTextCLIP."""
    image = {name: w for name, w in weights.items() if name.startswith("vision_model.")}
    text = {name: w for name, w in weights.items() if name not in image}
    renamed = {**_renamed(image, SIGLIP_VISION), **_renamed(text, [*SIGLIP_TEXT, *BLOCKS])}
    pool = "visual.trunk.attn_pool"
    for part in ("weight", "bias"):
        joined = renamed.pop(f"vision_model.head.attention.in_proj_{part}")
        third = len(joined) // 3
        renamed[f"{pool}.q.{part}"], renamed[f"{pool}.kv.{part}"] = joined.split([third, 2 * third])
    positions, patches = "visual.trunk.pos_embed", "visual.trunk.patch_embed.proj.weight"
    renamed[positions] = renamed[positions][None]
    if renamed[patches].ndim == 2:  # NaFlex: a linear layer on pixels, row by row, colours last
        side = math.isqrt(renamed[patches].shape[1] // 3)
        renamed[patches] = renamed[patches].unflatten(1, (side, side, 3)).permute(0, 3, 1, 2)
    return {
        name: w.reshape(()) if name in ("logit_scale", "logit_bias") else w
        for name, w in renamed.items()
    }


def _build_siglip(config: Config, file: Path, scratch: Path, image_size: int) -> Built:
    import open_clip

    from rmadapter.backbones.importing import import_needed

    vision, words = config.vision_config, config.text_config
    for act in (vision.hidden_act, words.hidden_act):
        if act not in list(ACTS):
            raise UserError(f"{file}: activation {act}; must be one of {', '.join(ACTS)}")
    if not getattr(vision, "vision_use_head", True):  # transformers 5.20 and older leave it out
        raise UserError(
            f"{file}: its image encoder has no head, so it gives no features to compare with texts"
        )
    args = {
        "img_size": image_size, "patch_size": vision.patch_size, "embed_dim": vision.hidden_size,
        "depth": vision.num_hidden_layers, "num_heads": vision.num_attention_heads,
        "mlp_ratio": _mlp_ratio(vision), "act_layer": ACTS[vision.hidden_act][0],
    }  # fmt: skip
    trunk = {
        "architecture": "vit_base_patch16_siglip_224", "num_classes": 0, "model_args": args,
        "pretrained_cfg": {"input_size": [3, image_size, image_size], "num_classes": 0},
    }  # fmt: skip
    (scratch / "config.json").write_text(json.dumps(trunk), newline="\n", encoding="utf-8")
    image = {
        "timm_model_name": f"local-dir:{scratch}", "timm_model_pretrained": False,
        "timm_pool": "map", "timm_proj": "none", "image_size": image_size,
    }  # fmt: skip
    text = {
        **_tower(words), "heads": words.num_attention_heads, "vocab_size": words.vocab_size,
        "context_length": words.max_position_embeddings, "no_causal_mask": True, "proj_bias": True,
        "pool_type": "last", "act_kwargs": ACTS[words.hidden_act][1],
    }  # fmt: skip
    import_needed({"vision_cfg": image})
    model = open_clip.CustomTextCLIP(words.projection_size, image, text, init_logit_bias=0.0)
    for module in model.visual.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = vision.layer_norm_eps
    return model, {"context_length": text["context_length"]}


_rename_clip = partial(_renamed, names=[*TEXT, *VISION, *BLOCKS])
_rename_chinese = partial(_renamed, names=[*BERT, *VISION, *BLOCKS])
FAMILIES = {
    "clip": Family("CLIPConfig", _clip, _rename_clip, own_tokenizer=False),
    "metaclip_2": Family("MetaClip2Config", _metaclip_2, _rename_clip),
    "chinese_clip": Family("ChineseCLIPConfig", _chinese_clip, _rename_chinese),
    "siglip": Family("SiglipConfig", _siglip, _rename_siglip, SIGLIP_TRANSFORM),
    "siglip2": Family("Siglip2Config", _siglip2, _rename_siglip, SIGLIP_TRANSFORM),
}
