"""The page of explanations, whatever images and classes are called."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from rmadapter.artifacts.mistakes import Neighbour
from rmadapter.predict.explain import Explanation
from rmadapter.predict.explain_page import write_page
from tests.helpers.parsed import Page

EVIL = "<script>alert(1)</script>"


def example(folder: Path) -> Explanation:
    Image.new("RGB", (400, 300), "red").save(folder / "a.png")
    near = (
        Neighbour("a.png", folder / "a.png", EVIL, 0.876),
        Neighbour("gone.png", folder / "gone.png", "cat", 0.5),
    )
    best = (("cat", 0.944), (EVIL, 0.05))
    return Explanation(folder / "a.png", best, best[::-1], near)


def test_the_page_shows_answers_and_neighbours_and_runs_nothing(tmp_path: Path) -> None:
    write_page(tmp_path / "e.html", [example(tmp_path)] * 2, EVIL)
    page = Page(tmp_path / "e.html")
    assert not [tag for tag, _ in page.tags if tag == "script"]
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "What the answers to 2 images rest on." in text
    assert f"adapted: cat 94 %, {EVIL} 5 %" in text
    assert f"{EVIL}0.88" in text.replace(" ", "")
    sources = page.values("src")
    assert len(sources) == 2 * 2  # image and neighbour of both
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert text.count("not here") == 2
    assert "://" not in (tmp_path / "e.html").read_text("utf-8")
