"""The page of explanations, whatever images and classes are called; the overlay of a map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from parsed import Page
from rmadapter.explain.cards import SIDE, overlay, write_page
from rmadapter.explain.why import Explanation
from rmadapter.neighbours import Neighbour

EVIL = "<script>alert(1)</script>"


def example(folder: Path, heat: bool = True) -> Explanation:
    Image.new("RGB", (400, 300), "red").save(folder / "a.png")
    near = (Neighbour("a.png", folder / "a.png", EVIL, 0.876), Neighbour("gone.png", folder / "gone.png", "cat", 0.5))
    spot = torch.zeros(4, 4)
    spot[0, 0] = 1
    best = (("cat", 0.944), (EVIL, 0.05))
    return Explanation(folder / "a.png", best, best[::-1], near, torch.full((3, 32, 32), 0.5), spot if heat else None)


def test_the_page_shows_answers_and_neighbours_and_runs_nothing(tmp_path: Path) -> None:
    write_page(tmp_path / "e.html", [example(tmp_path), example(tmp_path, heat=False)], EVIL)
    page = Page(tmp_path / "e.html")
    assert not [tag for tag, _ in page.tags if tag == "script"]
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "What the answers to 2 images rest on." in text
    assert f"adapted: cat 94 %, {EVIL} 5 %" in text
    assert f"{EVIL}0.88" in text.replace(" ", "")
    sources = page.values("src")
    assert len(sources) == 2 * 2 + 1  # image and neighbour of both, one map
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert text.count("not here") == 2
    assert "The orange parts" in text
    assert "://" not in (tmp_path / "e.html").read_text("utf-8")


def test_without_maps_it_speaks_of_none(tmp_path: Path) -> None:
    write_page(tmp_path / "e.html", [example(tmp_path, heat=False)], "run")
    assert "orange" not in Page(tmp_path / "e.html").text


def test_the_overlay_is_orange_where_it_counted_and_grey_elsewhere(tmp_path: Path) -> None:
    found = np.asarray(overlay(example(tmp_path))).astype(int)
    assert found.shape == (SIDE, SIDE, 3)
    assert found[5, 5, 0] - found[5, 5, 2] > 100
    assert np.ptp(found[-5, -5]) == 0
