"""Read a model folder of Hugging Face's transformers as an open_clip model of the same function."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from rmadapter.backbones import hf_clip, hf_siglip
from rmadapter.backbones.build import Unfilled, first_line
from rmadapter.backbones.tokenizer import Tokenizer, load_tokenizer
from rmadapter.errors import UserError
from rmadapter.support.files import JsonObject, read_json
from rmadapter.support.terminal import silenced

RESAMPLING = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
NOT = {"align": "its image encoder, an EfficientNet, is not one of open_clip's"}


class Family(NamedTuple):
    """A model type.

    config: the class of transformers that fills in what config.json leaves out. build(config, file,
    scratch): builds an open_clip model and the settings of its tokenizer; it may write into the
    folder `scratch`, and raises UserError, which names `file`, for what open_clip cannot compute.
    rename(weights): renames weights to open_clip's names. transform: used if the folder has none.
    own: whether the tokenizer is in the folder.
    """

    config: str
    build: Callable[[hf_clip.Config, Path, Path], tuple[nn.Module, JsonObject]]
    rename: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
    transform: Mapping[str, Any] = {}
    own: bool = True


FAMILIES = {
    "clip": Family("CLIPConfig", hf_clip.clip, hf_clip.rename, own=False),
    "metaclip_2": Family("MetaClip2Config", hf_clip.metaclip_2, hf_clip.rename),
    "chinese_clip": Family("ChineseCLIPConfig", hf_clip.chinese_clip, hf_clip.rename_chinese),
    "siglip": Family("SiglipConfig", hf_siglip.siglip, hf_siglip.rename, hf_siglip.TRANSFORM),
    "siglip2": Family("Siglip2Config", hf_siglip.siglip2, hf_siglip.rename, hf_siglip.TRANSFORM),
}


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
    visual: Any = model.visual
    size = visual.image_size[0]
    transform = {**family.transform, **_transform(folder, size, family.transform)}
    open_clip.set_model_preprocess_cfg(model, vars(PreprocessCfg(size=size, **transform)))
    return model, load_tokenizer(name, text, folder if family.own else None)


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
        why = f"{NOT[kind]}; " if kind in list(NOT) else ""
        raise UserError(
            f"{file}: unsupported model type {str(kind)[:100]!r}; {why}supported Hugging Face "
            f"types are {', '.join(FAMILIES)}"
        )
    return str(kind)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):  # large models are sharded
        try:
            weights |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{file}: not a readable safetensors file ({error}); fetch or write it again"
            ) from error
    # old versions stored position_ids
    return {name: one for name, one in weights.items() if not name.endswith("position_ids")}


def _transform(folder: Path, image_size: int, usual: Mapping[str, Any]) -> JsonObject:
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
