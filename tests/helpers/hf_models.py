"""Tiny models of Hugging Face's transformers with random weights, written as folders with a
tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CLIPConfig, CLIPModel

from tests.helpers.models import WORDS

LAYERS = {"num_hidden_layers": 3, "intermediate_size": 100}
TEXT = LAYERS | {"hidden_size": 48, "num_attention_heads": 3, "max_position_embeddings": 16}
VISION = LAYERS | {"hidden_size": 64, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
PAD, END = 0, 3
OWN = {"vocab_size": 40, "pad_token_id": PAD}
SIGLIP = {"text_config": TEXT | OWN | {"projection_size": 64}, "vision_config": VISION}
NAFLEX = {name: value for name, value in VISION.items() if name != "image_size"} | {
    "num_patches": 16
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "metaclip_2": (
        "MetaClip2",
        {"text_config": TEXT | OWN | {"eos_token_id": END}, "vision_config": VISION},
    ),
    "chinese_clip": ("ChineseCLIP", {"text_config": TEXT | OWN, "vision_config": VISION}),
    "siglip": ("Siglip", SIGLIP),
    "siglip2": ("Siglip2", SIGLIP | {"vision_config": NAFLEX}),
}


def write_hf(folder: Path, kind: str, **both: Any) -> Any:
    """The model in float64. both: settings of either encoder."""
    name, config = KINDS[kind]
    config = {side: values | both for side, values in config.items()}
    if "CLIP" in name or "Clip" in name:
        config["projection_dim"] = 40  # type: ignore[assignment]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}Model")(
            getattr(transformers, f"{name}Config")(**config)
        ).eval()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    if kind.startswith("siglip"):
        model.logit_scale.data += 3  # so that probabilities differ
    model.save_pretrained(folder)
    _write_tokenizer(folder, kind)
    return model.double()


def _write_tokenizer(folder: Path, kind: str) -> None:
    """Of words; SigLIP 2 has one of its own, here of letters."""
    if kind == "siglip2":
        vocabulary = [
            "<pad>",
            "<eos>",
            "<bos>",
            "<unk>",
            "<mask>",
            "▁",
            *"abcdefghijklmnopqrstuvwxyz",
        ]
        places = {word: place for place, word in enumerate(vocabulary)}
        transformers.Siglip2Tokenizer(vocab=places, padding_side="right").save_pretrained(folder)
        return
    (folder / "vocab.txt").write_text(WORDS.replace(" ", "\n"))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)


def inputs(kind: str, images: torch.Tensor, tokens: torch.Tensor) -> dict[str, Any]:
    """Of the model's own forward pass, for images [B, 3, 32, 32] and padded tokens [C, L]."""
    given: dict[str, Any] = {"input_ids": tokens, "pixel_values": images}
    if kind == "chinese_clip":
        given["attention_mask"] = (tokens != PAD).long()
    if kind == "siglip2":  # patches from left to right, row by row, colours last
        patches = (
            images.unfold(2, 8, 8)
            .unfold(3, 8, 8)
            .permute(0, 2, 3, 4, 5, 1)
            .flatten(3)
            .flatten(1, 2)
        )
        given |= {"pixel_values": patches, "spatial_shapes": torch.full((len(images), 2), 4)}
        given["pixel_attention_mask"] = torch.ones(patches.shape[:2], dtype=torch.long)
    return given


CLIP_TEXT = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 100,
    "max_position_embeddings": 16,
}
CLIP_VISION = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
}


def write_clip(folder: Path, **both: Any) -> CLIPModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(
            CLIPConfig(
                text_config=CLIP_TEXT | both, vision_config=CLIP_VISION | both, projection_dim=40
            )
        ).eval()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model
