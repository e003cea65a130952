"""SVG drawings out of Iconify's packages, with what they show: emoji in their colours and as line
art, and icons."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pools import read
from sources import package

EMOJI: tuple[str, ...] = (
    "noto", "noto-v1", "twemoji", "fluent-emoji", "fluent-emoji-flat", "emojione",
)  # fmt: skip
EMOJI += (
    "fluent-emoji-high-contrast", "emojione-monotone", "emojione-v1", "fxemoji",
    "streamline-emojis",
)  # fmt: skip
FLAT = (
    "noto",
    "noto-v1",
    "twemoji",
    "fluent-emoji-flat",
    "emojione",
)  # become line art when their fills are taken off
KNOWN_ONLY = (
    "noto",
    "twemoji",
    "noto-v1",
    "emojione",
    "emojione-v1",
    "emojione-monotone",
)  # else left out
ICONS: tuple[str, ...] = (
    "game-icons", "flat-color-icons", "icon-park", "icon-park-outline", "ph", "tabler", "maki",
)  # fmt: skip
ICONS += ("medical-icon", "healthicons", "lucide", "mdi", "mingcute", "hugeicons", "meteocons")
ICONS += (
    "streamline-freehand-color",
    "streamline-plump",
    "streamline-ultimate-color",
    "streamline-flex",
)
ICONS += (
    "fluent-color", "material-symbols", "solar", "uil", "fa6-solid", "map", "carbon", "fluent",
    "streamline",
)  # fmt: skip
ICONS += ("streamline-ultimate", "vaadin", "la", "guidance")
RICH = ("ph", "icon-park", "game-icons")  # two icons of a name are taken from these
MOST_OF_A_NAME = 12  # icons, over all packages
SKIN_TONE = re.compile(r"(medium-)?(light|dark|medium)-skin-tone|-(dark|light|medium)$")
STYLES = re.compile(
    r"-(outline|fill|filled|bold|light|thin|duotone|solid|rounded|sharp|line|linear|broken|variant|twotone|24|16|20|32|"
    r"48|\d+|01|02|regular|remix|flat|bulk)+\b"
)
PAINT = re.compile(
    r'\s(fill|stroke|opacity|fill-opacity|stroke-width|style|filter|mask|stroke-linecap|stroke-miterlimit)="[^"]*"'
)
COMPONENTS, FLAGS = 2, 9  # groups of emojibase that are left out


class Drawing(NamedTuple):
    """style: "noto:line", with the package in front. key: as labels.py reads it."""

    style: str
    key: list[Any]
    svg: str


class Icon(NamedTuple):
    body: str
    left: float
    top: float
    width: float
    height: float


def read_icons(folder: Path) -> dict[str, Icon]:
    """Read the icons of one package by name."""
    data = read(folder / "icons.json")
    width = data.get("width", 16)
    height = data.get("height", 16)
    return {
        name: Icon(
            icon["body"],
            icon.get("left", 0),
            icon.get("top", 0),
            icon.get("width", width),
            icon.get("height", height),
        )
        for name, icon in data["icons"].items()
        if not icon.get("hidden")
    }


def as_svg(icon: Icon, body: str, margin: float) -> str:
    """Make a square document. margin: of each side, as a part of the longer one."""
    longer = max(icon.width, icon.height)
    left = icon.left - (longer - icon.width) / 2 - margin * longer
    top = icon.top - (longer - icon.height) / 2 - margin * longer
    side = longer * (1 + 2 * margin)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {side} {side}" width="{side}" height="{side}">'
        f"{body.replace('currentColor', '#000')}</svg>"
    )


def line_art(body: str, width: float, fill: str) -> str:
    """Give every shape a black line and the same fill, whatever it had."""
    lines = f'stroke="#000" stroke-width="{width}" stroke-linejoin="round" stroke-linecap="round"'
    return f'<g fill="{fill}" {lines}>{PAINT.sub("", body)}</g>'


def outlined(body: str, width: float) -> str:
    return f'<g stroke="#000" stroke-width="{width}" stroke-linejoin="round">{body}</g>'


def slug(name: str) -> str:
    """Convert "Smiling Face: Hearts" -> "smiling-face-hearts", as Iconify names emoji."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub("[’']", "", name.lower())).strip("-")


def emoji_codes(sources: Path) -> dict[str, str]:
    """Read Iconify's name of an emoji -> its code points in hex."""
    data = read(package("emojibase-data", sources) / "en/data.json")
    return {
        slug(emoji["label"]): emoji["hexcode"]
        for emoji in data
        if emoji.get("group") not in (COMPONENTS, FLAGS)
    }


def emoji_drawings(sources: Path, rng: random.Random) -> Iterator[Drawing]:
    """Yield each emoji in colour and, where it is flat, as white shapes with lines, outlined, and
    as bare lines."""
    codes = emoji_codes(sources)
    for name in EMOJI:
        for emoji, icon in read_icons(package(f"@iconify-json/{name}", sources)).items():
            if SKIN_TONE.search(emoji) or emoji.startswith("flag-") or len(icon.body) > 60_000:
                continue
            code = (
                codes.get(emoji)
                or codes.get(emoji.replace("-face", ""))
                or codes.get(f"{emoji}-face")
            )
            if not code and name in KNOWN_ONLY:
                continue
            key = ["emoji", code] if code else ["word", emoji.replace("-", " ")]
            yield Drawing(f"{name}:color", key, as_svg(icon, icon.body, 0.04))
            if name in FLAT:
                for style, body in drawn_with_lines(name, icon, rng):
                    yield Drawing(f"{name}:{style}", key, as_svg(icon, body, 0.06))


def drawn_with_lines(name: str, icon: Icon, rng: random.Random) -> Iterator[tuple[str, str]]:
    side = max(icon.width, icon.height)
    yield "line", line_art(icon.body, side * rng.uniform(0.012, 0.035), "#fff")
    if name != "noto-v1" and rng.random() < 0.6:
        yield "outlined", outlined(icon.body, side * rng.uniform(0.012, 0.03))
    if name in ("twemoji", "noto") and rng.random() < 0.4:
        yield "wire", line_art(icon.body, side * rng.uniform(0.01, 0.02), "none")


def icon_drawings(sources: Path, nouns: Container[str], rng: random.Random) -> Iterator[Drawing]:
    """Yield icons whose name is a visible noun, some in a colour."""
    total: Counter[str] = Counter()
    for package_name in ICONS:
        own: Counter[str] = Counter()
        for written, icon in read_icons(package(f"@iconify-json/{package_name}", sources)).items():
            name = STYLES.sub("", written).replace("-", " ").strip()
            if name not in nouns or len(icon.body) > 30_000:
                continue
            if own[name] >= (2 if package_name in RICH else 1) or total[name] >= MOST_OF_A_NAME:
                continue
            own[name] += 1
            total[name] += 1
            red, green, blue = (rng.randrange(200) for _ in "rgb")
            colour = f"#{red:02x}{green:02x}{blue:02x}" if rng.random() < 0.28 else "#000"
            body = icon.body.replace("currentColor", colour)
            yield Drawing(f"{package_name}:icon", ["word", name], as_svg(icon, body, 0.08))
