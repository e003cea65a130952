"""Backbone folders of open_clip and transformers with one damaged file: what loads also encodes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.hostile import valid
from tests.hostile.mutate import damage, damage_json

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
    return {"open_clip": Path(valid.backbone().name), "hf": place}


def cases(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    rng = random.Random(seed)
    files = {"open_clip": ["open_clip_config.json"]}
    files["hf"] = ["config.json", "preprocessor_config.json"]
    for number in range(count):
        kind = rng.choice(("open_clip", "open_clip", "hf"))
        folder = folders()[kind]
        if rng.random() < 0.1:
            file = next(folder.glob("*.safetensors")).name
            data = (folder / file).read_bytes()
            what, start = damage(rng, data[:2000])
            content = start + data[2000:]
        else:
            file = rng.choice(files[kind])
            what, content = damage_json(rng, json.loads((folder / file).read_bytes()))
        yield f"{kind}/{file}/{what}-{number}", content


def check(name: str, content: bytes, folder: Path) -> object:
    from rmadapter.backbones import load_backbone
    from rmadapter.methods.zero_shot import ZeroShot
    from rmadapter.training.contract import Known

    kind, file, _ = name.split("/")
    place = valid.copy_folder(folders()[kind], folder / "model", file)
    (place / file).write_bytes(content)
    fitted = ZeroShot().restore(load_backbone(str(place)), Known(("cat", "dog")), {})
    return list(fitted.probabilities(valid.images().images[:1]))
