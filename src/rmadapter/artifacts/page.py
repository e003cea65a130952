"""Pages of images: each is one HTML file with thumbnails inside that needs no network and no
script."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterable
from html import unescape
from pathlib import Path

from rmadapter.artifacts.mistakes import Neighbour
from rmadapter.data.read import ImageSource, load_image
from rmadapter.errors import UserError
from rmadapter.support.files import JsonObject, read_text, write_text
from rmadapter.support.html import template
from rmadapter.support.plots import duration

THUMBNAIL, SMALL = 160, 96  # pixels of the longer side; SMALL: of a training image beside another


def write_html(path: Path, template_name: str, **values: object) -> None:
    """Render a template of the package and write it atomically; equal values give equal bytes.

    Templates escape values for HTML and may use the filters `percent`, `duration` and `count`.
    """
    page = template(template_name, percent=percent, duration=duration)
    write_text(path, page.render(values))


def percent(value: float | None, digits: int = 1, sign: bool = False) -> str:
    """Format a figure in percent with a true minus sign; a dash if there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("-", "−")


def thumbnail(source: ImageSource | None, side: int = THUMBNAIL) -> str:
    """Return an image as a data: address, its longer side at most `side` pixels; "" if it is
    unreadable or None."""
    if source is None:
        return ""
    try:
        image = load_image(source)
    except UserError:
        return ""
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def neighbour_cards(neighbours: Iterable[Neighbour]) -> list[JsonObject]:
    """Return what a page shows of nearby images: their fields, and a small thumbnail as `src`."""
    return [{**near._asdict(), "src": thumbnail(near.source, SMALL)} for near in neighbours]


def thumbnails_of(page: Path) -> dict[tuple[int, str], str]:
    """Read the thumbnails of a run's page by number of the set and path, so that it can be written
    again without its images."""
    try:
        text = read_text(page, errors="replace") if page.is_file() else ""
    except UserError:  # far larger than any page
        return {}
    card = (
        r'<\w+ class="\w+" data-set="(-?\d+)" title="([^"]*)">\s*'
        r'<img src="(data:image/jpeg;base64,[\w+/=]+)"'
    )
    return {(int(number), unescape(file)): src for number, file, src in re.findall(card, text)}
