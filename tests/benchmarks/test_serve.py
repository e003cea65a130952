"""The benchmark of `serve` on a tiny model: its JSON. What it measures is never asserted: machines
differ."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import figures
import pytest
import serve

from tests.helpers.benchmarks import tiny_model
from tests.helpers.serving import FACTS

assert FACTS  # its import skips this file where the extra is missing


@pytest.mark.slow
def test_throughput_latency_and_a_soak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--images", "6", "--classes", "3", "--pixels", "40", "30"]
    load = ["--concurrency", "3", "--seconds", "1", "--minutes", "0.03"]
    words = ["--repeat", "2", "--allocator", "default", "--backbone", tiny_model(tmp_path)]
    monkeypatch.setattr(sys, "argv", [serve.__file__, *words, *data, *load, "--json"])
    serve.main()
    (result,) = json.loads(capsys.readouterr().out)
    rates = {row["run"]: row["images_per_second"] for row in result["rows"]}
    assert result["ratio"] == pytest.approx(rates["serve"] / rates["predict"])
    assert all(row["cpu_seconds_per_image"] > 0 for row in result["rows"])
    late = result["latency"]
    assert late["rate"] == pytest.approx(rates["serve"] / 2)
    assert late["statuses"] == {"200": late["requests"]}
    assert 0 < late["p50_ms"] <= late["p99_ms"]
    soak = result["soak"]
    assert soak["wrong"] == 0
    assert set(soak["statuses"]) == {"200"}
    assert not {status for found in soak["hostile"].values() for status in found} & {"500"}
    assert set(soak["memory_mb"]) == {"start", "middle", "end"}
    page = figures.serve([result])
    assert "Throughput is" in page
    assert "hostile requests in it" in page


def test_an_answer_that_is_not_that_of_predict_ends_it() -> None:
    good = (200, {"answers": [{"classes": [{"class": "a", "probability": 0.5}]}]})
    assert serve.right("torch", ("a", 0.500001), good)
    for wanted, found in ((("b", 0.5), good), (("a", 0.51), good), (("a", 0.5), (500, None))):
        assert not serve.right("torch", wanted, found)
        with pytest.raises(SystemExit, match="1 of 1 answers are not those of predict"):
            serve.check("torch", [wanted], [found])
