"""Suspects as a CSV file with a column for decisions, and as a page with the images side by side."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rmadapter.artifacts.page import percent
from rmadapter.artifacts.page_sections import thumbnail
from rmadapter.curate.suspects import ORDER, Found, Suspect, kind
from rmadapter.data.names import Label
from rmadapter.support.files import csv_text, inert, inert_path, write_text
from rmadapter.support.html import template

COLUMNS = ("image", "given", "suggested", "confidence", "reasons", "neighbours", "decision")
MOST, SMALL = 60, 96  # suspects of one kind on the page; pixels of the longer side of a neighbour
MEANINGS = {
    "broken": "Files that cannot be read.",
    "two labels": "The same or nearly the same picture under different labels: at least one of them is wrong.",
    "wrong label": "Another class is confidently more probable than the label. The clearest cases come first.",
    "same file": "Byte-for-byte copies of another training image of the same class, so of no use.",
    "nearly the same": "An image of the same class resized, mirrored or from the same burst.",
    "one colour": "Hardly anything to see.",
    "tiny": "Far smaller than the other images.",
    "blurred": "Far less sharp than the other images.",
    "unlike": "The 1 % of all images that are farthest from others, as the untouched model sees them.",
}


def write_csv(path: Path, found: Found) -> None:
    """One row per suspect, the worst first; an empty decision keeps the image as it is. Written
    atomically."""
    rows = []
    for one in found.suspects:
        near = "; ".join(
            f"{other.image} ({other.label}, {other.similarity:.2f})" for other in one.neighbours
        )
        unsure = (
            ("", "")
            if one.confidence is None
            else (label_cell(one.suggested), f"{one.confidence:.3f}")
        )
        cells = (*map(inert, ("; ".join(one.reasons), near)), "")
        rows.append([image_cell(one.image), label_cell(one.given), *unsure, *cells])
    write_text(path, csv_text(COLUMNS, rows))


def image_cell(name: str) -> str:
    return _written(inert_path(name))


def label_cell(label: Label | None) -> str:
    return _written(inert(str(label)))


def _written(text: str) -> str:
    """Text in the form it is read back: file names that are not UTF-8 get backslashes."""
    return text.encode(errors="backslashreplace").decode()


def write_page(
    path: Path,
    found: Found,
    data: str,
    method: str,
    table: Path,
    more: Sequence[str] = ("--out", "CLEAN"),
) -> None:
    """Write the page atomically; it needs no network and no script. data, method: names to show.
    table: the list. more: options of the command that applies the list."""
    html = template("suspects.html.j2", percent=percent).render(
        data=data,
        method=method,
        table=table.name,
        command=shlex.join(["rmadapter", "suspects", data, "--apply", str(table), *more]),
        total=len(found.suspects),
        images=found.total,
        judged=found.judged,
        sections=list(_sections(found)),
    )
    write_text(path, html)


def _sections(found: Found) -> Iterator[dict[str, Any]]:
    """Suspects grouped by their worst reason."""
    for which in ORDER:
        some = [one for one in found.suspects if kind(one.reasons[0]) == which]
        if some:
            cards = [_card(found, one) for one in some[:MOST]]
            yield {"title": which, "meaning": MEANINGS[which], "count": len(some), "cards": cards}


def _card(found: Found, one: Suspect) -> dict[str, Any]:
    return {
        "image": one.image,
        "src": "" if one.row is None else thumbnail(found.images.images[one.row]),
        "given": one.given,
        "suggested": one.suggested,
        "confidence": None if one.confidence is None else 100 * one.confidence,
        "reasons": one.reasons,
        "neighbours": [
            {
                **other._asdict(),
                "src": thumbnail(found.images.images[other.row], SMALL),
                "suggested": one.suggested is not None and other.label == one.suggested,
            }
            for other in one.neighbours
        ],
    }
