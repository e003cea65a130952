"""tools/choose_defaults.py: copies of a backbone with another logit scale, and that it goes on
where it was."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import choose_defaults
import pytest
import torch

from rmadapter.backbones import Backbone


def test_a_copy_differs_in_the_logit_scale_alone(tiny_clip: Backbone) -> None:
    copy = choose_defaults.rescaled(tiny_clip.name, 50)
    assert copy.logit_scale.item() == pytest.approx(50)
    assert copy.digest != tiny_clip.digest
    states = copy.model.state_dict(), tiny_clip.model.state_dict()
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == [
        "logit_scale"
    ]
    assert choose_defaults.rescaled(tiny_clip.name, 0).digest == tiny_clip.digest


@pytest.mark.slow
def test_finished_lines_are_kept(
    colors: Path,
    tmp_path: Path,
    tiny_clip: Backbone,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = "first_block: 3, rank: 2, epochs: 1"
    grid, out = tmp_path / "grid.yaml", tmp_path / "results.jsonl"
    given = [
        colors.name,
        "--root",
        str(colors.parent),
        "--grid",
        str(grid),
        "--out",
        str(out),
        "--shots",
        "3",
    ]
    given += ["--backbone", tiny_clip.name, "--logit-scale", "0", "50"]
    monkeypatch.setattr(sys, "argv", ["choose_defaults.py", *given])
    grid.write_text(f"- {{{small}}}\n")
    choose_defaults.main()
    first = out.read_text()
    grid.write_text(f"- {{{small}}}\n- {{{small}, method: mma}}\n")
    choose_defaults.main()
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert out.read_text().startswith(first)
    assert capsys.readouterr().out == out.read_text()
    scaled = f"{tiny_clip.name} at logit scale 50"
    assert [(line["backbone"], line["fields"].get("method")) for line in lines] == [
        (tiny_clip.name, None),
        (scaled, None),
        (tiny_clip.name, "mma"),
        (scaled, "mma"),
    ]
    for line in lines:
        assert 0 <= line["seconds"] < 600
        assert all(
            0 <= line[name] <= 100
            for name in ("base", "novel", "zero_shot_base", "zero_shot_novel")
        )
    assert (
        len({line["zero_shot_novel"] for line in lines}) == 1
    )  # the scale changes no zero-shot answer
