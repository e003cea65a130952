"""Walk the way of docs/guide/label.md in a real browser: from a folder of unlabelled images to a
page that answers by itself, and count keys, clicks and seconds.

    python research/scripts/label_walk.py --root DATA --out research/results/label_walk.jsonl
    python research/scripts/label_walk.py --out research/results/label_walk.jsonl --tables \\
        --page research/studies/label.md

The images are those of label_curve.py, draw 1, under names that say nothing. The person makes
no mistakes, gives each image its label with one key, and turns to the next images when a screen is
done; the order is the one that the page begins with, then the one for what comes next. Seconds are
those that the machine needs: a person's come on top. A line is one data set.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from browser import STATE, Tab, served, tab
from label_curve import HEAP, SETS, some_of
from label_image import Walk, app
from prove_page import answer_of
from studies import Lines, append_lines, make_parser, markdown, read_lines, show

from rmadapter import load, load_backbone
from rmadapter.artifacts.record import read_record
from rmadapter.data.image_set import ImageSet
from rmadapter.runs.lab import Lab
from rmadapter.support.machine import versions

DRAW = 1
LABELS = HEAP // 3
ASKED = 100  # test images, at most
STEPS = ("encode", "label", "train", "export")


def write_images(images: ImageSet, folder: Path) -> dict[str, str]:
    """Copy images under names that say nothing; returns the label of each name."""
    folder.mkdir()
    truth = {}
    for i, (source, label) in enumerate(zip(images.images, images.labels, strict=True)):
        assert isinstance(source, Path)
        name = f"photo-{i:03}{source.suffix}"
        (folder / name).write_bytes(source.read_bytes())
        truth[name] = images.classes[label]
    return truth


def ask(page: Tab, made: Path, images: ImageSet) -> list[str]:
    """Return what the page that was made answers."""
    root = made.parent
    (root / "images").mkdir()
    found = []
    with served(root) as address:
        page.go(f"{address}{made.name}/index.html")
        page.until(f"{STATE} === 'Ready.'")
        for i, source in enumerate(images.images):
            assert isinstance(source, Path)
            file = root / "images" / f"image-{i}{source.suffix}"
            file.write_bytes(source.read_bytes())
            answer = answer_of(page, file)
            found.append(max(answer, key=lambda label: answer[label]))
    return found


def walk(lab: Lab, data: str, backbone: str, method: str = "rmadapter-plus") -> dict[str, Any]:
    splits = lab.splits(data)
    heap = splits["train"].subset(some_of(len(splits["train"]), HEAP, DRAW))
    test = splits["test"].subset(some_of(len(splits["test"]), ASKED, DRAW))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        root = Path(name)
        truth = write_images(heap, root / "photos")
        (root / "got").mkdir()
        with app(root / "photos", backbone) as address, tab(root / "home") as page:
            page.download_to(root / "got")
            person = Walk(page, root / "got")
            labels = person.label(address, list(heap.classes), truth, LABELS)
            made = person.deploy(address, method)
            answers = ask(page, made, test)
        [run] = (root / "photos" / "runs").iterdir()
        trained = read_record(run / "run.json").method.name
        saved = load(run, load_backbone(backbone))
        shares = np.concatenate([*saved.fitted.probabilities([*test.images], saved.names)])
    own = shares.argmax(1).tolist()
    hits = [a == test.classes[label] for a, label in zip(answers, test.labels, strict=True)]
    return {
        "data": data, "images": len(heap), "labels": labels, "keys": person.keys,
        "clicks": person.clicks, "seconds": person.seconds, "method": trained, "asked": len(hits),
        "same": sum(saved.labels[best] == a for best, a in zip(own, answers, strict=True)),
        "test": round(100 * fmean(hits), 4),
    }  # fmt: skip


def table(lines: Lines) -> str:
    rows = [
        [
            line["data"], f"{line['labels']} of {line['images']}", str(line["keys"]),
            str(line["clicks"]), *(f"{line['seconds'][step]:.0f}" for step in STEPS),
            line["method"], f"{line['same']} of {line['asked']}", f"{line['test']:.1f}",
        ]
        for line in lines
    ]  # fmt: skip
    heads = [f"{step}, s" for step in STEPS]
    return markdown(
        ["data set", "labels", "keys", "clicks", *heads, "method", "as the model", "right, %"], rows
    )


def main() -> None:
    parser = make_parser(__doc__, SETS, seeds=False)
    parser.add_argument("--backbone", default="pocket")
    parser.add_argument("--page", type=Path, help="put the table into this page")
    args = parser.parse_args()
    lines = read_lines(args.out)
    if args.tables:
        show({"walk": table(lines)}, args.page)
        return
    lab = Lab(root=args.root, keep=True, progress=False)
    for data in args.data:
        if data not in {line["data"] for line in lines}:
            line = walk(lab, data, args.backbone)
            append_lines(args.out, [{**line, "versions": versions()}])
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
