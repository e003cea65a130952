"""Measure the zero-shot accuracy of any backbones on the test images of any data sets: the table of
docs/reference/pocket.md.

    python evaluate.py --root DATA --openmoji --json > results.jsonl

A data set is DATA/SET/test/CLASS/ or, with domains, DATA/SET/DOMAIN/test/CLASS/ (each beside
train/); without --sets, all of them. Class names are those of the library, or of
SET/classnames.json. OpenMoji's pictograms are classified in three ways: all classes, the first
half ("base") and the second ("novel"). Everything is computed in float32.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import torch

from rmadapter.backbones import Backbone, load_backbone
from rmadapter.data.catalog.openmoji import Style, load_openmoji
from rmadapter.data.catalog.readers import subfolders
from rmadapter.data.catalog.sets import domains, load_dataset
from rmadapter.data.fewshot import half
from rmadapter.data.read import ImageSet
from rmadapter.errors import UserError
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.metrics import accuracy
from rmadapter.support.machine import versions
from rmadapter.task import TEMPLATES
from rmadapter.training.contract import Known


def sets_in(root: Path) -> list[str]:
    """List all data sets with a test split, domains as SET/DOMAIN."""
    names = [
        f"{name}/{domain}" for name in subfolders(root) for domain in domains(root / name) or [""]
    ]
    sets = [name.rstrip("/") for name in names if (root / name / "test").is_dir()]
    if not sets:
        raise UserError(f"{root}: holds no data sets; they are folders as SET/test/CLASS/ there")
    return sets


def test_images(root: Path, name: str) -> ImageSet:
    """Read the test images of a set or a domain. Raises UserError without any."""
    splits = load_dataset(name, root)
    if "test" not in splits:
        raise UserError(
            f"{root / name}: has no test split; images belong in {root / name}/test/CLASS/"
        )
    return splits["test"]


def questions(
    root: Path | None, names: list[str], openmoji: bool, size: int
) -> Iterator[tuple[str, ImageSet]]:
    """Yield name and images of every line of the table. size: of pictograms, in pixels."""
    if root:
        yield from ((name, test_images(root, name)) for name in names or sets_in(root))
    for style in get_args(Style) if openmoji else ():
        images = load_openmoji(size, style)["test"]
        yield from (
            (f"openmoji/{style}/{part}", half(images, part)) for part in ("all", "base", "novel")
        )


def zero_shot(backbone: Backbone, images: ImageSet, template: str) -> float:
    """Measure the top-1 accuracy in percent."""
    fitted = ZeroShot().restore(backbone, Known(images.classes, (template,)), {})
    return accuracy(
        torch.cat(list(fitted.probabilities(images.images))).cpu().numpy(), images.labels
    )


def evaluate(name: str, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield one line of the table after the other."""
    backbone = load_backbone(name)
    for question, images in questions(
        arguments.root, arguments.sets, arguments.openmoji, backbone.image_size
    ):
        yield {
            "set": question,
            "backbone": {"name": name, "digest": backbone.digest},
            "template": arguments.template,
            "classes": len(images.classes),
            "images": len(images),
            "accuracy": zero_shot(backbone, images, arguments.template),
            "versions": versions(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, help="folder of the data sets")
    parser.add_argument(
        "--sets",
        nargs="*",
        default=[],
        help="such as caltech101 pacs/photo (default: all in the root)",
    )
    parser.add_argument(
        "--openmoji",
        action="store_true",
        help="the demo's pictograms too, in colour and as line art",
    )
    parser.add_argument("--backbones", nargs="+", default=["pocket"], help="default %(default)s")
    parser.add_argument("--template", default=TEMPLATES[0], help="default %(default)r")
    parser.add_argument(
        "--json", action="store_true", help="one JSON line a result instead of a table"
    )
    arguments = parser.parse_args()
    if not arguments.root and not arguments.openmoji:
        parser.error("nothing to evaluate: give --root, --openmoji or both")
    for name in arguments.backbones:
        for line in evaluate(name, arguments):
            title = (
                f"{name:20} {line['set']:24} {line['classes']:4} classes {line['images']:5} images"
            )
            print(
                json.dumps(line) if arguments.json else f"{title} {line['accuracy']:5.1f} %",
                flush=True,
            )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
