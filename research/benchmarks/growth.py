"""Measure how every part of a run grows with classes, images and prompt templates: JSON, fitted
exponents, and a plot.

    python research/benchmarks/growth.py --out research/results/benchmarks

Processor seconds, which other processes disturb little, and memory of each part, all in one
process: `text` (class features of the untouched encoder), `step` (a training step of RMAdapter,
with what is computed once for it), `answers` (on images with known features), `page`
(predictions.csv and report.html), `scan` (reading a folder of images and checking each), `frozen`
(decoding and encoding them), `predict` (answers from files, nothing kept), `duplicates`
(near-duplicates). An exponent is the slope of log seconds, or of log MB beyond what the process
held before, against the log of what grows, between the last two points: 1 is linear. Classes and
templates are measured with --backbone, images of 32 x 32 pixels with a tiny random one.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import CPU, arguments, held, setting
from PIL import Image
from scaling import parsed, plot
from step import Step

from rmadapter.artifacts.page import write_run_page
from rmadapter.artifacts.predictions import Evaluation, Predictions, write_predictions
from rmadapter.artifacts.record import FORMAT, BackboneName, MethodName, Record, Score
from rmadapter.backbones import Backbone, load_backbone
from rmadapter.data.duplicates import groups
from rmadapter.data.read import ImageSet, read_images
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.prompts import zero_shot_weights
from rmadapter.runs.evaluate import evaluate
from rmadapter.support.machine import peak, reset_peak, versions
from rmadapter.task import Question, Task
from rmadapter.training.cache import Cache
from rmadapter.training.contract import Known

POINTS: dict[str, tuple[int, ...]] = {
    "classes": (10, 100, 1000, 10_000),
    "images": (100, 1000, 10_000, 100_000),
    "templates": (1, 4, 20, 80),
}
AXES = {"classes": "classes", "images": "images", "templates": "templates, 100 classes"}
ASKED, KINDS, TEMPLATE_CLASSES = (
    256,
    10,
    100,
)  # images of many classes; classes of many images and of templates
TINY = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 32, "layers": 2},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
PAIRS = 10_000  # the most images to look for near-duplicates in: each is compared with each
Row = dict[str, Any]


def main() -> None:
    options = parsed(arguments(__doc__, "batch", repeat=1, backbone="pocket"), POINTS)
    found = {}
    for study in options.study:
        about = {**setting(options, "batch"), "versions": versions()}
        points: list[Row] = []
        for point in STUDIES[study](options, options.points or POINTS[study]):
            points.append(point)
            found[study] = {"points": points, "exponents": exponents(study, points), **about}
            if options.out:
                save(
                    found, options.out
                )  # the last point takes as long as all others, and may be too much
    if options.json or not options.out:
        print(json.dumps(found, indent=1))


def measured(**parts: Callable[[], Any]) -> Row:
    """Measure processor seconds, seconds by the clock and MB beyond what was held before, of each
    part; and the most MB that the process held."""
    row: Row = {}
    most = 0.0
    for name, run in parts.items():
        before = held()
        reset_peak(CPU)
        begun = time.process_time()
        started = time.perf_counter()
        run()
        row[f"{name}_seconds"], row[f"{name}_wall"] = (
            time.process_time() - begun,
            time.perf_counter() - started,
        )
        if before is not None:
            now = peak(CPU)["peak_mb"] or 0.0
            row[f"{name}_mb"], most = max(now - before, 0.0), max(most, now)
    return {**row, "process_peak_mb": most or None}


def exponents(study: str, points: Sequence[Row]) -> dict[str, float]:
    """Fit the exponent of each part that took enough time or memory at the last two points to be
    more than chance."""
    if len(points) < 2:
        return {}
    a, b = points[-2:]
    least = {"seconds": 0.05, "mb": 20.0}
    found = {}
    for name in b:
        kind = name.rpartition("_")[2]
        if (
            kind in least
            and name != "process_peak_mb"
            and min(a.get(name) or 0, b[name] or 0) >= least[kind]
        ):
            found[name] = math.log(b[name] / a[name]) / math.log(b[study] / a[study])
    return found


def named(count: int) -> tuple[str, ...]:
    """Make class names of three words."""
    words = ("red", "old", "small", "wild", "grey", "tall", "young", "striped", "round", "dark")
    kinds = ("bird", "car", "tree", "fish", "house", "cup", "dog", "boat", "stone", "leaf")
    return tuple(f"{words[i % 10]} {kinds[i // 10 % 10]} {i // 100}" for i in range(count))


def noise(count: int, classes: int, size: int) -> ImageSet:
    """Make images of noise in memory, of the classes in turn."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    return ImageSet(
        tuple(pixels), tuple(i * classes // count for i in range(count)), named(classes)
    )


def study_classes(options: argparse.Namespace, points: Sequence[int]) -> Iterator[Row]:
    backbone = load_backbone(options.backbone)
    zero_shot_weights(backbone, ("warm", "up"), ("{}",))
    for count in points:
        images = noise(ASKED, count, backbone.image_size)
        cache = Cache(backbone, progress=False)
        cache.features(images)
        yield {
            "classes": count,
            **measured(
                text=lambda: zero_shot_weights(backbone, images.classes, ("a photo of a {}.",)),  # noqa: B023
                step=lambda: training_step(backbone, images.classes, options),  # noqa: B023
                answers=lambda: asked(backbone, images, cache),  # noqa: B023
                page=lambda: written(images, ASKED),  # noqa: B023
            ),
        }


def study_templates(options: argparse.Namespace, points: Sequence[int]) -> Iterator[Row]:
    backbone = load_backbone(options.backbone)
    zero_shot_weights(backbone, ("warm", "up"), ("{}",))
    for count in points:
        templates = tuple(f"a photo of a {{}}, number {i}." for i in range(count))
        names = named(TEMPLATE_CLASSES)
        yield {
            "templates": count,
            **measured(text=lambda: zero_shot_weights(backbone, names, templates)),  # noqa: B023
        }


def study_images(options: argparse.Namespace, points: Sequence[int]) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        backbone = tiny(Path(folder) / "model")
        there = 0
        for count in points:
            write_images(Path(folder) / "images", there, count)
            there = max(there, count)
            found: list[ImageSet] = []
            duplicates = {"duplicates": partial(grouped, found)} if count <= PAIRS else {}
            yield {
                "images": count,
                **measured(
                    scan=partial(scanned, Path(folder) / "images", found),
                    frozen=lambda: Cache(backbone, progress=False).features(found[0]),  # noqa: B023
                    predict=lambda: predicted(backbone, found[0]),  # noqa: B023
                    page=lambda: written(found[0], len(found[0])),  # noqa: B023
                    **duplicates,
                ),
            }


def scanned(folder: Path, found: list[ImageSet]) -> None:
    found.append(read_images(folder, progress=False)["all"])


def grouped(found: Sequence[ImageSet]) -> None:
    groups(found[0].looks())


def tiny(folder: Path) -> Backbone:
    """Make a transformer of two blocks with random weights."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}), encoding="utf-8", newline="\n"
    )
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return load_backbone(str(folder))


def write_images(folder: Path, there: int, count: int) -> None:
    """Add JPEG files of noise to those of the folder."""
    for i in range(there, count):
        place = folder / f"kind {i % KINDS}" / f"{i}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)).save(
            place, quality=50
        )


def training_step(backbone: Backbone, names: Sequence[str], options: argparse.Namespace) -> None:
    """Do one training step, with what is computed once for it."""
    step = Step(backbone, 2, options.batch, options.seed)
    text = step.model.frozen_text(
        backbone.tokenizer([f"a photo of a {name}." for name in names]).to(backbone.device)
    )
    step.model(step.labels, step.frozen()[0], text)["loss"].backward()


def asked(backbone: Backbone, images: ImageSet, cache: Cache) -> None:
    fitted = ZeroShot().restore(backbone, Known(images.classes, ("a photo of a {}.",)), {})
    evaluate(fitted, [(Question("all"), images, "test")], cache)


def predicted(backbone: Backbone, images: ImageSet) -> None:
    fitted = ZeroShot().restore(backbone, Known(images.classes), {})
    for _ in fitted.probabilities(images.images):
        pass


def written(images: ImageSet, count: int) -> None:
    """Write what a run writes of its answers, which are random here."""
    drawn = np.random.default_rng(0)
    shape = (count, len(images.classes))
    e = Evaluation(
        "all classes", images, drawn.random(shape, np.float32), drawn.random(shape, np.float32)
    )
    score = Score(
        name="all", images=count, classes=shape[1], split="test", accuracy=1.0, zero_shot=1.0
    )
    method = MethodName(name="zero-shot", title="zero-shot")
    backbone = BackboneName(name="pocket", digest="0")
    record = Record(
        format=FORMAT,
        task=Task(data="images"),
        method=method,
        backbone=backbone,
        scores=(score,),
        parameters=0,
    )
    found = [Predictions.of(score, e)]
    with tempfile.TemporaryDirectory() as folder:
        write_predictions(Path(folder) / "predictions.csv", found)
        write_run_page(Path(folder) / "report.html", record, found, [])


STUDIES: dict[str, Any] = {
    "classes": study_classes,
    "images": study_images,
    "templates": study_templates,
}


def save(found: dict[str, Any], folder: Path) -> None:
    """Write growth.json, keeping the studies that were not repeated, and one plot of all."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "growth.json"
    every = {**(json.loads(file.read_text()) if file.exists() else {}), **found}
    file.write_text(json.dumps(every, indent=1) + "\n", encoding="utf-8", newline="\n")
    plot(every, folder / "growth.png", AXES, logarithmic=True)


if __name__ == "__main__":
    main()
