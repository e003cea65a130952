"""Check a model folder before any library reads it, so that no folder can run code.

open_clip passes its configuration on to transformers and timm, which can import Python files that a
folder names, or follow a name into another folder or repository. Only known fields and known names
get through here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from rmadapter.errors import UserError, did_you_mean
from rmadapter.support.files import MAX_TEXT_BYTES, JsonObject, read_json, walk

CONFIG = "open_clip_config.json"
CODE_SUFFIXES = (".py", ".pyc", ".pyd", ".so", ".dll", ".dylib")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
# For these fields transformers imports or fetches code, in whatever file they are (CVE-2026-4372).
CODE_FIELDS = [
    "auto_map",
    "trust_remote_code",
    "custom_pipelines",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
    "_experts_implementation",
    "_experts_implementation_internal",
]
TOKENIZER_CLASS = re.compile(r"\w*Tokenizer(Fast)?|TokenizersBackend")

_BLOCKS = """layers width mlp_ratio ls_init_value final_ln_after_pool pool_type output_tokens
    act_kwargs norm_kwargs block_type qk_norm scaled_cosine_attn scale_heads scale_attn_inner
    scale_attn scale_fc """
_FIELDS = {
    "": "model_cfg preprocess_cfg",
    "model_cfg": """embed_dim vision_cfg text_cfg quick_gelu custom_text init_logit_scale
        init_logit_bias nonscalar_logit_scale output_dict multimodal_cfg""",
    "model_cfg.multimodal_cfg": _BLOCKS
    + "context_length vocab_size heads dim_head n_queries attn_pooler_heads",
    "model_cfg.vision_cfg": _BLOCKS
    + """head_width patch_size image_size patch_dropout attentional_pool attn_pooler_queries
        attn_pooler_heads no_ln_pre pos_embed_type timm_model_name timm_model_pretrained timm_pool
        timm_proj timm_proj_bias timm_drop timm_drop_path""",
    "model_cfg.text_cfg": _BLOCKS
    + """context_length vocab_size heads embed_cls pad_id eos_id no_causal_mask proj_bias proj_type
        hf_model_name hf_model_pretrained hf_proj_type hf_pooler_type hf_tokenizer_name
        tokenizer_mode tokenizer_kwargs""",
    "model_cfg.text_cfg.tokenizer_kwargs": """clean strip_sep_token language
        additional_special_tokens""",
    "preprocess_cfg": "size mode mean std interpolation resize_mode fill_color",
}
for _side in ("vision_cfg", "text_cfg"):
    _FIELDS |= {
        f"model_cfg.{_side}.act_kwargs": "approximate",
        f"model_cfg.{_side}.norm_kwargs": "eps",
    }
KNOWN = {place: frozenset(names.split()) for place, names in _FIELDS.items()}


def how_to_convert(file: Path, architecture: str = "NAME") -> str:
    """Return what to do with a pickle."""
    return (
        "opening a pickle can run any code in it; convert it with a reader that accepts only "
        f"tensors: rmadapter backbones convert {file} --architecture {architecture} --out FOLDER"
    )


def check_folder(folder: Path, *, pickles: bool = True) -> None:
    """Raise UserError for the first of `findings`."""
    for finding in findings(folder, pickles=pickles):
        raise UserError(finding)


def findings(folder: Path, *, pickles: bool = True) -> Iterator[str]:
    """Yield a sentence for each file that is code, asks for code, is a pickle (if `pickles`), is no
    plain file, or leads out of the folder.

    The Hugging Face cache links its snapshots to blobs of the same cache; no other link may leave
    the folder.
    """
    root = folder.resolve()
    roots = [root]
    if root.parent.name == "snapshots":  # blobs of the repository, and of the cache
        roots += [root.parents[1] / "blobs", root.parents[2] / "blobs"]
    for place, folders, files in walk(root):
        for name in sorted((*folders, *files)):
            path = Path(place, name)
            shown, real, kind = folder / path.relative_to(root), path.resolve(), path.suffix.lower()
            if not any(real.is_relative_to(one) for one in roots):
                yield f"{shown} leads out of its folder, to {real}; put the file itself there"
            elif real.is_dir():
                continue
            elif not real.is_file():
                yield f"{shown} is not a plain file; remove it from the folder"
            elif kind in CODE_SUFFIXES:
                yield f"{shown} is code, which a model folder may not hold; remove it"
            elif kind in PICKLE_SUFFIXES and pickles:
                how = how_to_convert(shown)
                yield f"{shown} is a pickle, which is never read; remove it ({how})"
            elif kind == ".json":
                yield from _asks_for_code(path, shown)


def _asks_for_code(file: Path, shown: Path) -> Iterator[str]:
    """Yield a sentence if a JSON file cannot be read or has a field that asks to run code."""
    asking: list[str] = []

    def look(fields: dict[str, object]) -> dict[str, object]:
        for name in (*CODE_FIELDS, "tokenizer_class"):
            value = fields.get(name)
            # a number: the field is a word of a vocabulary
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            known = name == "tokenizer_class" and isinstance(value, str)
            if value and not number and not (known and TOKENIZER_CLASS.fullmatch(str(value))):
                asking.append(name)
        return fields

    try:
        if file.stat().st_size > MAX_TEXT_BYTES:
            raise ValueError
        json.loads(file.read_text(encoding="utf-8"), object_hook=look)
    except (OSError, ValueError, RecursionError) as error:
        yield f"{shown}: not readable JSON ({type(error).__name__})"
    if asking:
        yield f"{shown}: its field {asking[0]!r} asks to run code; use a model that needs none"


def check_config(folder: Path) -> JsonObject:
    """Return the `model_cfg` of open_clip_config.json. Raises UserError for unknown fields and for
    names that lead out of the folder."""
    file = folder / CONFIG
    config = read_json(file)
    _check_fields(file, config)
    section = config.get("model_cfg") if isinstance(config, dict) else None
    model: JsonObject = section if isinstance(section, dict) else {}
    if not all(isinstance(model.get(side), dict) for side in ("vision_cfg", "text_cfg")):
        raise UserError(f"{file}: a model_cfg with a vision_cfg and a text_cfg is missing")
    _check_vision(file, model["vision_cfg"].get("timm_model_name"))
    _check_text(file, model["text_cfg"].get("hf_model_name"))
    return model


def _check_fields(file: Path, value: object, place: str = "") -> None:
    if place and isinstance(value, list) and any(isinstance(part, (dict, list)) for part in value):
        raise UserError(f"{file}: {place} must be a list of plain values")
    if not isinstance(value, dict):
        return
    if place not in KNOWN:
        raise UserError(f"{file}: {place} must be a plain value, not a table")
    for name, part in value.items():
        inner = f"{place}.{name}".lstrip(".")
        if name not in KNOWN[place]:
            hint = did_you_mean(name, KNOWN[place])
            raise UserError(f"{file}: {inner[:100]!r} is not a field passed on to open_clip{hint}")
        _check_fields(file, part, inner)


def _check_vision(file: Path, name: object) -> None:
    """Check that a name is one of timm's, or `local-dir:` with a folder inside this one."""
    if name is None:
        return
    source, colon, place = str(name).partition(":")
    inside = colon and source.lower() == "local-dir" and _inside(file.parent, place)
    if not inside and not (isinstance(name, str) and re.fullmatch(r"[\w.\-]+", name)):
        raise UserError(f"{file}: timm_model_name leads out of the folder, to {str(name)[:200]!r}")


def _check_text(file: Path, name: object) -> None:
    """Check that a name is one of open_clip's, or a folder inside this one with a text encoder that
    open_clip supports."""
    if not name:
        return
    accepted = isinstance(name, str) and (
        _inside(file.parent, name) or is_plain(name, "hf_model_name")
    )
    if not accepted:
        raise UserError(f"{file}: hf_model_name leads out of the folder, to {str(name)[:200]!r}")
    folder = Path(str(name))
    if folder.is_dir():
        import open_clip

        arch_dict = open_clip.hf_configs.arch_dict
        config = read_json(folder / "config.json")
        kind = config.get("model_type") if isinstance(config, dict) else None
        if kind not in list(arch_dict):
            raise UserError(
                f"{folder / 'config.json'}: model_type {str(kind)[:100]!r} is not a text encoder; "
                f"known are {', '.join(arch_dict)}"
            )


def check_hub_names(model: JsonObject) -> None:
    """Raise UserError if a local path has the name of the hub's repository that an architecture
    needs, as libraries would read the path."""
    for field in ("hf_model_name", "hf_tokenizer_name"):
        name = model["text_cfg"].get(field)
        if name and os.path.exists(name):
            raise UserError(
                f"{Path(name).absolute()} would be read instead of the hub's {name!r}; run this in "
                "another folder"
            )


def is_plain(name: str, field: str) -> bool:
    """Return whether open_clip's configurations have this name in this field, and it is no path
    here."""
    return name in _names(field) and not os.path.exists(name)


@cache
def _names(field: str) -> frozenset[str]:
    import open_clip

    texts = [open_clip.get_model_config(name)["text_cfg"] for name in open_clip.list_models()]
    return frozenset(text[field] for text in texts if text.get(field))


def _inside(folder: Path, place: str) -> bool:
    """Return whether a path, as a library would open it, is a folder at or below `folder`."""
    return os.path.isdir(place) and Path(place).resolve().is_relative_to(folder.resolve())
