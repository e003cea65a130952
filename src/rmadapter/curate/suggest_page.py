"""Suggestions as a CSV file, and as a page with the images."""

from __future__ import annotations

from pathlib import Path

from rmadapter.artifacts.page import thumbnail, write_html
from rmadapter.curate.suggest import Suggested
from rmadapter.support.files import csv_text, inert, inert_path, path_from, write_text

COLUMNS = ("image", "label", "rank", "score", "guess", "probability", "guess_2", "probability_2")
MOST = 300  # images on the page
MEANINGS = {
    "margin": "The model is least sure which of two classes these belong to.",
    "entropy": "The model is least sure what these are.",
    "coverage": "Each is as far as possible from all labelled images and those listed before it.",
    "typicality": "Each represents a cluster of images; large clusters without labels come first.",
    "mix": "Different kinds of images that the model is unsure about.",
    "balanced": "Typical images, equally many of each class as the untouched model sees them.",
    "random": "Drawn at random.",
}


def write_csv(path: Path, found: Suggested) -> None:
    """Write one suggestion per row, in the order to label them, atomically. "label" is left for the
    user to fill in; paths are relative to the list, as in every table of images."""
    rows = []
    for one in found.suggestions:
        best = [cell for label, share in one.best for cell in (inert(label), share)]
        image = inert_path(path_from(path.parent, one.image))
        rows.append([image, "", one.rank, one.score, *best, *[""] * (4 - len(best))])
    write_text(path, csv_text(COLUMNS, rows))


def write_page(path: Path, found: Suggested, pool: str, table: Path) -> None:
    """Write the page atomically; it needs no network and no script. pool: its name on the page.
    table: the list."""
    some = found.suggestions[:MOST]
    cards = [{"src": thumbnail(one.image), **one._asdict()} for one in some]
    names = {"pool": pool, "table": table.name, "meaning": MEANINGS[found.rule]}
    write_html(path, "suggest.html.j2", found=found, cards=cards, **names)
