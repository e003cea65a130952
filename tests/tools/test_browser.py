"""tools/browser.py: a page is served, driven by keys, and looked at."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.web_pages import needs_browser, served, tab

PAGE = """<!doctype html><title>A page</title><h1>Heading</h1><button id="first">One</button>
<button onclick="this.textContent = 'pressed'">Two</button><p aria-hidden="true">unheard</p>"""


@needs_browser
def test_a_page_by_keys(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/index.html").write_text(PAGE)
    with served(tmp_path / "site") as address, tab(tmp_path / "home") as page:
        page.go(address)
        page.press("Tab")
        assert page.script("document.activeElement.id") == "first"
        page.press("Tab")
        page.press(" ")
        assert page.until("document.activeElement.textContent") == "pressed"
        heard = page.heard()
        assert {("heading", "Heading"), ("button", "One"), ("button", "pressed")} <= {*heard}
        assert "unheard" not in [name for _, name in heard]
        page.shot(tmp_path / "shot.png")
        with Image.open(tmp_path / "shot.png") as shot:
            assert min(shot.size) > 100
        with pytest.raises(AssertionError, match="false is not so"):
            page.until("false", seconds=0.1)
        with pytest.raises(AssertionError, match="a mistake"):
            page.script("Promise.reject(Error('a mistake'))")
        with pytest.raises(AssertionError, match=r"No\.such"):
            page("No.such")
