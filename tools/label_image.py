"""Make the images of docs/guide/label.md: each step from a folder of unlabelled shapes to a page
that answers on a phone, in a headless Chromium.

python tools/label_image.py docs/guide

The shapes are drawn: 48 to label, and others to try the classifier on. One label is wrong at first.
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
from urllib.parse import urljoin

import numpy as np
from browser import STATE, Tab, served, tab
from PIL import Image, ImageDraw

SHAPES = {"circle": 0, "square": 4, "hexagon": 6, "star": 5}  # corners
COUNT, TRIED, SIDE, SEED = 48, 3, 160, 1
FIRST, LABELLED, WRONG = 14, 32, 20  # labels of two pictures; number of the wrong one
WIDTH, PHONE = 900, (400, 760)
BACKBONE, METHOD = "pocket", "block-ridge"
COUNTED = "Number((document.getElementById('count').textContent.match(/: (\\d+) of/) ?? [0, 0])[1])"


def shapes(count: int, seed: int) -> Iterator[tuple[str, Image.Image]]:
    """Draw shapes of random size, place and colours; yields the name of each with it."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        light, dark = rng.integers(150, 256, 3), rng.integers(0, 120, 3)
        image = Image.new("RGB", (SIDE, SIDE), tuple(map(int, light)))
        radius = float(rng.uniform(30, 60))
        centre = rng.uniform(radius, SIDE - radius, 2)
        name = str(rng.choice([*SHAPES]))
        corners = SHAPES[name] * (2 if name == "star" else 1) or 90
        turns = rng.uniform(0, 2 * np.pi) + np.arange(corners) * 2 * np.pi / corners
        inner = (name == "star") & (np.arange(corners) % 2 == 1)
        points = centre + radius * np.where(inner, 0.4, 1.0)[:, None] * np.stack(
            [np.cos(turns), np.sin(turns)], 1
        )
        fill = tuple(map(int, dark))
        ImageDraw.Draw(image).polygon([tuple(point) for point in points], fill=fill)
        yield name, image


def draw(folder: Path, count: int, seed: int) -> dict[str, str]:
    """Write shapes under names that do not say what they are; returns what each is."""
    folder.mkdir()
    truth = {}
    for number, (shape, image) in enumerate(shapes(count, seed)):
        name = f"photo-{number:03}.png"
        image.save(folder / name)
        truth[name] = shape
    return truth


@contextmanager
def app(folder: Path, backbone: str) -> Iterator[str]:
    """Start the page on a folder; yield the address of its page for labelling."""
    words = ["app", str(folder), "--backbone", backbone, "--port", "0", "--json"]
    command = [sys.executable, "-m", "rmadapter", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["address"]
    finally:
        process.terminate()
        process.communicate(timeout=60)


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

    def label(self, address: str, names: list[str], truth: dict[str, str], wanted: int) -> int:
        """Name the classes, and label images until as many as wanted are; return how many have a
        label."""
        page, started = self.page, time.monotonic()
        page.go(address)
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
        while self.labelled() < wanted:
            name = page.script("document.activeElement.lastElementChild.textContent")
            if page.script("document.activeElement.matches('.done')"):
                page.press("n")
                page.until("document.getElementById('grid').ariaBusy === 'false'")
                page.until("document.activeElement.matches('#grid > li:not(.done)')")
            else:
                before = self.labelled()
                page.press(str(1 + names.index(truth[name])))
                page.until(f"{COUNTED} > {before}")  # shown after the grid
                page.until(
                    "document.getElementById('grid').ariaBusy !== 'true' && "
                    f"document.activeElement.lastElementChild.textContent !== {json.dumps(name)}"
                    " || document.activeElement.matches('.done')"
                )
            self.keys += 1
        self.timed("label", started)
        return self.labelled()

    def labelled(self) -> int:
        return int(self.page.script(COUNTED))

    def deploy(self, address: str, method: str = "rmadapter-plus") -> Path:
        """Train, and take the classifier along as a page; returns its folder."""
        page, started = self.page, time.monotonic()
        page.go(urljoin(address, "/"))
        self.clicks += 1  # the link on the page for labelling
        page.until("document.getElementById('images').innerText.includes('Training uses these')")
        if method != "rmadapter-plus":  # which the page has chosen
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


class Guide:
    """A person in a browser, who takes pictures of each step."""

    def __init__(self, page: Tab, address: str, truth: dict[str, str], out: Path) -> None:
        self.page, self.address, self.truth, self.out = page, address, truth, out
        page.resize(WIDTH, 800)

    def shoot(self, step: str, *selectors: str) -> None:
        self.page.resize(WIDTH)
        self.page.shot(self.out / f"label_{step}.png", *selectors)

    def name_classes(self) -> None:
        page = self.page
        page.go(self.address)
        page.until("document.querySelectorAll('#grid > li').length")
        page.script("document.getElementById('names').focus()")
        page.write(", ".join(SHAPES))
        self.shoot("start", "nav", "#grid > li:nth-child(6)")
        page.press("Enter")
        page.until(f"document.querySelectorAll('#labels > li').length === {len(SHAPES)}")
        page.until("document.getElementById('encoding').hidden", seconds=600)
        page.script("document.querySelector('#grid > li[tabindex=\"0\"]').focus()")
        self.next_images()
        page.until("document.getElementById('grid').textContent.includes('Perhaps')", seconds=600)

    def next_images(self) -> None:
        self.page.press("n")
        self.page.until("document.getElementById('grid').ariaBusy === 'false'")
        self.page.until("document.activeElement.matches('#grid > li:not(.done)')")

    def label(self, count: int) -> None:
        """Label images, the wrong one too, until so many have a label and all is computed."""
        page = self.page
        while (done := page.script(COUNTED)) < count:
            if page.script("document.activeElement.matches('.done')"):
                self.next_images()
            name = page.script("document.activeElement.lastElementChild.textContent")
            place = [*SHAPES].index(self.truth[name])
            page.press(str(1 + (place + (done == WRONG)) % len(SHAPES)))
            page.until(f"{COUNTED} > {done}")
        page.until(
            f"document.getElementById('accuracy').textContent.includes(`of ${{{COUNTED}}} lab`)"
        )

    def look(self) -> None:
        """Look at the mistakes, of which one is the wrong label, and give the right labels."""
        page = self.page
        page.script("document.getElementById('mistakes').click()")
        page.until("document.activeElement.matches('#grid > li')")
        page.until("document.getElementById('grid').textContent.includes('Taken for')")
        self.shoot("look", "#view", "#unfamiliar")
        names = (
            "[...document.querySelectorAll('#grid > li > :last-child')].map((p) => p.textContent)"
        )
        for name in page.script(names):
            shown = "document.activeElement.lastElementChild.textContent"
            page.until(f"{shown} === {name!r}")
            page.press(str(1 + [*SHAPES].index(self.truth[name])))

    def deploy(self, walk: Walk, tried: Path) -> Path:
        """Train, try the classifier on images, and take it along as a page; returns its folder."""
        page = self.page
        page.resize(WIDTH, 800)
        made = walk.deploy(self.address, METHOD)
        self.shoot("train", "#train", "#judge")
        files = sorted(tried.iterdir())
        page.choose("#files", *files)
        page.until(f"document.querySelectorAll('#answers > li').length === {len(files)}")
        self.shoot("try", "#try")
        self.shoot("get", "#get")
        return made

    def answer(self, made: Path, image: Path) -> None:
        """Ask the page that was made, as on a phone."""
        page = self.page
        with served(made.parent) as address:
            page.resize(*PHONE)
            page.go(f"{address}{made.name}/index.html")
            page.until(f"{STATE} === 'Ready.'")
            page.choose("input[type=file]", image)
            page.until("document.querySelector('#answers > li') !== null")
            page.shot(self.out / "label_phone.png")


def main(out: Path) -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        root = Path(home)
        truth = draw(root / "shapes", COUNT, SEED)
        draw(root / "tried", TRIED, SEED + 1)
        (root / "got").mkdir()
        with app(root / "shapes", BACKBONE) as address, tab(root / "home") as page:
            page.download_to(root / "got")
            guide = Guide(page, address, truth, out)
            guide.name_classes()
            guide.label(FIRST)
            guide.shoot("label", "#kinds", "#grid")
            guide.label(LABELLED)
            guide.look()
            made = guide.deploy(Walk(page, root / "got"), root / "tried")
            guide.answer(made, root / "tried" / "photo-000.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
