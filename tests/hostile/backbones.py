"""Backbone folders of open_clip and transformers with one damaged file: what loads also encodes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.hostile import valid
from tests.hostile.mutate import damaged, spoilt_json

HF = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip
SECONDS = 20.0


@cache
def folders() -> dict[str, Path]:
    from transformers import CLIPConfig, CLIPModel

    text, vision = HF | {"max_position_embeddings": 12}, HF | {"image_size": 16, "patch_size": 8}
    place = valid.place() / "hf"
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    ).save_pretrained(place)
    values = {
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.5, 0.6, 0.7],
        "resample": 2,
        "size": {"shortest_edge": 16},
    }
    (place / "preprocessor_config.json").write_text(json.dumps(values))
    return {"open_clip": Path(valid.backbone().name), "hf": place}


def cases(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    rng = random.Random(seed)
    files = {
        "open_clip": ["open_clip_config.json"],
        "hf": ["config.json", "preprocessor_config.json"],
    }
    for number in range(count):
        kind = rng.choice(("open_clip", "open_clip", "hf"))
        weights = rng.random() < 0.1
        file = (
            next(folders()[kind].glob("*.safetensors")).name if weights else rng.choice(files[kind])
        )
        data = (folders()[kind] / file).read_bytes()
        if weights:
            what, start = damaged(rng, data[:2000])
            spoilt = what, start + data[2000:]
        else:
            spoilt = spoilt_json(rng, json.loads(data))
        yield f"{kind}/{file}/{spoilt[0]}-{number}", spoilt[1]


def ask(name: str, content: bytes, folder: Path) -> object:
    from rmadapter.backbones import load_backbone
    from rmadapter.methods.zero_shot import ZeroShot
    from rmadapter.training.contract import Known

    kind, file, _ = name.split("/")
    place = valid.copied(folders()[kind], folder / "model", file)
    (place / file).write_bytes(content)
    fitted = ZeroShot().restore(load_backbone(str(place)), Known(("cat", "dog")), {})
    return list(fitted.probabilities(valid.images().images[:1]))
