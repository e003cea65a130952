"""tests/hostile/load.py: the server has no faults under load, and a bad answer is noticed."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import pytest

from tests.helpers.benchmarks import tiny_model
from tests.helpers.serving import FACTS
from tests.hostile import load
from tests.hostile.servers import show

assert FACTS  # its import skips this file where the extra is missing


def options(backbone: object, **more: object) -> argparse.Namespace:
    """Return the options of a short load."""
    given = {"minutes": 0.1, "clients": 10, "hostile": 2, "workers": 1, "threads": 1}
    given |= {"backbone": str(backbone), "engine": "torch", "queue": 6, "seconds": 20, "body": 2}
    return argparse.Namespace(**{**given, "every": 2, "seed": 1, **more})


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_short_load_has_no_faults(tmp_path: Path, workers: int) -> None:
    if workers > 1 and sys.platform != "linux":
        pytest.skip("workers need Linux")
    row = load.measure(options(tiny_model(tmp_path), workers=workers))
    assert row["answered"]
    assert row["hostile requests"]
    assert {fault: row[fault] for fault in load.FAULTS if row[fault]} == {}


def test_a_fault_is_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    """Alike as a table and as JSON; other numbers are none."""
    for as_json in (False, True):
        for late in (0, 2):
            row = {"answered": 9, "late": late, "memory": 0}
            assert show(row, ("late", "memory"), as_json) == (late > 0)
            shown = capsys.readouterr().out
            assert json.loads(shown) == row if as_json else re.search(rf"late\D+{late}", shown)


def test_faults_are_noticed() -> None:
    """Judge answers that a sound server would not give."""
    server = argparse.Namespace(address="", process=None)
    checked = load.Load(server, options(""), Path(), {"first": Path()})
    photo = checked.photos[0]._replace(expected={"first": [{"red": 0.75, "blue": 0.25}]})

    def answer(*shares: float) -> bytes:
        classes = [
            {"class": label, "probability": share}
            for label, share in zip(("red", "blue"), shares, strict=True)
        ]
        return json.dumps({"answers": [{"image": "a.jpg", "classes": classes}]}).encode()

    def refusal(images: int, most: int) -> bytes:
        queue = {"images": images, "most_images": most, "seconds": 0, "most_seconds": 1}
        return json.dumps({"error": "full", "queue": queue}).encode()

    def judge(status: int, text: bytes, seconds: float = 1) -> dict[str, int]:
        checked.outcome.faults.clear()
        checked.judge(photo, status, text, {"first"}, seconds, flying=6)
        return dict(checked.outcome.faults)

    assert judge(200, answer(0.75, 0.25)) == {}
    assert judge(200, answer(0.7, 0.3)) == {"wrong answers": 1}
    assert judge(200, answer(0.75, 0.25), 60) == {"late": 1}
    assert judge(500, b"") == {"other statuses": 1}
    assert judge(503, refusal(7, 6)) == {}
    assert judge(503, refusal(6, 6)) == {"503 below the queue": 1}
    assert judge(503, refusal(9999, 6)) == {"503 below the queue": 1}
