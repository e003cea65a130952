"""How the cost of training grows with classes, shots, image size and depth: JSON, and one plot for each.

    python benchmarks/scaling.py --study classes shots size depth --out docs/results/benchmarks

Time and peak memory of a training step by both forward passes; with shots, seconds and memory of the frozen activations
and seconds of an epoch. What is not varied is ViT-B/16 at 224 pixels, 50 classes, batch 16, adapters from block 5 on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import GB, MB, Step, arguments, class_names, interleaved, machine, medians, set_up, step_peak, timed

from rmadapter.backbone import Backbone, load_backbone
from rmadapter.config import Config
from rmadapter.data.images import ImageSet
from rmadapter.features import freeze_images
from rmadapter.model import AdaptedCLIP
from rmadapter.train import train

CLASSES = 50
POINTS: dict[str, tuple[int, ...]] = {
    "classes": (10, 50, 100, 200, 500, 1000),
    "shots": (1, 2, 4, 8, 16),
    "size": (112, 160, 224, 288, 336),
    "depth": (1, 2, 4, 6, 8, 10, 12),
}
AXES = {
    "classes": "classes",
    "shots": "images per class, 20 classes",
    "size": "pixels of an image's side",
    "depth": "adapted blocks, counted from the top",
}
REFERENCE_CLASSES = 200  # above, the reference takes minutes; train_step.py measures it at 1,000


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--study", choices=list(POINTS), nargs="+", default=list(POINTS))
    parser.add_argument("--points", type=int, nargs="+", help="other points than the usual ones, for a single study")
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument("--out", type=Path, help="folder for scaling.json and the plots; a study there is replaced")
    parser.set_defaults(repeat=3)
    options = parser.parse_args()
    if options.points and len(options.study) != 1:
        parser.error("--points belongs to a single --study")
    set_up(options)
    found = {}
    for study in options.study:
        points = options.points or POINTS[study]
        found[study] = {"points": list(STUDIES[study](options, points)), "machine": machine(), **settings(options)}
    if options.out:
        save(found, options.out)
    if options.json or not options.out:
        print(json.dumps(found, indent=1))


def settings(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("backbone", "batch", "seed", "repeat", "allocator")}


def cost(
    options: argparse.Namespace, step: Step, variants: tuple[str, ...] = ("lean", "reference")
) -> dict[str, float]:
    """Seconds and MB of one step by each forward pass."""
    peaks = {variant: step_peak(step, variant) for variant in variants}  # warms up, too
    spent = medians(interleaved({v: step.run(v) for v in variants}, options.repeat, text="steps", warm_up=False))
    return {f"{v}_seconds": spent[v] for v in variants} | {f"{v}_peak_mb": peaks[v] for v in variants}


def study_classes(options: argparse.Namespace, points: tuple[int, ...]) -> Iterator[dict[str, float]]:
    backbone = load_backbone(options.backbone)
    for count in points:
        variants = ("lean", "reference") if count <= REFERENCE_CLASSES else ("lean",)
        yield {"classes": count, **cost(options, Step(backbone, count, options.batch, options.seed), variants)}


def study_size(options: argparse.Namespace, points: tuple[int, ...]) -> Iterator[dict[str, float]]:
    backbone = load_backbone(options.backbone)
    for size in points:
        step = Step(resized(backbone, size), CLASSES, options.batch, options.seed)
        yield {"size": size, **cost(options, step)}


def resized(backbone: Backbone, size: int) -> Backbone:
    """The same architecture with random weights for images of another size."""
    import open_clip

    architecture = backbone.name.split("/")[0]
    model = open_clip.create_model(architecture, load_weights=False, force_image_size=size)
    return replace(backbone, model=model.eval().requires_grad_(False), image_size=size)


def study_depth(options: argparse.Namespace, points: tuple[int, ...]) -> Iterator[dict[str, float]]:
    backbone = load_backbone(options.backbone)
    depth = max(tower.depth for tower in Step(backbone, 1, 1).model.towers.values())
    for count in points:
        first = depth + 1 - count
        step = Step(backbone, CLASSES, options.batch, options.seed, first_block=first)
        yield {"depth": count, "first_block": first, **cost(options, step)}


def study_shots(options: argparse.Namespace, points: tuple[int, ...], classes: int = 20) -> Iterator[dict[str, float]]:
    """The run that `fit` makes, apart from reading files: activations computed once, then an epoch."""
    backbone = load_backbone(options.backbone)
    config = Config.make({"epochs": 1, "seed": options.seed, "batch_size": options.batch, "augmentation": "none"})
    size, names = backbone.image_size, tuple(class_names(classes, options.seed))
    for shots in points:
        labels = tuple(label for label in range(classes) for _ in range(shots))
        noise = np.random.default_rng(options.seed).integers(0, 256, (len(labels), size, size, 3), np.uint8)
        images = ImageSet(tuple(noise), labels, names)
        model = AdaptedCLIP(backbone, config)
        frozen: Any = None

        def freeze(model: AdaptedCLIP = model, images: ImageSet = images) -> None:
            nonlocal frozen
            frozen = freeze_images(model, images)

        freezing = timed(freeze)
        held = sum(part.numel() * part.element_size() for part in (frozen.x, frozen.y, frozen.features)) / MB
        epoch = train(model, images, frozen=frozen, progress=False).seconds
        yield {"shots": shots, "freezing_seconds": freezing, "epoch_seconds": epoch, "frozen_mb": held}


STUDIES: dict[str, Any] = {
    "classes": study_classes,
    "shots": study_shots,
    "size": study_size,
    "depth": study_depth,
}


def save(found: dict[str, Any], folder: Path) -> None:
    """scaling.json, with the studies that are there already and were not made again, and a plot of each new one."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "scaling.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**before, **found}, indent=1) + "\n")
    for study, record in found.items():
        plot(study, record["points"], folder / f"scaling_{study}.png")


def plot(study: str, points: list[dict[str, float]], file: Path) -> None:
    """Seconds beside memory, one line for each forward pass or part."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, ending, unit in zip(figure.subplots(1, 2), ("_seconds", "_mb"), ("seconds", "GB"), strict=True):
        for key in [key for key in max(points, key=len) if key.endswith(ending)]:
            line = [(p[study], p[key] * (1 if unit == "seconds" else MB / GB)) for p in points if key in p]
            axes.plot(*zip(*line, strict=True), marker="o", label=key.removesuffix(ending).replace("_", " "))
        axes.set(xlabel=AXES[study], ylabel=unit, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(file, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
