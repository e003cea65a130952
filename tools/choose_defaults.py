"""Compare settings on train images of base classes alone, as docs/defaults.md describes.

    python tools/choose_defaults.py DATA [DATA ...] --grid grid.yaml --out results.jsonl

Of each data set only the train images of the base classes are read. They are halved once more: the adapter is trained
on 12 images of each class of the first half, and judged by the other images of those classes ("base") and by all images
of the second half ("novel"). The grid file is a list of {field: value} mappings, "preset: mma" among them if wanted.
Finished lines are kept: start it again to go on.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
import yaml

from rmadapter.backbone import Backbone, load_backbone
from rmadapter.config import Config
from rmadapter.data.fewshot import half, sample_shots
from rmadapter.data.images import ImageSet, read_images
from rmadapter.errors import UserError
from rmadapter.features import FrozenImages, freeze_images
from rmadapter.model import AdaptedCLIP
from rmadapter.train import train

SHOTS = 12
Parts = dict[str, tuple[ImageSet, FrozenImages]]


def parts_of(backbone: Backbone, data: Path, config: Config) -> Parts:
    """{"train", "base", "novel"} -> images and their frozen activations, from train images of base classes alone."""
    base = half(read_images(data, progress=False)["train"], "base")
    first, second = half(base, "base"), half(base, "novel")
    drawn = sample_shots(first.labels, SHOTS, random.Random(config.seed))
    rest = sorted(set(range(len(first))) - set(drawn))
    sets = {"train": first.subset(drawn), "base": first.subset(rest), "novel": second}
    model = AdaptedCLIP(backbone, config)
    parts: Parts = {}
    for name, images in sets.items():
        frozen = freeze_images(model, images, progress=False)
        if frozen is None:
            raise UserError(f"{data}: the activations exceed cache_memory={config.cache_memory}")
        parts[name] = (images, frozen)
    return parts


@torch.inference_mode()
def accuracy(model: AdaptedCLIP, images: ImageSet, frozen: FrozenImages) -> float:
    """Top-1 accuracy in percent at the model's present alpha."""
    weights = model.class_weights(images.classes)
    hits = 0
    for rows in torch.arange(len(images)).split(64):
        features, _ = model.features("image", frozen.batch(rows, model.device))
        labels = torch.tensor(images.labels)[rows]
        hits += int((model.logits(features, weights).argmax(-1).cpu() == labels).sum())
    return 100 * hits / len(images)


def trial(backbone: Backbone, config: Config, parts: Parts) -> dict[str, float]:
    """Train once and measure both halves, untouched and adapted."""
    model = AdaptedCLIP(backbone, config)
    done = train(model, parts["train"][0], frozen=parts["train"][1], progress=False)
    result = {"seconds": round(done.seconds, 1)}
    for name in ("base", "novel"):
        result[name] = round(accuracy(model, *parts[name]), 2)
        with model.dial(0):
            result[f"zero_shot_{name}"] = round(accuracy(model, *parts[name]), 2)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--grid", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="1")
    args = parser.parse_args()
    lines = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    done = {json.dumps([line["data"], line["seed"], line["fields"]], sort_keys=True) for line in lines}
    backbone = load_backbone("pocket")
    cache: dict[Any, Parts] = {}
    for fields in yaml.safe_load(args.grid.read_text()):
        for data in args.data:
            for seed in map(int, args.seeds.split(",")):
                if json.dumps([data.name, seed, fields], sort_keys=True) in done:
                    continue
                values = {name: value for name, value in fields.items() if name != "preset"}
                config = Config.make({**values, "seed": seed}, fields.get("preset", "rmadapter"))
                key = (data, seed, config.first_block)
                if key not in cache:
                    cache[key] = parts_of(backbone, data, config)
                line = {"data": data.name, "seed": seed, "fields": fields, **trial(backbone, config, cache[key])}
                with args.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
