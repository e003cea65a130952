"""Walk the way of docs/guide/label.md in a real browser: from a folder of unlabelled images to a
page that answers by itself, and count keys, clicks and seconds.

    python tools/label_walk.py --root DATA --out docs/results/label_walk.jsonl
    python tools/label_walk.py --out docs/results/label_walk.jsonl --tables \\
        --page docs/studies/label.md

The images are those of tools/label_curve.py, draw 1, under names that say nothing. The person makes
no mistakes, gives each image its label with one key, and turns to the next images when a screen is
done; the order is the one that the page begins with, then the one for what comes next. Seconds are
those that the machine needs: a person's come on top. A line is one data set.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from browser import STATE, Tab, served, tab
from label_curve import HEAP, SETS, some_of
from prove_page import answer_of
from studies import Lines, append_lines, make_parser, markdown, read_lines, show

from rmadapter import load, load_backbone
from rmadapter.artifacts.record import read_record
from rmadapter.data.image_set import ImageSet
from rmadapter.runs.lab import Lab
from rmadapter.support.machine import versions

DRAW = 1
LABELS = HEAP // 3
# of images with a label, as the page shows it
COUNT = "Number((document.getElementById('count').textContent.match(/: (\\d+) of/) ?? [0, 0])[1])"
ASKED = 100  # test images, at most
STEPS = ("encode", "label", "train", "export")


@contextmanager
def app(folder: Path, backbone: str) -> Iterator[str]:
    """Start the page on a folder; yield its address."""
    words = ["app", str(folder), "--backbone", backbone, "--port", "0", "--json"]
    command = [sys.executable, "-m", "rmadapter", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["address"].removesuffix("label")
    finally:
        process.terminate()
        process.communicate(timeout=60)


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


class Walk:
    """A browser, and what a person did in it."""

    def __init__(self, page: Tab, got: Path) -> None:
        self.page, self.got = page, got
        self.keys = self.clicks = 0
        self.seconds: dict[str, float] = {}

    def timed(self, step: str, started: float) -> None:
        self.seconds[step] = round(time.monotonic() - started, 1)

    def click(self, selector: str) -> None:
        self.page.script(f"document.querySelector({json.dumps(selector)}).click()")
        self.clicks += 1

    def label(self, address: str, names: list[str], truth: dict[str, str]) -> int:
        """Name the classes, and label images until LABELS are; returns how many have a label."""
        page, started = self.page, time.monotonic()
        page.go(f"{address}label")
        page.until("document.querySelectorAll('#grid > li').length")
        page.script("document.getElementById('names').focus()")
        page.write(", ".join(names))
        page.press("Enter")
        self.keys += len(", ".join(names)) + 1
        page.until(f"document.querySelectorAll('#labels > li').length === {len(names)}")
        page.until("document.getElementById('encoding').hidden", seconds=900)
        self.timed("encode", started)
        started = time.monotonic()
        page.script("document.querySelector('#grid > li[tabindex=\"0\"]').focus()")
        while self.labelled() < LABELS:
            name = page.script("document.activeElement.lastElementChild.textContent")
            if page.script("document.activeElement.matches('.done')"):
                page.press("n")
                page.until("document.getElementById('grid').ariaBusy === 'false'")
                page.until("document.activeElement.matches('#grid > li:not(.done)')")
            else:
                before = self.labelled()
                page.press(str(1 + names.index(truth[name])))
                page.until(f"{COUNT} > {before}")  # shown after the grid
                page.until(
                    "document.getElementById('grid').ariaBusy !== 'true' && "
                    f"document.activeElement.lastElementChild.textContent !== {json.dumps(name)}"
                    " || document.activeElement.matches('.done')"
                )
            self.keys += 1
        self.timed("label", started)
        return self.labelled()

    def labelled(self) -> int:
        return int(self.page.script(COUNT))

    def deploy(self, address: str, method: str = "auto") -> Path:
        """Train, and take the classifier along as a page; returns its folder."""
        page, started = self.page, time.monotonic()
        page.go(address)
        self.clicks += 1  # the link on the page for labelling
        page.until("document.getElementById('images').innerText.includes('Training uses these')")
        if method != "auto":  # which the page has chosen
            self.click(f"[value={method}]")
        self.click("#go")
        done = "document.querySelector('#train > .message').textContent"
        page.until(f"{done} === 'Training is done.'", seconds=1800)
        self.timed("train", started)
        started = time.monotonic()
        self.click("#targets button:nth-of-type(2)")
        page.until("document.querySelector('#targets a') !== null", seconds=900)
        self.click("#targets a")
        until = time.monotonic() + 120
        while not [*self.got.glob("*.zip")]:
            assert time.monotonic() < until, "no download"
            time.sleep(0.1)
        self.timed("export", started)
        with zipfile.ZipFile(next(self.got.glob("*.zip"))) as file:
            file.extractall(self.got / "page")
        (inside,) = (self.got / "page").iterdir()
        return inside


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


def walk(lab: Lab, data: str, backbone: str) -> dict[str, Any]:
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
            labels = person.label(address, list(heap.classes), truth)
            made = person.deploy(address)
            answers = ask(page, made, test)
        [run] = (root / "photos" / "runs").iterdir()
        method = read_record(run / "run.json").method.name
        saved = load(run, load_backbone(backbone))
        shares = np.concatenate([*saved.fitted.probabilities([*test.images], saved.names)])
    own = shares.argmax(1).tolist()
    hits = [a == test.classes[label] for a, label in zip(answers, test.labels, strict=True)]
    return {
        "data": data, "images": len(heap), "labels": labels, "keys": person.keys,
        "clicks": person.clicks, "seconds": person.seconds, "method": method, "asked": len(hits),
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
