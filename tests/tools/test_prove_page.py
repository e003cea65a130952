"""tools/prove_page.py: what it asks about, and what it counts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import prove_page
import pytest
from PIL import Image

from tests.helpers.web_pages import needs_browser, write_site


def test_tall_and_large_images() -> None:
    image = Image.new("RGB", (400, 300))
    image.paste((255, 0, 0), (150, 0, 250, 300))  # its middle strip
    found = prove_page.tall(image)
    assert (found.size, found.getcolors()) == ((300, 900), [(300 * 900, (255, 0, 0))])
    assert prove_page.tall(Image.new("RGB", (20, 300))).size == (300, 900)
    found = prove_page.large(Image.new("RGB", (40, 30)))
    assert 24_000_000 < found.width * found.height < 26_000_000


def test_what_counts_as_another_answer() -> None:
    ours = np.array([[0.7, 0.3], [0.5, 0.5001]], np.float32)
    theirs = [{"cat": 0.7, "dog": 0.3}, {"dog": 0.49, "cat": 0.51}]
    found = prove_page.compare(["cat", "dog"], ours, theirs)
    assert (found["images"], found["other answers"], found["same to 1e-4"]) == (2, 1, 1)
    assert found["largest difference"] == pytest.approx(0.0101, abs=1e-5)


@pytest.mark.slow
@needs_browser
def test_a_page_beside_its_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("onnxruntime", reason="pip install 'rmadapter[export]'")
    (tmp_path / "page").mkdir()
    write_site(tmp_path / "page")
    rng = np.random.default_rng(0)
    for number in range(4):
        file = tmp_path / f"data/test/kind/{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (90, 120, 3), np.uint8)).save(file)
    words = [
        "prove_page.py",
        str(tmp_path / "page"),
        str(tmp_path / "data"),
        "--large",
        "0",
        "--json",
    ]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        prove_page.main()
    found = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0
    assert [*found] == ["as they are", "tall"]
    assert found["as they are"]["same to 1e-4"] == found["as they are"]["images"] == 4
