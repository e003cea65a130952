"""Explanations as a page: each image with its answer and its nearest training images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rmadapter.artifacts.page import percent
from rmadapter.artifacts.page_sections import SMALL, thumbnail
from rmadapter.predict.explain import Explanation
from rmadapter.support.files import write_text
from rmadapter.support.html import template


def write_page(path: Path, found: Sequence[Explanation], run: str) -> None:
    """Write the page atomically; it needs no network and no script. run: its name on the page."""
    cards = []
    for one in found:
        neighbours = [
            {**near._asdict(), "src": thumbnail(near.source, SMALL)} for near in one.neighbours
        ]
        cards.append({**vars(one), "neighbours": neighbours, "src": thumbnail(one.image)})
    html = template("explain.html.j2", percent=percent).render(cards=cards, run=run)
    write_text(path, html)
