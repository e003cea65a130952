"""Image encoders of timm as backbones without text, for methods that read image features alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from rmadapter.backbones.backbone import Backbone
from rmadapter.backbones.build import Tokenizer, Unfilled, as_backbone, first_line
from rmadapter.backbones.names import NO_WEIGHTS, TimmName, check_name, nearest
from rmadapter.backbones.numbers import MAX_TIMES_WEIGHTS, check_numbers, read_headers
from rmadapter.backbones.trust import check_folder
from rmadapter.errors import UserError, did_you_mean
from rmadapter.support.files import JsonObject, read_json, user_path
from rmadapter.support.machine import seeded
from rmadapter.support.terminal import silenced

CONFIG, WEIGHTS = "config.json", "model.safetensors"  # of timm, in a folder and on the hub
LOGIT_SCALE = 100.0  # CLIP's largest; folds calibrate the probabilities
# timm's crop_mode -> open_clip's resize_mode
RESIZE_MODES = {"squash": "squash", "border": "longest"}
# what config.json may say of a model, by the names of timm; its `model_args` reach the constructor
CONSTRUCTOR_FIELDS = (
    "img_size", "patch_size", "in_chans", "embed_dim", "embed_dims", "depth", "depths", "num_heads",
    "mlp_ratio", "mlp_ratios", "dims", "init_values", "class_token", "reg_tokens",
    "no_embed_class", "pre_norm", "qkv_bias", "qk_norm", "window_size", "dynamic_img_size",
    "fc_norm", "ls_init_value",
)  # fmt: skip
CONFIG_FIELDS = (
    "input_size", "fixed_input_size", "interpolation", "crop_mode", "mean", "std", "num_classes",
    "first_conv", "classifier", "license",
)  # fmt: skip


class ImageOnly(nn.Module):
    """An image encoder in the place of a CLIP-like model."""

    logit_scale: Tensor

    def __init__(self, visual: nn.Module) -> None:
        """Wrap an encoder.

        Args:
            visual: Module of pixels [B, 3, H, W] -> features [B, e], with its `preprocess_cfg`, as
                open_clip's encoders have it.
        """
        super().__init__()
        self.visual = visual
        self.register_buffer("logit_scale", torch.tensor(math.log(LOGIT_SCALE)), persistent=False)


def is_timm_folder(folder: Path) -> bool:
    """Return whether a folder holds a model in timm's form."""
    file = folder / CONFIG
    config = read_json(file) if file.is_file() else None
    return isinstance(config, dict) and "architecture" in config


def load_image_only(name: str, fetch: Callable[[str, str], Path]) -> Backbone:
    """Load `timm:NAME.TAG`, `timm:NAME/FILE.safetensors`, `timm:NAME/none` or `timm:FOLDER`; @SIZE
    at the end sets the side of the images.

    Args:
        name: Name with its prefix.
        fetch: Function from a repository and a file on the hub to the file here.

    Raises:
        UserError: As `load_backbone`.
    """
    parts = TimmName.of(name)
    if parts.folder:
        return from_timm_folder(name, parts.folder, parts.size)
    check_name(name)
    with silenced():
        import timm
    architecture, tag, revision = parts.architecture, parts.tag, ""
    if architecture not in timm.list_models():
        raise UserError(
            f"backbone {name!r}: timm has no model {architecture!r}; the nearest are "
            f"{nearest(architecture, timm.list_models())}"
        )
    if tag == NO_WEIGHTS or tag.endswith(".safetensors"):
        facts, weights = _known(architecture), None if tag == NO_WEIGHTS else user_path(tag)
    else:
        tags = [one.partition(".")[2] for one in timm.list_pretrained(f"{architecture}.*")]
        facts = _known(f"{architecture}.{tag}") if tag in tags else {}
        if not facts.get("hf_hub_id"):
            raise UserError(
                f"backbone {name!r}: timm has no weights {tag!r} for {architecture} on the hub"
                f"{did_you_mean(tag, tags)}; it has {', '.join(tags) or 'none'}"
            )
        weights = fetch(facts["hf_hub_id"], _safetensors(facts.get("hf_hub_filename")))
        revision = weights.parent.name  # a snapshot's folder is called as its commit
    model = _built(name, architecture, facts, weights, {}, parts.size)
    return replace(_backbone(name, model), revision=revision)


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
    with silenced():
        import timm
    if parts.tag == NO_WEIGHTS:
        return parts.architecture in timm.list_models()
    return f"{parts.architecture}.{parts.tag}" in timm.list_pretrained()


def from_timm_folder(name: str, folder: Path, size: int = 0) -> Backbone:
    """Load a folder as timm writes it: config.json and model.safetensors.

    Args:
        name: Name of the backbone.
        folder: Folder of the model.
        size: Side of the images, 0 for the one that the folder says.

    Raises:
        UserError: The folder holds or asks for more.
    """
    check_folder(folder)
    check_numbers(folder)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise UserError(f"{folder} holds no {WEIGHTS}; write it with timm's save_for_hf")
    config = _checked_config(folder / CONFIG)
    own = config.get("pretrained_cfg", {})
    facts = _known(config["architecture"])
    facts |= {key: own[key] for key in CONFIG_FIELDS if key in own}
    facts["num_classes"] = config.get("num_classes", facts.get("num_classes", 0))
    shapes = dict(config.get("model_args") or {})
    if config.get("global_pool") is not None:
        shapes["global_pool"] = config["global_pool"]
    build = partial(_built, name, config["architecture"], facts, shapes=shapes, size=size)
    _check_size(folder, build)
    return _backbone(name, build(weights))


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
        hint = did_you_mean(str(architecture)[:100], timm.list_models())
        raise UserError(f"{file}: timm has no model {str(architecture)[:100]!r}{hint}")
    own = config.setdefault("pretrained_cfg", {})
    if not isinstance(own, dict) or not isinstance(shapes, dict):
        raise UserError(f"{file}: pretrained_cfg and model_args must be tables")
    for field, value in shapes.items():
        if field not in CONSTRUCTOR_FIELDS:
            raise UserError(f"{file}: {field[:100]!r} is not a field passed on to timm")
        if not _is_plain(value):
            raise UserError(f"{file}: {field} must be a number, or a list of numbers")
    if not isinstance(config.get("global_pool"), str | None):
        raise UserError(f"{file}: global_pool must be a name")
    return config


def _is_plain(value: object) -> bool:
    parts = value if isinstance(value, list) else [value]
    return all(part is None or isinstance(part, (bool, int, float)) for part in parts)


def _check_size(folder: Path, build: Callable[[Path | None], nn.Module]) -> None:
    """Raise UserError for a model that is far larger than its weights, before it is made."""
    held = read_headers(folder).numbers
    try:
        with torch.device("meta"):
            empty = build(None)
    except UserError as error:
        if "meta" in str(error):  # earlier versions of timm compute on the device
            return
        raise
    numbers = sum(parameter.numel() for parameter in empty.parameters())
    if numbers > MAX_TIMES_WEIGHTS * max(held, 1):
        raise UserError(
            f"{folder}: its model has {numbers:,} parameters, and its weights {held:,} numbers"
        )


def _built(
    name: str,
    architecture: str,
    facts: JsonObject,
    file: Path | None,
    shapes: JsonObject,
    size: int,
) -> nn.Module:
    """Build a model of timm without its classifier. A DINOv3 gives its class token, unless `shapes`
    says otherwise.

    Args:
        name: Name of the backbone, for messages.
        architecture: timm's name of the architecture.
        facts: What timm's table or a folder says of it.
        file: File of weights; None for random ones, always the same.
        shapes: Arguments for the model's constructor.
        size: Side of the images, 0 for the model's own.

    Raises:
        UserError: timm cannot build it.
    """
    import timm

    unused = ("url", "hf_hub_filename", "source", "custom_load", "state_dict")
    config = {key: value for key, value in facts.items() if key not in unused}
    config |= {"file": str(file) if file else None, "hf_hub_id": None, "url": ""}
    classes = config.get("num_classes") or 0
    arguments = {**shapes, "num_classes": classes, "pretrained_cfg": config}
    if "dinov3" in architecture:  # trained to be read at its class token; timm takes the mean
        arguments.setdefault("global_pool", "token")
    if size and config.get("fixed_input_size"):
        arguments["img_size"] = size
    fill = Unfilled() if file else nullcontext()
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
    if "dinov3" in architecture and arguments["global_pool"] != "avg":
        model.pooling = arguments["global_pool"]  # for the digest; the weights do not tell it
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
        "resize_mode": RESIZE_MODES.get(str(config.get("crop_mode")), "shortest"),
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
