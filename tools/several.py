"""What several labels per image, and a class `other`, are worth. The tables are in docs/data.md.

    python tools/several.py --root DATA --out results.jsonl --seeds 1 2 3
    python tools/several.py --out results.jsonl --tables

labels: an image is a mosaic of four fields with one to three classes of a set, and each of these is
a label. other: the first half of a set's classes keep their names, and all others become one more
class, with as many shots as each of the rest and one of several words in prompts. Finished lines
are kept: start it again to go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from lines import keep, kept, parser
from PIL import Image, ImageOps
from unfamiliar import CHOOSE, REPORT

from rmadapter.backbones import Backbone, load_backbone
from rmadapter.data.names import ELSE
from rmadapter.data.read import ImageSet, load_image
from rmadapter.runs.folds import FOLDS, Folds
from rmadapter.runs.request import Request
from rmadapter.runs.run import Lab, learn, run_task
from rmadapter.support.machine import versions
from rmadapter.training.contract import answers

WORDS = ("other", ELSE, "thing", "object", "background", "none of these")
FIELD = 112  # pixels of a side
TESTED, MOST = 200, 600  # mosaics to test on; at most so many to draw shots from
Line = Mapping[str, Any]


def mosaics(images: ImageSet, count: int, seed: int) -> ImageSet:
    """`count` mosaics. Each field draws its image at random from its class, so that an image may
    repeat."""
    rng = np.random.default_rng(seed)
    of_class = [
        np.flatnonzero(np.array(images.labels) == label) for label in range(len(images.classes))
    ]
    pictures, several = [], []
    for _ in range(count):
        labels = rng.choice(
            len(of_class), rng.integers(1, min(3, len(of_class)) + 1), replace=False
        )
        canvas = Image.new("RGB", (2 * FIELD, 2 * FIELD))
        for place, turn in enumerate(rng.permutation(4)):
            picture = load_image(images.images[rng.choice(of_class[labels[turn % len(labels)]])])
            canvas.paste(
                ImageOps.fit(picture, (FIELD, FIELD)), (place % 2 * FIELD, place // 2 * FIELD)
            )
        pictures.append(canvas)
        several.append(tuple(sorted(labels.tolist())))
    first = tuple(own[0] for own in several)
    return ImageSet(
        tuple(pictures), first, images.classes, written=images.written, several=tuple(several)
    )


def labels_lines(lab: Lab, data: str, seed: int, backbone: str) -> list[dict[str, Any]]:
    """A line per method."""
    splits, found = lab.splits(data), []
    count = min(MOST, 40 * len(splits["train"].classes))
    lab.add(
        "mosaics",
        {
            "train": mosaics(splits["train"], count, seed),
            "test": mosaics(splits["test"], TESTED, seed),
        },
    )
    for name in ("zero-shot", "linear-probe"):
        wanted = Request.make({"backbone": backbone, "seed": seed}, name, data="mosaics")
        threshold = Folds.make(wanted.task, lab, FOLDS).threshold(wanted.method, name)
        [score] = run_task(wanted.task, wanted.method, lab, name, threshold=threshold).record.scores
        assert score.several
        figures = dict(zip(("map", "zero_shot", "f1"), score.several.means, strict=True))
        found.append({"study": "labels", "method": name, **figures, "threshold": threshold})
    return found


def other_lines(lab: Lab, data: str, seed: int, backbone: str) -> list[dict[str, Any]]:
    """A line per method and word: percent of right answers on images of the named classes, and on
    the others."""
    train, test = (_grouped(lab.splits(data)[split]) for split in ("train", "test"))
    lab.add("other", {"train": train})
    task = Request.make({"backbone": backbone, "seed": seed}, "zero-shot", data="other").task
    shots, models = lab.draw(task).train, {}
    for word in WORDS:
        images = replace(shots, classes=(*shots.classes[:-1], word))
        for name in ("zero-shot", "linear-probe-zero-shot", *["linear-probe"] * (word == ELSE)):
            models[f"{name}/{word}"] = learn(
                Request.make({}, name).method, images, task, lab
            ).score()
    parts = list(answers(models, lab.test_cache(task).stream(test)))
    labels, found = np.array(test.labels), []
    other = labels == len(test.classes) - 1
    for model in models:
        right = torch.cat([part[model] for part in parts]).numpy().argmax(1) == labels
        name, _, word = model.partition("/")
        shares = {
            "named": 100 * float(right[~other].mean()),
            "other": 100 * float(right[other].mean()),
        }
        found.append({"study": "other", "method": name, "word": word, **shares})
    return found


def _grouped(images: ImageSet) -> ImageSet:
    """The images with the second half of the classes merged into one, which comes last."""
    middle = (len(images.classes) + 1) // 2
    classes = (*images.classes[:middle], "other")
    return replace(
        images,
        labels=tuple(min(label, middle) for label in images.labels),
        classes=classes,
        written=classes,
    )


# What the lines say. A set is one observation: the mean over its seeds.


def mean(lines: Sequence[Line], sets: Sequence[str], figure: str, **wanted: str) -> float:
    chosen = [
        line for line in lines if all(line.get(name) == value for name, value in wanted.items())
    ]
    each = [[line[figure] for line in chosen if line["data"] == data] for data in sets]
    return fmean(fmean(values) for values in each if values)


def tables(lines: Sequence[Line]) -> str:
    """The tables of docs/data.md."""
    there = [data for data in REPORT if any(line["data"] == data for line in lines)]
    rows = [
        "| mosaics of | mAP, zero-shot | mAP, linear probe | macro F1, zero-shot | macro F1, linear probe |"
    ]
    rows += ["|---|---|---|---|---|"]
    for data in there:
        cells = [
            mean(lines, [data], figure, study="labels", method=method)
            for figure in ("map", "f1")
            for method in ("zero-shot", "linear-probe")
        ]
        rows.append(" | ".join([f"| {data}", *map("{:.1f}".format, cells)]) + " |")
    rows += ["", "| method, word | choosing | named | other |", "|---|---|---|---|"]
    pairs = dict.fromkeys(
        (line["method"], line["word"]) for line in lines if line["study"] == "other"
    )
    for method, word in sorted(pairs):
        wanted = {"study": "other", "method": method, "word": word}
        own = fmean(mean(lines, CHOOSE, figure, **wanted) for figure in ("named", "other"))
        cells = [own, *(mean(lines, there, figure, **wanted) for figure in ("named", "other"))]
        rows.append(" | ".join([f"| {method}, {word}", *map("{:.1f}".format, cells)]) + " |")
    return "\n".join(rows)


def lines_of(
    root: Path, data: str, seed: int, backbone: Backbone, device: str = "auto"
) -> list[dict[str, Any]]:
    """Both studies of a set; only the second for a set to choose on."""
    lab = Lab(Request.make({"device": device}).machine, root=root, keep=True, progress=False)
    lab.add_backbone(backbone)
    found = other_lines(lab, data, seed, backbone.name)
    found += [] if data in CHOOSE else labels_lines(lab, data, seed, backbone.name)
    about = {"backbone": backbone.name, "digest": backbone.digest, "versions": versions()}
    return [{"data": data, "seed": seed, **line, **about} for line in found]


def main() -> None:
    args = parser(__doc__, [*CHOOSE, *REPORT]).parse_args()
    lines = kept(args.out)
    if args.tables:
        print(tables(lines))
        return
    done, backbone = {(line["data"], line["seed"]) for line in lines}, load_backbone("pocket")
    for seed in args.seeds:
        for data in args.data:
            if (data, seed) not in done:
                found = lines_of(args.root, data, seed, backbone)
                keep(args.out, found)
                print(f"{data}, seed {seed}: {len(found)} lines", flush=True)


if __name__ == "__main__":
    main()
