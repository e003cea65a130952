"""A browser trains on a small set in a running application, asks it, and the whole page becomes a
picture."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="pip install 'rmadapter[app]'")
pytest.importorskip("uvicorn", reason="pip install 'rmadapter[app]'")

import app_image
from PIL import Image

from rmadapter.backbones import Backbone
from rmadapter.data.catalog import openmoji
from tests.helpers.app import running_app
from tests.helpers.web_pages import needs_browser


def test_what_it_shows_are_pictograms() -> None:
    assert {
        *app_image.CLASSES,
        *(name.partition("/")[0] for name in app_image.ASKED),
    } <= openmoji.CLASSES.keys()


@pytest.mark.slow
@needs_browser
def test_a_picture_of_the_whole_page(tiny_clip: Backbone, colors: Path, tmp_path: Path) -> None:
    with running_app(tiny_clip) as address:
        app_image.main(
            address, tmp_path / "page.png", colors, ("red", "blue"), ("red/0.png", "blue/0.png")
        )
    with Image.open(tmp_path / "page.png") as shot:
        assert shot.width == app_image.WIDTH
        assert shot.height > 1500, "the sections that a training opens"
