"""Make the image of docs/guide/label.md: the page for labelling after some labels of generated
shapes, in a headless Chromium.

python tools/label_image.py shapes           # draws the shapes
rmadapter app shapes --backbone pocket
python tools/label_image.py http://127.0.0.1:8080/label docs/guide/label.png
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from browser import tab
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "star")
COUNT, SIDE, SEED = 48, 160, 1
LABELLED = 12
WIDTH = 1265


def draw(folder: Path) -> None:
    """Draw shapes of random size, place and colours, whose names do not say what they are."""
    rng = np.random.default_rng(SEED)
    folder.mkdir()
    for number in range(COUNT):
        light, dark = rng.integers(150, 256, 3), rng.integers(0, 120, 3)
        image = Image.new("RGB", (SIDE, SIDE), tuple(map(int, light)))
        radius = float(rng.uniform(30, 60))
        centre = rng.uniform(radius, SIDE - radius, 2)
        pen = ImageDraw.Draw(image)
        fill = tuple(map(int, dark))
        shape = SHAPES[int(rng.integers(len(SHAPES)))]
        if shape == "circle":
            pen.circle(tuple(centre), radius, fill=fill)
        elif shape == "square":
            pen.regular_polygon((*centre, radius), 4, rotation=int(rng.integers(90)), fill=fill)
        else:
            turns = rng.uniform(0, 2 * np.pi) + np.arange(10) * np.pi / 5
            reach = radius * np.where(np.arange(10) % 2, 0.4, 1.0)
            points = centre + reach[:, None] * np.stack([np.cos(turns), np.sin(turns)], 1)
            pen.polygon([tuple(point) for point in points], fill=fill)
        image.save(folder / f"photo-{number:03}.png")


def shoot(address: str, out: Path) -> None:
    """Label the first images, and save the page with the proposals for the others."""
    with tempfile.TemporaryDirectory() as home, tab(Path(home, "browser")) as page:
        size = {"width": WIDTH, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        page("Emulation.setDeviceMetricsOverride", **size)
        page.go(address)
        page.until("document.querySelectorAll('#grid > li').length")
        page.script("document.getElementById('names').focus()")
        page("Input.insertText", text=", ".join(SHAPES))
        page.press("Enter")
        page.until("document.getElementById('encoding').hidden", seconds=600)
        page.until("document.querySelectorAll('#labels > li').length === 3")
        page.script("document.querySelector('#grid > li[tabindex=\"0\"]').focus()")
        page.press("n")
        page.until("document.getElementById('grid').ariaBusy === 'false'")
        page.until("document.getElementById('grid').textContent.includes('middle')")
        rng = np.random.default_rng(SEED)
        truth = {f"photo-{number:03}.png": _next_shape(rng) for number in range(COUNT)}
        for _ in range(LABELLED):
            name = page.script("document.activeElement.lastElementChild.textContent")
            page.press(str(1 + SHAPES.index(truth[name])))
        count = "document.getElementById('count').textContent.match(/: (\\d+) of/)[1]"
        page.until(f"{count} >= {LABELLED}")
        page.until(
            f"document.getElementById('accuracy').textContent.includes(`of ${{{count}}} lab`)"
        )
        height = page.script("document.documentElement.scrollHeight")
        page("Emulation.setDeviceMetricsOverride", **{**size, "height": height})
        page.until("[...document.images].every((one) => one.complete)")
        page.shot(Path(home, "page.png"))
        with Image.open(Path(home, "page.png")) as shot:
            shot.convert("RGB").quantize().save(out, optimize=True)


def _next_shape(rng: np.random.Generator) -> str:
    """Return the next shape that `draw` drew, from a generator in the same state."""
    for low, high, count in ((150, 256, 3), (0, 120, 3)):
        rng.integers(low, high, count)
    radius = float(rng.uniform(30, 60))
    rng.uniform(radius, SIDE - radius, 2)
    shape = SHAPES[int(rng.integers(len(SHAPES)))]
    if shape == "square":
        rng.integers(90)
    elif shape == "star":
        rng.uniform(0, 2 * np.pi)
    return shape


if __name__ == "__main__":
    if len(sys.argv) == 2:
        draw(Path(sys.argv[1]))
    else:
        shoot(sys.argv[1], Path(sys.argv[2]))
