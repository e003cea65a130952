"""benchmarks/drawing.py: what the picture of steps shows."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import drawing
import pytest

pytestmark = pytest.mark.real_plots


def row(classes: int) -> dict[str, float]:
    own = {"public_seconds": classes / 5, "fp32_seconds": 4.0, "bf16_seconds": 2.0}
    return {
        "classes": classes,
        **own,
        "least_operations": 3e11,
        "fp32_gflops": 100.0,
        "bf16_gflops": 300.0,
    }


def test_each_code_has_a_line_and_ours_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "public.json", tmp_path / "out.svg"
    source.write_text(json.dumps({"coop": [], "mma": [row(200), row(50)]}))
    monkeypatch.setattr(sys, "argv", ["x", str(source), str(out)])
    drawing.main()
    svg = out.read_text()
    ElementTree.fromstring(svg)
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", svg)
    for label, _ in drawing.LINES.values():
        assert label in texts
    assert {"limit in float32", "limit in bfloat16", "50", "200", "classes"} <= {*texts}
