"""The words of the pages: each language has all of them, the pages have no others, and browsers get
theirs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest

pytest.importorskip("starlette", reason="pip install 'rmadapter[app]'")

from starlette.requests import Request

from rmadapter.answers.held_out import needed
from rmadapter_studio import words as module
from rmadapter_studio.labelling import FILES, VIEWS
from rmadapter_studio.order import ORDERS
from rmadapter_studio.session import METHODS, TARGETS
from rmadapter_studio.words import (
    ASSETS,
    PAGES,
    TEMPLATES,
    languages,
    preferred,
    words_of,
)

# a text in a script: a capital, and another word
PAGES_TEXT = re.compile(r"[\"`][A-Z][a-z]+ [a-z]")
SAME = {
    ": {parent}",
    "CSV",
    "COCO",
    "Label Studio",
    "Enter",
    "0",
    "S",
    "U",
    "N",
    "Z",
}  # in every language
OTHERS = [code for code in languages() if code != "en"]


def texts(words: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each string."""
    if isinstance(words, dict):
        for name, value in words.items():
            yield from texts(value, f"{path}/{name}")
    elif isinstance(words, list):
        for place, value in enumerate(words):
            yield from texts(value, f"{path}/{place}")
    else:
        assert isinstance(words, str)
        yield path, words


def values(text: str) -> set[str]:
    return {*re.findall(r"\{(\w*)\}", text)}


def page(name: str, headers: dict[str, str] | None = None, query: str = "") -> str:
    named = [(key.encode(), value.encode()) for key, value in (headers or {}).items()]
    scope = {"type": "http", "headers": named, "query_string": query.encode()}
    return module.page(name, Request(scope))


@pytest.mark.parametrize("code", OTHERS)
def test_no_string_is_missing_or_left_in_english(code: str) -> None:
    english, other = dict(texts(languages()["en"])), dict(texts(languages()[code]))
    assert other.keys() == english.keys()
    for path, text in other.items():
        assert values(text) == values(english[path]), path
        assert bool(text) == bool(english[path]), path
        assert text == text.strip()
    same = {text for path, text in other.items() if text and text == english[path]}
    assert same <= SAME


@pytest.mark.parametrize("name", PAGES)
def test_pages_have_no_words_of_their_own(name: str) -> None:
    """The template and the script use all words of the file and no others."""
    script = {"train": "page.mjs"}.get(name, f"{name}.mjs")
    used = {"language"}  # by the server, for links
    for file in (f"{name}.html.j2", "languages.html.j2", script, "parts.mjs"):
        used |= {*re.findall(r"\bwords\.(\w+)", (ASSETS / file).read_text("utf-8"))}
    used |= {*re.findall(r'words\["(\w+)"\]', (ASSETS / f"{name}.html.j2").read_text("utf-8"))}
    if name == "label":
        used |= {"suspects", "mistakes"}  # by the names of parts of the state
    words = words_of(name, languages()["en"])
    assert used == words.keys()
    assert not PAGES_TEXT.findall((ASSETS / script).read_text("utf-8"))

    class Text(HTMLParser):
        found = ""
        inside = ""

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.inside = tag
            for attribute, value in attrs:
                if attribute in ("aria-label", "alt", "title", "placeholder"):
                    self.found += value or ""

        def handle_data(self, data: str) -> None:
            if self.inside not in ("script", "kbd"):
                self.found += data

    blank = {key: _blank(value) for key, value in words.items()}
    reader = Text()
    reader.feed(
        TEMPLATES.get_template(f"{name}.html.j2").render(words=blank, others={"xx": "¤"}, query="")
    )
    assert {*"".join(reader.found.split())} == {"¤"}


def test_all_that_the_server_names_has_words() -> None:
    words = words_of("train", languages()["en"])
    assert words["methods"].keys() == {*METHODS}  # type: ignore[attr-defined]
    assert words["targets"].keys() == {*TARGETS}  # type: ignore[attr-defined]
    words = words_of("label", languages()["en"])
    names = {"open", *(path.split("/")[2] for path, _ in texts(words) if path.startswith("/views"))}
    assert names - {*ORDERS} == {*VIEWS}
    assert words["meanings"].keys() == names - {"open"}  # type: ignore[attr-defined]
    assert words["formats"].keys() == FILES.keys()  # type: ignore[attr-defined]


def _blank(value: object) -> object:
    if isinstance(value, dict):
        return {name: _blank(inner) for name, inner in value.items()}
    return [_blank(inner) for inner in value] if isinstance(value, list) else "¤"


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("", "en"),
        ("de", "de"),
        ("de-AT,de;q=0.9,en;q=0.8", "de"),
        ("en-US,en;q=0.9,de;q=0.8", "en"),
        ("fr,de;q=0.5", "de"),
        ("fr-CH, en;q=0.3, DE ; q=0.4", "de"),
        ("fr", "en"),
        ("*", "en"),
        ("de;q=0", "en"),
        ("de;q=0.001,en;q=0", "de"),
        ("de;q=9,;;,q=1,-", "en"),
        ("x" * 100_000 + ",de", "en"),
    ],
)
def test_browsers_get_the_language_that_they_like_best(header: str, language: str) -> None:
    assert preferred(header, ["en", "de"]) == language
    for name in PAGES:
        assert f'<html lang="{language}">' in page(name, {"accept-language": header})


@pytest.mark.parametrize(("name", "other_page"), [("label", "./"), ("train", "label")])
def test_a_link_chooses_another_language(name: str, other_page: str) -> None:
    """It stays chosen on the other page."""
    for query, headers, language, other in (
        ("lang=de", {"accept-language": "en"}, "de", "en"),
        ("lang=en", {"accept-language": "de"}, "en", "de"),
        ("lang=../../x", {"accept-language": "de"}, "de", "en"),
    ):
        text = page(name, headers, query)
        words = words_of(name, languages()[language])
        assert f"<title>{words['title']}</title>" in text
        assert f'<a href="?lang={other}"' in text
        assert f'<a href="?lang={language}"' not in text
        kept = "" if "x" in query else f"?{query}"
        assert f'<a href="{other_page}{kept}">' in text


@pytest.mark.parametrize("words", languages().values(), ids=languages())
def test_the_number_of_images_that_a_promise_needs(words: dict[str, Any]) -> None:
    [share] = re.findall(r"const PREFERRED = ([\d.]+)", (ASSETS / "page.mjs").read_text("utf-8"))
    assert re.findall(r"\d+", words["train"]["few"]) == [f"{needed(float(share))}"]
