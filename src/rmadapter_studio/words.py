"""The pages, in the language that a browser asks for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request

ASSETS = Path(__file__).with_name("assets")
TEMPLATES = Environment(
    loader=FileSystemLoader(ASSETS),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
PAGES = ("train", "label")
ENGLISH = "words.en.json"
MAX_HEADER = 1_000  # characters of an Accept-Language header that are read
ENTRY = re.compile(r"(?P<language>[a-z]{1,8})(-[a-z0-9-]+)? *(; *q=(?P<weight>[01](\.\d{0,3})?))?")


def languages() -> dict[str, dict[str, object]]:
    """Return the words of both pages by language, English first."""
    files = sorted(ASSETS.glob("words.*.json"), key=lambda file: (file.name != ENGLISH, file.name))
    read = [json.loads(file.read_text("utf-8")) for file in files]
    return {words["lang"]: words for words in read}


def page(name: str, request: Request) -> str:
    """Return one of PAGES, in the language that its address or the browser asks for."""
    known = languages()
    code = request.query_params.get("lang", "")
    query = f"?lang={code}" if code in known else ""
    if not query:
        code = preferred(request.headers.get("accept-language", ""), [*known])
    others = {other: words["language"] for other, words in known.items() if other != code}
    template = TEMPLATES.get_template(f"{name}.html.j2")
    return template.render(words=words_of(name, known[code]), others=others, query=query)


def words_of(name: str, known: Mapping[str, object]) -> dict[str, object]:
    """Return the words of one of PAGES: its own, and those that all share."""
    shared = {key: value for key, value in known.items() if key not in PAGES}
    return shared | cast("dict[str, object]", known[name])


def preferred(header: str, known: Sequence[str]) -> str:
    """Return the language of highest weight in an Accept-Language header (RFC 9110, 12.5.4) that is
    known, else the first known one. A dialect counts as its language."""
    weights: dict[str, float] = {}
    for part in header[:MAX_HEADER].split(","):
        match = ENTRY.fullmatch(part.strip().lower())
        if match:
            weight = float(match["weight"] or 1)
            weights[match["language"]] = max(weight, weights.get(match["language"], 0))
    return max(known, key=lambda language: weights.get(language, 0))
