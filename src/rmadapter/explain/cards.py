"""Explanations as a page: each image with its answer, its heat map and its nearest training images."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from rmadapter.data.images import ImageSet
from rmadapter.explain.why import MAP, Explanation
from rmadapter.files import write_text
from rmadapter.page import percent, template, thumbnail

SIDE, SMALL = 160, 96  # pixels of an image, and of a neighbour
HOT = (230, 60, 0)  # over a grey image


def write_page(path: Path, found: Sequence[Explanation], run: str) -> None:
    """The page, atomically; it needs no network and no script. run: as it names the run."""
    cards = []
    for one in found:
        near = ImageSet(tuple(n.path for n in one.neighbours), (0,) * len(one.neighbours), ("",))
        neighbours = [{**n._asdict(), "src": thumbnail(near, i, SMALL)} for i, n in enumerate(one.neighbours)]
        src = thumbnail(ImageSet((one.image,), (0,), ("",)), 0)
        heat = None if one.heat is None else _address(overlay(one))
        cards.append({**vars(one), "neighbours": neighbours, "src": src, "heat": heat})
    html = template("explain.html.j2", percent=percent, count=lambda n: f"{n:,}").render(cards=cards, run=run, map=MAP)
    write_text(path, html)


def overlay(one: Explanation) -> Image.Image:
    """What the model saw, in grey, and over it in orange what counted."""
    assert one.heat is not None
    seen = Image.fromarray((one.pixels.permute(1, 2, 0).numpy() * 255).astype(np.uint8)).resize((SIDE, SIDE))
    heat = Image.fromarray((one.heat.numpy() * 255).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    mask = heat.point([round(0.75 * value) for value in range(256)])
    return Image.composite(Image.new("RGB", (SIDE, SIDE), HOT), seen.convert("L").convert("RGB"), mask)


def _address(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
