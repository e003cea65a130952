"""Backbone folders of open_clip, transformers and timm with one damaged file: what loads also
encodes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tests.helpers.models import write_tiny_timm
from tests.hostile import valid
from tests.hostile.mutate import damage, damage_json, places_of

HF = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip
SECONDS = 20.0


@cache
def folders() -> dict[str, Path]:
    from transformers import CLIPConfig, CLIPModel

    text, vision = HF | {"max_position_embeddings": 12}, HF | {"image_size": 16, "patch_size": 8}
    place = valid.place() / "hf"
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    CLIPModel(config).save_pretrained(place)
    values = {
        "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "resample": 2,
        "size": {"shortest_edge": 16},
    }  # fmt: skip
    (place / "preprocessor_config.json").write_text(json.dumps(values))
    timm = write_tiny_timm(valid.place() / "timm")
    return {"open_clip": Path(valid.backbone().name), "hf": place, "timm": timm}


def cases(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    rng = random.Random(seed)
    files = {"open_clip": ["open_clip_config.json"], "timm": ["config.json"]}
    files["hf"] = ["config.json", "preprocessor_config.json"]
    for number in range(count):
        kind = rng.choice(("open_clip", "open_clip", "hf", "timm"))
        folder = folders()[kind]
        if rng.random() < 0.1:
            file = next(folder.glob("*.safetensors")).name
            data = (folder / file).read_bytes()
            what, start = damage(rng, data[:2000])
            content = start + data[2000:]
        else:
            file = rng.choice(files[kind])
            value = json.loads((folder / file).read_bytes())
            what, content = large(rng, value) if rng.random() < 0.3 else damage_json(rng, value)
        yield f"{kind}/{file}/{what}-{number}", content


def large(rng: random.Random, value: Any) -> tuple[str, bytes]:
    """Make one number larger, as a model of other layers, widths or images would have it."""
    places = [
        (owner, key)
        for owner, key in places_of(value)
        if isinstance(owner[key], (int, float)) and not isinstance(owner[key], bool)
    ]
    owner, key = rng.choice(places)
    owner[key] = int(owner[key] or 1) * 10 ** rng.randrange(1, 7)
    return f"large-{str(key)[:20]}", json.dumps(value).encode()


def check(name: str, content: bytes, folder: Path) -> object:
    from rmadapter.backbones import load_backbone
    from rmadapter.methods.zero_shot import ZeroShot
    from rmadapter.training.cache import Cache
    from rmadapter.training.contract import Known

    kind, file, _ = name.split("/")
    place = valid.copy_folder(folders()[kind], folder / "model", file)
    (place / file).write_bytes(content)
    if kind == "timm":
        loaded = load_backbone(f"timm:{place}")
        return Cache(loaded, progress=False).features(valid.images().subset([0])).tolist()
    fitted = ZeroShot().restore(load_backbone(str(place)), Known(("cat", "dog")), {})
    return list(fitted.probabilities(valid.images().images[:1]))
