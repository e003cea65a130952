"""A browser puts an image into the form of a running server, and gets its answer without any
script."""

from __future__ import annotations

from pathlib import Path

import serve_image
from PIL import Image

from tests.helpers.serving import Toy, colour_image, running_server
from tests.helpers.web_pages import needs_browser, tab


@needs_browser
def test_a_page_with_answers(tmp_path: Path) -> None:
    (tmp_path / "red one.png").write_bytes(colour_image(250, 5, 5))
    with running_server(Toy()) as address:
        serve_image.main(address, tmp_path / "page.png", [tmp_path / "red one.png"])
        with tab(tmp_path / "home") as page:
            page.go(address)
            heard = page.heard()
            assert ("button", "What is it?") in heard
            assert ("heading", "toy") in heard
            assert "<b>1</b> image classified" in page.script("document.documentElement.outerHTML")
    with Image.open(tmp_path / "page.png") as shot:
        assert shot.width > 850
        assert shot.height > 300
