"""Templates of pages escape their values and refuse missing ones."""

from __future__ import annotations

from importlib.resources import files

import pytest
from jinja2 import UndefinedError

from rmadapter.support.html import template


def test_it_escapes_and_refuses() -> None:
    page = template("suggest.html.j2", percent=str)
    with pytest.raises(UndefinedError):
        page.render()
    assert template("report.css").render().startswith(":root")
    environment = template("serve.html.j2").environment
    assert environment.from_string("{{ text }}").render(text="<b>&") == "&lt;b&gt;&amp;"


def test_a_text_that_is_no_html_is_left_alone() -> None:
    """The model card's, which escapes for Markdown itself."""
    given = {"title": "<b>"}
    environment = template("modelcard.md.j2", escape=False, cell=str, percent=str).environment
    assert environment.from_string("{{ title }}").render(given) == "<b>"
    escaping = template("modelcard.md.j2", cell=str, percent=str).environment
    assert escaping.from_string("{{ title }}").render(given) == "&lt;b&gt;"


def test_no_image_of_a_page_waits_until_it_is_seen() -> None:
    """All lie in the page itself; what waited would be missing in print."""
    assets = files("rmadapter").joinpath("assets")
    pages = [file for file in assets.iterdir() if file.name.endswith(".j2")]
    assert len(pages) > 6
    for page in pages:
        assert 'loading="lazy"' not in page.read_text("utf-8")
