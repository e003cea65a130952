"""Image encoders of timm as backbones without text, for methods that read image features alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from rmadapter.backbones.backbone import Backbone
from rmadapter.backbones.build import Tokenizer, Unfilled, as_backbone, first_line
from rmadapter.backbones.names import NO_WEIGHTS, TimmName, check_timm
from rmadapter.backbones.numbers import SLACK, check_numbers, read_headers
from rmadapter.backbones.trust import check_folder
from rmadapter.errors import UserError, did_you_mean
from rmadapter.support.files import JsonObject, read_json, user_path
from rmadapter.support.machine import seeded
from rmadapter.support.terminal import silenced

CONFIG, WEIGHTS = "config.json", "model.safetensors"  # of timm, in a folder and on the hub
SCALE = 100.0  # of cosines in logits, CLIP's largest; folds calibrate the probabilities
MODES = {"squash": "squash", "border": "longest"}  # timm's crop_mode -> open_clip's resize_mode
# what config.json may say of a model, by the names of timm; its `model_args` reach the constructor
SHAPES = (
    "img_size", "patch_size", "in_chans", "embed_dim", "embed_dims", "depth", "depths", "num_heads",
    "mlp_ratio", "mlp_ratios", "dims", "init_values", "class_token", "reg_tokens",
    "no_embed_class", "pre_norm", "qkv_bias", "qk_norm", "window_size", "dynamic_img_size",
    "fc_norm", "ls_init_value",
)  # fmt: skip
FROM_CONFIG = (
    "input_size", "fixed_input_size", "interpolation", "crop_mode", "mean", "std", "num_classes",
    "first_conv", "classifier", "license",
)  # fmt: skip


class ImageOnly(nn.Module):
    """An image encoder in the place of a CLIP-like model. visual: pixels [B, 3, H, W] -> features
    [B, e], with its `preprocess_cfg`, as open_clip's encoders have it."""

    logit_scale: Tensor

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual
        self.register_buffer("logit_scale", torch.tensor(math.log(SCALE)), persistent=False)


def is_timm_folder(folder: Path) -> bool:
    """Return whether a folder holds a model in timm's form."""
    file = folder / CONFIG
    config = read_json(file) if file.is_file() else None
    return isinstance(config, dict) and "architecture" in config


def load_image_only(name: str, fetch: Callable[[str, str], Path]) -> Backbone:
    """Load `timm:NAME.TAG`, `timm:NAME/FILE.safetensors`, `timm:NAME/none` or `timm:FOLDER`; @SIZE
    at the end sets the side of the images.

    fetch: repository and file on the hub -> the file here. Raises UserError as `load_backbone`.
    """
    parts = TimmName.of(name)
    if parts.folder:
        return from_timm_folder(name, parts.folder, parts.size)
    with silenced():
        import timm
    check_timm(name, parts, timm.list_models())
    architecture, tag = parts.architecture, parts.tag
    if tag == NO_WEIGHTS or tag.endswith(".safetensors"):
        facts = _known(architecture)
        file = None if tag == NO_WEIGHTS else user_path(tag)
        return _backbone(name, _built(name, architecture, facts, file, {}, parts.size))
    tags = [one.partition(".")[2] for one in timm.list_pretrained(f"{architecture}.*")]
    facts = _known(f"{architecture}.{tag}") if tag in tags else {}
    if not facts.get("hf_hub_id"):
        raise UserError(
            f"backbone {name!r}: timm has no weights {tag!r} for {architecture} on the hub"
            f"{did_you_mean(tag, tags)}; it has {', '.join(tags) or 'none'}"
        )
    file = fetch(facts["hf_hub_id"], _safetensors(facts.get("hf_hub_filename")))
    return _backbone(name, _built(name, architecture, facts, file, {}, parts.size))


def _known(name: str) -> JsonObject:
    """Return what timm's table says of an architecture, or of its weights NAME.TAG; nothing if it
    is not there."""
    import timm

    config = timm.get_pretrained_cfg(name)
    return asdict(config) if config else {}


def licence_of_timm(name: str) -> str:
    """Return the licence that timm's table gives to the weights of a name, "" if none."""
    parts = TimmName.of(name)
    known = f"{parts.architecture}.{parts.tag}"
    with silenced():
        import timm
    return (_known(known).get("license") or "") if known in timm.list_pretrained() else ""


def is_published_timm(name: str) -> bool:
    """Return whether a name with the prefix alone determines the weights."""
    parts = TimmName.of(name)
    if parts.folder or parts.tag.endswith(".safetensors"):
        return False
    with silenced():
        import timm
    if parts.tag == NO_WEIGHTS:
        return parts.architecture in timm.list_models()
    return f"{parts.architecture}.{parts.tag}" in timm.list_pretrained()


def from_timm_folder(name: str, folder: Path, size: int = 0) -> Backbone:
    """Load a folder as timm writes it: config.json and model.safetensors. size: side of the images,
    0 for the one that it says. Raises UserError for a folder that holds or asks for more."""
    check_folder(folder)
    check_numbers(folder)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise UserError(f"{folder} holds no {WEIGHTS}; write it with timm's save_for_hf")
    config = _checked_config(folder / CONFIG)
    own = config.get("pretrained_cfg", {})
    facts = _known(config["architecture"])
    facts |= {key: own[key] for key in FROM_CONFIG if key in own}
    facts["num_classes"] = config.get("num_classes", facts.get("num_classes", 0))
    shapes = dict(config.get("model_args") or {})
    if config.get("global_pool") is not None:
        shapes["global_pool"] = config["global_pool"]
    build = partial(_built, name, config["architecture"], facts)
    _check_size(folder, build, shapes, size)
    return _backbone(name, build(weights, shapes, size))


def _checked_config(file: Path) -> JsonObject:
    """Read config.json. Raises UserError for an architecture that timm does not know by its own
    name, and for anything that would reach further than the shape of the model."""
    with silenced():
        import timm
    config = read_json(file)
    if not isinstance(config, dict):
        raise UserError(f"{file}: not a table of settings")
    architecture, shapes = config.get("architecture"), config.get("model_args") or {}
    if architecture not in timm.list_models():
        known = timm.list_models()
        hint = did_you_mean(str(architecture)[:100], known)
        raise UserError(f"{file}: timm has no model {str(architecture)[:100]!r}{hint}")
    own = config.setdefault("pretrained_cfg", {})
    if not isinstance(own, dict) or not isinstance(shapes, dict):
        raise UserError(f"{file}: pretrained_cfg and model_args must be tables")
    for field, value in shapes.items():
        if field not in SHAPES:
            raise UserError(f"{file}: {field[:100]!r} is not a field passed on to timm")
        if not _is_plain(value):
            raise UserError(f"{file}: {field} must be a number, or a list of numbers")
    if not isinstance(config.get("global_pool"), str | None):
        raise UserError(f"{file}: global_pool must be a name")
    return config


def _is_plain(value: object) -> bool:
    parts = value if isinstance(value, list) else [value]
    return all(part is None or isinstance(part, (bool, int, float)) for part in parts)


def _check_size(
    folder: Path, build: Callable[..., nn.Module], shapes: JsonObject, size: int
) -> None:
    """Raise UserError for a model that is far larger than its weights, before it is made."""
    held = read_headers(folder).numbers
    try:
        with torch.device("meta"):
            empty = build(None, shapes, size)
    except UserError as error:
        if "meta" in str(error):  # earlier versions of timm compute on the device
            return
        raise
    numbers = sum(parameter.numel() for parameter in empty.parameters())
    if numbers > SLACK * max(held, 1):
        raise UserError(
            f"{folder}: its model has {numbers:,} parameters, and its weights {held:,} numbers"
        )


def _built(
    name: str, architecture: str, facts: JsonObject, file: Path | None, shapes: JsonObject,
    size: int,
) -> nn.Module:  # fmt: skip
    """Build a model of timm without its classifier. file: of weights; None for random ones, always
    the same. shapes: arguments for its constructor. Raises UserError if timm cannot."""
    import timm

    fields = ("url", "hf_hub_filename", "source", "custom_load", "state_dict")
    config = {key: value for key, value in facts.items() if key not in fields}
    config |= {"file": str(file) if file else None, "hf_hub_id": None, "url": ""}
    classes = config.get("num_classes") or 0
    arguments = {**shapes, "num_classes": classes, "pretrained_cfg": config}
    if size and config.get("fixed_input_size"):
        arguments["img_size"] = size
    fill = nullcontext() if file is None else Unfilled()
    with silenced(), fill, seeded(0):
        try:
            model: nn.Module = timm.create_model(
                architecture, pretrained=file is not None, **arguments
            )
        except Exception as error:  # a wrong configuration or file fails in many ways
            what = f"{file}: these weights do not fit backbone" if file else "backbone"
            raise UserError(f"{what} {name!r}: {first_line(error)}") from error
    model.reset_classifier(0)  # type: ignore[operator]
    model.preprocess_cfg = _transform(config, size)  # type: ignore[assignment]
    return model


def _transform(config: JsonObject, size: int) -> JsonObject:
    """Return timm's transform as open_clip's `preprocess_cfg`. What timm would crop away at the
    edges (crop_pct) is kept, as open_clip keeps it."""
    _, height, width = config.get("input_size") or (3, 224, 224)
    bilinear = config.get("interpolation") == "bilinear"
    return {
        "size": (size, size) if size else (height, width),
        "mode": "RGB",
        "mean": tuple(config.get("mean") or (0.5, 0.5, 0.5)),
        "std": tuple(config.get("std") or (0.5, 0.5, 0.5)),
        "interpolation": "bilinear" if bilinear else "bicubic",
        "resize_mode": MODES.get(str(config.get("crop_mode")), "shortest"),
        "fill_color": 0,
    }


def _backbone(name: str, model: nn.Module) -> Backbone:
    """Freeze a model as a backbone whose tokenizer refuses every text."""

    def refuse(texts: list[str]) -> Tensor:
        raise UserError(f"backbone {name!r} has no text encoder")

    return as_backbone(name, ImageOnly(model), Tokenizer(refuse, ""), has_text=False)


def _safetensors(file: str | None) -> str:
    """Return the safetensors file beside the one that timm names on the hub."""
    if not file:
        return WEIGHTS
    return Path(file).with_suffix(".safetensors").name.replace("pytorch_", "")
