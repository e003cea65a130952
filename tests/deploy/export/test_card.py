"""README.md of an export says what export.json says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rmadapter.artifacts.record import read_record
from rmadapter.deploy.export.card import card

FACTS: dict[str, Any] = {
    "precision": "fp32",
    "to": "onnx",
    "files": ["model.onnx"],
    "embeddings": False,
    "opset": 20,
    "bytes": 12_345_678,
    "sha256": "a" * 64,
    "classes": 4,
    "method": {"title": "RMAdapter", "source": "a paper"},
    "backbone": {"name": "pocket", "digest": "b" * 64},
    "licence of the weights": "theirs",
    "versions": {"rmadapter": "0.2.0"},
    "parity": {
        "title": "generated",
        "images": 64,
        "same": 1.0,
        "difference": 1.5e-6,
        "before": None,
        "after": None,
    },
    "kept in spite of": "",
}


def test_with_and_without_a_record(finished: Path) -> None:
    bare = card(FACTS, None, 32)
    for text in (
        "# RMAdapter: 4 classes",
        "12.3 MB",
        "a" * 64,
        "licence of the weights: theirs",
        "1.5e-06",
        "32, 32]",
    ):
        assert text in bare
    assert "|" not in bare
    assert "although" not in bare
    record = read_record(finished / "run.json")
    full = card({**FACTS, "parity": {**FACTS["parity"], "after": 87.5}}, record, 32)
    (score,) = record.scores
    assert f"| {score.title} (test) | 16 | {score.zero_shot:.1f} | {score.accuracy:.1f} |" in full
    assert "| generated, this export | 64 | | 87.5 |" in full
