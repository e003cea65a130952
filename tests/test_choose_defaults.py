"""tools/choose_defaults.py: which images it trains on, which it asks about, and that it goes on where it was."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rmadapter.backbones import Backbone
from rmadapter.data.fewshot import half
from rmadapter.data.images import read_images

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import choose_defaults

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight classes, of which four are base; five train images each."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        for image in range(5):
            pixels = np.clip(rng.normal(30 * number, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / "train" / name / f"{image}.png")
    return tmp_path / "data"


def test_the_classes_are_halved_once_more_and_the_draw_is_not_asked_about(data: Path) -> None:
    base = half(read_images(data)["train"], "base")
    splits = choose_defaults.splits_of(base, 3, 1)
    trained, asked = half(splits["train"], "base"), splits["test"]
    assert (trained.classes, len(trained)) == (("ant", "bee"), 6)
    assert not {*trained.images} & {*asked.images}
    assert {*trained.images} | {*asked.images} == {*base.images}
    assert len(half(asked, "base")) == 2 * 2
    assert (half(asked, "novel").classes, len(half(asked, "novel"))) == (("cat", "dog"), 10)
    assert {*choose_defaults.splits_of(base, 3, 2)["test"].images} != {*asked.images}


def test_finished_lines_are_kept(
    data: Path, tmp_path: Path, tiny_clip: Backbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = "first_block: 3, rank: 2, epochs: 1"
    grid, out = tmp_path / "grid.yaml", tmp_path / "results.jsonl"
    given = [str(data), "--grid", str(grid), "--out", str(out), "--shots", "3", "--backbone", tiny_clip.name]
    monkeypatch.setattr(sys, "argv", ["choose_defaults.py", *given])
    grid.write_text(f"- {{{small}}}\n")
    choose_defaults.main()
    first = out.read_text()
    grid.write_text(f"- {{{small}}}\n- {{{small}, method: mma}}\n")
    choose_defaults.main()
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert out.read_text().startswith(first)
    assert capsys.readouterr().out == out.read_text()
    assert [(line["data"], line["seed"], line["fields"].get("method")) for line in lines] == [
        ("data", 1, None),
        ("data", 1, "mma"),
    ]
    for line in lines:
        assert line["seconds"] >= 0
        assert all(0 <= line[name] <= 100 for name in ("base", "novel", "zero_shot_base", "zero_shot_novel"))
    assert lines[0]["zero_shot_novel"] == lines[1]["zero_shot_novel"]
