"""Explanations as a page: each image with its answer, its heat map and its nearest training images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from rmadapter.explain.why import MAP, Explanation
from rmadapter.files import write_text
from rmadapter.html import template
from rmadapter.page import percent
from rmadapter.panel import SMALL, thumbnail

SIDE = 160  # pixels of an overlay
HOT = (230, 60, 0)  # over a grey image


def write_page(path: Path, found: Sequence[Explanation], run: str) -> None:
    """Write the page atomically; it needs no network and no script. run: its name on the page."""
    cards = []
    for one in found:
        neighbours = [{**near._asdict(), "src": thumbnail(near.source, SMALL)} for near in one.neighbours]
        heat = None if one.heat is None else thumbnail(overlay(one))
        cards.append({**vars(one), "neighbours": neighbours, "src": thumbnail(one.image), "heat": heat})
    html = template("explain.html.j2", percent=percent).render(cards=cards, run=run, map=MAP)
    write_text(path, html)


def overlay(one: Explanation) -> Image.Image:
    """What the model saw in grey, with what counted over it in orange."""
    assert one.heat is not None
    seen = Image.fromarray((one.pixels.permute(1, 2, 0).numpy() * 255).astype(np.uint8)).resize((SIDE, SIDE))
    heat = Image.fromarray((one.heat.numpy() * 255).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    mask = heat.point([round(0.75 * value) for value in range(256)])
    return Image.composite(Image.new("RGB", (SIDE, SIDE), HOT), seen.convert("L").convert("RGB"), mask)
