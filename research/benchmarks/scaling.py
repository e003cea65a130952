"""Measure how the cost of training grows with classes, shots, image size and depth: JSON, and a
plot.

    python research/benchmarks/scaling.py --study classes shots size depth \\
        --out research/results/benchmarks

Time and peak memory of a training step by both forward passes; for shots, seconds and memory of the
frozen activations and seconds of an epoch. The rest is fixed: ViT-B/16 at 224 pixels, 50 classes,
batch 16, adapters from block 5 on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import GB, MB, arguments, interleaved, medians, noise, set_up, setting
from step import VARIANTS, Step

from rmadapter.backbones import Backbone, load_backbone
from rmadapter.methods import load_method
from rmadapter.training.cache import Cache, Held
from rmadapter.training.contract import Shots

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
SHOT_CLASSES = 20
Points = Iterator[dict[str, Any]]


def main() -> None:
    options = parsed(arguments(__doc__, "classes", "batch", repeat=3), POINTS)
    found = {}
    for study in options.study:
        about = setting(options, "batch")
        backbone = load_backbone(options.backbone)
        points = STUDIES[study](options, backbone, options.points or POINTS[study])
        found[study] = {"points": list(points), **about}
    if options.out:
        save(found, options.out)
    if options.json or not options.out:
        print(json.dumps(found, indent=1))


def parsed(parser: argparse.ArgumentParser, studies: Iterable[str]) -> argparse.Namespace:
    """Read the options, with the studies to make, their points and the folder for the result, and
    set up."""
    parser.add_argument("--study", choices=list(studies), nargs="+", default=list(studies))
    parser.add_argument(
        "--points", type=int, nargs="+", help="other points than the usual ones, for a single study"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for the JSON and the picture; a study there is replaced"
    )
    options = parser.parse_args()
    if options.points and len(options.study) != 1:
        parser.error("--points belongs to a single --study")
    set_up(options)
    return options


def cost(
    options: argparse.Namespace, step: Step, variants: Sequence[str] = VARIANTS
) -> dict[str, Any]:
    """Measure seconds and MB of one step by each forward pass."""
    peaks = {f"{variant}_peak_mb": step.peak(variant) for variant in variants}  # warms up, too
    seconds = interleaved(
        {v: step.run(v) for v in variants}, options.repeat, text="steps", warm_up=False
    )
    return {**{f"{variant}_seconds": spent for variant, spent in medians(seconds).items()}, **peaks}


def study_classes(options: argparse.Namespace, backbone: Backbone, points: Sequence[int]) -> Points:
    for count in points:
        variants = VARIANTS if count <= REFERENCE_CLASSES else ("lean",)
        yield {
            "classes": count,
            **cost(options, Step(backbone, count, options.batch, options.seed), variants),
        }


def study_size(options: argparse.Namespace, backbone: Backbone, points: Sequence[int]) -> Points:
    for size in points:
        step = Step(resized(backbone, size), options.classes, options.batch, options.seed)
        yield {"size": size, **cost(options, step)}


def resized(backbone: Backbone, size: int) -> Backbone:
    """Make the same architecture with random weights for images of another size."""
    import open_clip

    architecture = backbone.name.split("/")[0]
    model = open_clip.create_model(architecture, load_weights=False, force_image_size=size)
    return replace(backbone, model=model.eval().requires_grad_(False), image_size=size)


def study_depth(options: argparse.Namespace, backbone: Backbone, points: Sequence[int]) -> Points:
    for count in points:
        first = max(backbone.image.depth, backbone.text.depth) + 1 - count
        step = Step(backbone, options.classes, options.batch, options.seed, first_block=first)
        yield {"depth": count, "first_block": first, **cost(options, step)}


def study_shots(options: argparse.Namespace, backbone: Backbone, points: Sequence[int]) -> Points:
    """Measure the run that `fit` makes, apart from reading files: activations computed once, then
    an epoch."""
    method: Any = load_method("rmadapter", {"epochs": 1, "batch_size": options.batch})
    for count in points:
        images = noise(SHOT_CLASSES * count, SHOT_CLASSES, backbone.image_size, options.seed)
        shots = Shots(images, Cache(backbone), seed=options.seed, progress=False)
        source = shots.source(method.model(backbone).first("image"))
        if not isinstance(source, Held):
            raise SystemExit(f"--points {count}: its activations do not fit into memory")
        frozen = (
            sum(
                part.numel() * part.element_size() for part in (source.features, source.x, source.y)
            )
            / MB
        )
        epoch = method.fit(backbone, shots).trained.seconds
        yield {
            "shots": count,
            "freezing_seconds": shots.cache.seconds,
            "epoch_seconds": epoch,
            "frozen_mb": frozen,
        }


STUDIES: dict[str, Any] = {
    "classes": study_classes,
    "shots": study_shots,
    "size": study_size,
    "depth": study_depth,
}


def save(found: dict[str, Any], folder: Path) -> None:
    """Write scaling.json, keeping the studies that were not repeated, and one plot of all."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "scaling.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    every = {**before, **found}
    file.write_text(json.dumps(every, indent=1) + "\n", encoding="utf-8", newline="\n")
    plot(every, folder / "scaling.png", AXES)


def plot(
    every: dict[str, Any], file: Path, names: dict[str, str], logarithmic: bool = False
) -> None:
    """Draw a row for each study, seconds beside memory; one line for each forward pass or part."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6 * len(every)), layout="constrained")
    panels = figure.subplots(len(every), 2, squeeze=False)
    for (study, record), row in zip(every.items(), panels, strict=True):
        points = record["points"]
        for axes, ending, unit in zip(row, ("_seconds", "_mb"), ("seconds", "GB"), strict=True):
            for key in [key for key in max(points, key=len) if key.endswith(ending)]:
                known = [p for p in points if p.get(key) is not None]
                line = [(p[study], p[key] * (1 if unit == "seconds" else MB / GB)) for p in known]
                if not line:
                    continue
                axes.plot(
                    *zip(*line, strict=True),
                    marker="o",
                    label=key.removesuffix(ending).replace("_", " "),
                )
            axes.set(xlabel=names[study], ylabel=unit)
            if logarithmic:
                axes.set(xscale="log", yscale="log")
            else:
                axes.set_ylim(0, None)
            axes.grid(alpha=0.3)
            if axes.lines:
                axes.legend(fontsize="small")
    figure.savefig(file, dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main()
