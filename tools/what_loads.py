"""Find which of open_clip's architectures load, and which methods work on them, on tiny models
with random weights.

    python tools/what_loads.py --page docs/reference/backbones.md

Each architecture keeps its kind of encoders but not its size: width, depth, patches, vocabulary. A
model counts as adapted if RMAdapter's fast forward pass gives the loss and the gradients of the
model's own with hooks, in float64. Tokenizers and text encoder configurations from the hub are
replaced by small ones of the same kind.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rmadapter.backbones import Backbone, load_backbone
from rmadapter.errors import UserError
from rmadapter.methods import METHODS, load_method
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.prompts import tokenize
from rmadapter.settings import settings_of
from rmadapter.support.files import write_json, write_tensors, write_text
from rmadapter.support.terminal import silenced
from rmadapter.training.contract import Known

START, END = "<!-- what loads -->", "<!-- end of what loads -->"
NAMES, TEMPLATES = ("cat", "a small red car. a blue bird", "dog"), ("a photo of a {}.",)
WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] a photo of the cat dog car tree house bird . , red blue small"
)
LEAST = 1e-9  # relative difference in float64 below which two results are the same
SIDE, WIDTH = 64, 32
BLOCKS = {"img_size": SIDE, "embed_dim": WIDTH, "depth": 2, "num_heads": 2}
SMALLEST = {
    "vitamin": "vitamin_small_224"
}  # the smallest of a kind whose first convolutions cannot be made narrower
# Arguments that make a timm trunk small: those of the first pattern that matches its name.
TRUNKS: Mapping[str, Mapping[str, Any]] = {
    r"eva02_enormous|eva02|eva_giant|vit_pe_core": BLOCKS | {"patch_size": 16},
    r"vit_base_mci|vit_.*_rope": {"img_size": SIDE, "depth": 2},
    r"vitamin": {"img_size": SIDE, "depth": 2},
    r"vit_relpos|vit_": BLOCKS | {"patch_size": 16},
    r"convnext": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
    r"fastvit_mci[34]": {"layers": (1,) * 5, "embed_dims": (16, 32, 64, 64, 64)},
    r"fastvit": {"layers": (1,) * 4, "embed_dims": (16, 32, 64, 64)},
    r"swin": {
        "img_size": SIDE,
        "embed_dim": 16,
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 1, 2, 2),
        "window_size": 2,
    },
}
TEXTS: Mapping[str, Mapping[str, Any]] = {
    r"xlm-roberta": {"model_type": "xlm-roberta"}, r"roberta": {"model_type": "roberta"},
    r"mt5": {
        "model_type": "mt5", "d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 2,
        "num_heads": 2,
    },
    r"nllb": {"model_type": "m2m_100", "d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 1,
              "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
    r"": {"model_type": "bert"},
}  # fmt: skip
BERT = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


class Found(NamedTuple):
    """image, text: kinds of the encoders. verdict: the methods that work."""

    name: str
    image: str
    text: str
    verdict: str


def shrink(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Make a small model_cfg of the same kind; the files it names are written to the folder."""
    small = copy.deepcopy(dict(config))
    vision, text = small["vision_cfg"], small["text_cfg"]
    small["embed_dim"] = WIDTH
    if name := vision.get("timm_model_name"):
        vision["timm_model_name"] = f"local-dir:{_trunk(name, folder / 'trunk')}"
        vision["image_size"] = SIDE
    elif isinstance(vision["layers"], list):
        vision |= {"layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "image_size": SIDE}
    else:
        vision |= {
            "layers": 2, "width": WIDTH, "head_width": 16, "image_size": SIDE, "patch_size": 16,
        }  # fmt: skip
    if vision.get("attentional_pool"):
        vision["attn_pooler_heads"] = 2
    if name := text.get("hf_model_name"):
        text["hf_model_name"] = str(_text(name, folder / "text"))
    else:
        text |= {"layers": 2, "width": WIDTH, "heads": 2}
    if text.get("hf_tokenizer_name"):
        _tokenizer(folder)
        text.update({} if text.get("hf_model_name") else {"vocab_size": 64})
        text.update({"eos_id": 3} if text.get("pool_type") == "eos" else {})
    if "multimodal_cfg" in small:
        small["multimodal_cfg"] |= {"layers": 1, "width": WIDTH, "heads": 2, "attn_pooler_heads": 2}
    return small


def _trunk(name: str, folder: Path) -> Path:
    args = next(args for pattern, args in TRUNKS.items() if re.match(pattern, name))
    name = next((small for kind, small in SMALLEST.items() if name.startswith(kind)), name)
    size = {"input_size": [3, SIDE, SIDE], "num_classes": 0}
    write_json(
        folder / "config.json",
        {"architecture": name, "num_classes": 0, "model_args": args, "pretrained_cfg": size},
    )
    return folder


def _text(name: str, folder: Path) -> Path:
    own = next(values for pattern, values in TEXTS.items() if re.search(pattern, name))
    write_json(
        folder / "config.json",
        {"vocab_size": 64, "pad_token_id": 0, "max_position_embeddings": 100, **BERT, **own},
    )
    return folder


def _tokenizer(folder: Path) -> None:
    from transformers import BertTokenizer

    write_text(folder / "vocab.txt", WORDS.replace(" ", "\n"))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)


def tiny(name: str, folder: Path) -> Backbone:
    """Make a small model of an architecture with random weights, written into the folder and loaded
    from it."""
    import open_clip

    model = shrink(open_clip.get_model_config(name), folder)
    write_json(folder / "open_clip_config.json", {"model_cfg": model, "preprocess_cfg": {}})
    with silenced(), torch.random.fork_rng():
        torch.manual_seed(0)
        plain = open_clip.create_model(
            f"local-dir:{folder}", load_weights=False, pretrained_text=False
        )
        for parameter in plain.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    write_tensors(folder / "open_clip_model.safetensors", plain.state_dict())
    return load_backbone(str(folder))


def ask(name: str) -> Found:
    """Load a small model of an architecture, run it and adapt it. Raises AssertionError if
    something differs."""
    with tempfile.TemporaryDirectory() as place:
        loaded = tiny(name, Path(place))
        backbone = replace(loaded, model=copy.deepcopy(loaded.model).double())
        tokens = tokenize(backbone, NAMES, TEMPLATES)
        images = _images(backbone)
        model: Any = backbone.model
        with torch.no_grad():
            _same(
                f"{name}, image",
                backbone.image.frozen(images).features,
                model.encode_image(images, normalize=False),
            )
            _same(
                f"{name}, text",
                backbone.text.frozen(tokens).features,
                model.encode_text(tokens, normalize=False),
            )
        fitted = ZeroShot().restore(loaded, Known(NAMES, TEMPLATES), {})
        assert fitted.score()(fitted.states(images.float())).shape == (len(images), len(NAMES)), (
            name
        )
        works = methods_on(loaded)
        if "rmadapter" in works:
            _compare(name, backbone, images, tokens)
    return Found(name, _kind(backbone.image), _kind(backbone.text), _verdict(works))


def methods_on(backbone: Backbone) -> list[str]:
    """Return the methods that can be set up on a backbone; the others refuse it with a message."""
    names = []
    for name in METHODS:
        own = settings_of(load_method(name))
        small: dict[str, Any] = {field: 1 for field in ("first_block", "layer") if field in own}
        try:
            load_method(name, small).parameters(backbone)
        except UserError:
            continue
        names.append(name)
    return names


def _verdict(works: Sequence[str]) -> str:
    rest = [name for name in METHODS if name not in works]
    if not rest:
        return "all"
    return f"all but {', '.join(rest)}" if "rmadapter" in works else ", ".join(works)


def _images(backbone: Backbone) -> Tensor:
    size = [backbone.image_size] * 2
    seed = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, *size, generator=seed, dtype=torch.float64)


def _compare(name: str, backbone: Backbone, images: Tensor, tokens: Tensor) -> None:
    """Compare loss and gradients of the fast pass and of the model's own. Raises UserError if it
    has no blocks."""
    settings = {"first_block": 1, "init": "kaiming", "alpha": 0.5, "rank": 4}
    method: Any = load_method("rmadapter", settings)
    model = method.model(backbone).double().train()
    labels = torch.arange(len(images))
    frozen = (model.clip.encode_image(images), model.clip.encode_text(tokens))
    passes = []
    for terms in (
        model(labels, model.frozen(images), model.frozen_text(tokens)),
        model.reference(labels, images, tokens, frozen),
    ):
        model.zero_grad()
        terms["loss"].backward()
        passes.append(
            [
                terms["loss"].detach(),
                *(p.grad.clone() for p in model.adapters.parameters() if p.grad is not None),
            ]
        )
    for lean, plain in zip(*passes, strict=True):
        _same(f"{name}, adapted", lean, plain)


def _same(what: str, value: Tensor, expected: Tensor) -> None:
    difference = float((value - expected).norm() / expected.norm().clamp(min=1e-6))
    assert difference < LEAST, f"{what}: differs by {difference:.1e}"


def _kind(encoder: Any) -> str:
    """Name an encoder for the table."""
    known = {
        "ClipImage": "open_clip's ViT",
        "ClipText": "open_clip's transformer",
        "BertText": "BERT family",
    }
    if type(encoder).__name__ == "TimmImage":
        return f"timm's {type(encoder.trunk).__name__}"
    return known.get(type(encoder).__name__) or encoder.kind


def rows(results: Sequence[Found]) -> Iterator[str]:
    """Make a table in Markdown; architectures that differ only in name share a line."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for one in results:
        groups.setdefault(one[1:], []).append(one.name)
    yield "| image encoder | text encoder | methods that work | architectures |"
    yield "|---|---|---|---|"
    for (image, text, verdict), names in sorted(
        groups.items(), key=lambda group: not group[0][2].startswith("all")
    ):
        yield f"| {image} | {text} | {verdict} | {', '.join(names)} |"


def main() -> None:
    import open_clip

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="architectures, by default all")
    parser.add_argument("--page", type=Path, help="put the table between its marks in this file")
    words = parser.parse_args()
    results = [ask(name) for name in words.names or open_clip.list_models()]
    table = "\n".join(rows(results))
    if words.page is None:
        print(json.dumps([one._asdict() for one in results]) if words.names else table)
        return
    before, rest = words.page.read_text("utf-8").split(START)
    write_text(words.page, f"{before}{START}\n{table}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
