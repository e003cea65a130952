"""Every choice of a run as one frozen, validated record; command-line flags and YAML keys are its fields."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from rmadapter.errors import UserError, nearest


def _field(default: Any, text: str, **limits: Any) -> Any:
    return Field(default, description=text, **limits)


class Config(BaseModel):
    """The defaults are RMAdapter; `docs/defaults.md` says how the open ones were chosen."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # What is adapted to what
    backbone: str = _field("pocket", "name that load_backbone understands")
    shots: int = _field(16, "training images drawn per class; 0 takes all", ge=0)
    seed: int = _field(1, "seed of the draw, the initialisation and the order of batches", ge=0)
    classes: Literal["all", "base", "novel"] = _field("all", "all classes, the first half or the second half")
    templates: tuple[str, ...] = _field(("a photo of a {}.",), "prompt templates, one {} each; several are averaged")

    # The adapter (Eq. 8-10)
    rank: int = _field(32, "width r of the bottleneck", ge=1)
    first_block: int = _field(5, "first adapted block, counted from 1 in the deeper encoder", ge=1)
    last_block: int | None = _field(None, "last adapted block; empty means the top one", ge=1)
    alpha: float = _field(0.1, "weight of the adapter's output (Eq. 14, 15)", ge=0)
    norm: Literal["none", "block"] = _field(
        "none", "adapter reads the raw tokens, or the block's first LayerNorm of them"
    )
    cross_modal: bool = _field(False, "r x r projection shared by the two encoders, as MMA has it")
    activation: Literal["gelu", "relu", "quick_gelu", "silu"] = _field("gelu", "non-linearity inside the adapter")
    share: Literal["down", "up", "none"] = _field("down", "projection that the two branches share (Table 5)")
    reconstruction_layers: Literal[1, 2, 3] = _field(2, "linear layers of the reconstruction branch (Table 6)")
    objective: Literal["l2", "l1", "cosine"] = _field("l2", "distance that reconstruction minimises")
    init: Literal["zero", "small", "kaiming"] = _field("zero", "start of the up-projection")
    decouple_scale: bool = _field(False, "adapter weights get gradients as if alpha were 1 (MMA)")

    # The loss (Eq. 11-13, 16-18); a branch whose weight is 0 does not exist
    lambda_image_rec: float = _field(1.0, "weight of image reconstruction; 0 removes the branch", ge=0)
    lambda_text_rec: float = _field(1.0, "weight of text reconstruction; 0 removes the branch", ge=0)
    lambda_image_con: float = _field(20.0, "weight of image consistency; 0 turns it off", ge=0)
    lambda_text_con: float = _field(50.0, "weight of text consistency; 0 turns it off", ge=0)

    # Optimisation
    optimizer: Literal["sgd", "adamw"] = _field("adamw", "optimiser")
    learning_rate: float = _field(3e-3, "peak learning rate", gt=0)
    weight_decay: float = _field(5e-4, "weight decay", ge=0)
    momentum: float = _field(0.9, "momentum of SGD", ge=0, lt=1)
    warmup_epochs: float = _field(0.0, "epochs of linear warm-up before the cosine", ge=0)
    clip_gradient: float = _field(0.0, "largest gradient norm; 0 leaves gradients alone", ge=0)
    epochs: int = _field(10, "passes over the training images", ge=1)
    batch_size: int = _field(16, "images per step", ge=1)
    augmentation: Literal["none", "standard"] = _field("none", "test transform, or random resized crop and flip")
    views: int = _field(0, "augmented views cached per image, epochs for fresh ones; 0 computes them anew", ge=0)
    cache_memory: float = _field(4.0, "GB that frozen activations may take in memory; else a file in the run", ge=0)
    workers: int = _field(0, "processes that decode and augment images where no activations are cached", ge=0)
    precision: Literal["fp32", "bf16", "fp16"] = _field("fp32", "number format of the forward pass")
    compile: bool = _field(False, "compile the training step with torch.compile: minutes at first, then faster")
    device: str = _field("auto", "auto, cpu, cuda or cuda:N")
    forward: Literal["lean", "reference"] = _field("lean", "same function: computed once where possible, or plainly")

    @field_validator("templates", mode="before")
    @classmethod
    def _one_template(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @classmethod
    def make(cls, values: Mapping[str, Any] | None = None, preset: str = "rmadapter") -> Config:
        """A preset with some fields replaced. Raises UserError that names the field and what to write."""
        if preset not in PRESETS:
            raise UserError(f"unknown preset {preset!r}{nearest(preset, PRESETS)}")
        merged = {**PRESETS[preset], **(values or {})}
        for name in merged:
            if name not in cls.model_fields:
                raise UserError(f"unknown field {name!r}{nearest(str(name), cls.model_fields)}")
        try:
            config = cls(**merged)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            text = cls.model_fields[name].description
            raise UserError(f"{name}={first['input']!r}: {first['msg']} ({name}: {text})") from None
        config._check()
        return config

    def _check(self) -> None:
        if self.last_block is not None and self.last_block < self.first_block:
            raise UserError(f"last_block={self.last_block} lies below first_block={self.first_block}")
        if self.decouple_scale and self.alpha == 0:
            raise UserError("decouple_scale divides by alpha: give an alpha above 0 or set decouple_scale=false")
        if not self.templates:
            raise UserError('templates is empty: give at least one, such as "a photo of a {}."')
        for template in self.templates:
            before, braces, after = template.partition("{}")
            if not braces or set("{}") & set(before + after):
                raise UserError(
                    f'template {template!r} needs exactly one {{}} for the class name, as "a photo of a {{}}."'
                )

    def replace(self, **values: Any) -> Config:
        """A copy with some fields replaced, validated again."""
        return self.make({**self.model_dump(), **values})

    def save(self, path: Path) -> None:
        """Write all fields as YAML, in the order above."""
        path.write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Config:
        """Read a YAML file of fields. Raises UserError when it is missing, no mapping, or has a wrong field."""
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:  # PyYAML raises ValueError for 2024-13-45
            raise UserError(f"{path}: not a readable config ({type(error).__name__})") from None
        if not isinstance(values, dict):
            raise UserError(f"{path}: a config is a list of 'field: value' lines")
        return cls.make(values)


MMA: dict[str, Any] = {  # Yang et al., "MMA: Multi-Modal Adapter for Vision-Language Models", CVPR 2024
    "norm": "block",
    "cross_modal": True,
    "activation": "relu",
    "init": "kaiming",
    "alpha": 0.001,
    "decouple_scale": True,
    "lambda_image_rec": 0.0,
    "lambda_text_rec": 0.0,
    "lambda_image_con": 0.0,
    "lambda_text_con": 0.0,
    "optimizer": "sgd",
    "learning_rate": 0.0015,
    "weight_decay": 5e-4,
    "epochs": 5,
    "batch_size": 16,
    "augmentation": "standard",
}
PAPER: dict[
    str, Any
] = {  # RMAdapter where its paper says that it follows MMA (optimisation) and PromptSRC (consistency)
    **{name: MMA[name] for name in MMA if name not in ("norm", "cross_modal", "activation")},
    "lambda_image_rec": 1.0,
    "lambda_text_rec": 1.0,
    "lambda_image_con": 10.0,
    "lambda_text_con": 25.0,
}
PRESETS: dict[str, dict[str, Any]] = {"rmadapter": {}, "mma": MMA, "paper": PAPER}


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """`["rank=8", "norm=block"]` as a dictionary; values are read as YAML. Raises UserError for a pair without '='."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise UserError(f"--set {pair!r}: write it as field=value, as in --set rank=8")
        try:
            value = yaml.safe_load(text)
        except (ValueError, yaml.YAMLError):
            raise UserError(f"--set {pair!r}: the value is not readable") from None
        # YAML reads 1e-3 as text; a number is what was meant.
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = float(value)
        values[name.strip()] = value
    return values
