"""tools/int8_study.py: rows of every way, and its table. The data sets themselves take minutes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from int8_study import FP32, OTHER, compare, table

from rmadapter.backbones import Backbone
from rmadapter.deploy.export import graph, int8
from rmadapter.deploy.export.folder import transform_facts
from rmadapter.deploy.export.runtime import GRAPH, LABELS, TRANSFORM, Model
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.support.files import write_json
from rmadapter.training.contract import Known
from tests.helpers.shots import noise_images


@pytest.mark.slow
def test_every_way_is_asked_about_test_images(
    tiny_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="pip install 'rmadapter[export]'")
    pytest.importorskip("onnxscript", reason="pip install 'rmadapter[export]'")
    monkeypatch.setattr(int8, "LARGE", 2**10)
    monkeypatch.setattr(int8, "BLOCK", 32)
    names = ("cat", "dog", "tree")
    fitted = ZeroShot().restore(tiny_clip, Known(names), {})
    graph.write(graph.trace(fitted, names), tmp_path / GRAPH)
    write_json(tmp_path / LABELS, names)
    write_json(tmp_path / TRANSFORM, transform_facts(tiny_clip))
    model = Model(tmp_path)
    pixels = model.pixels(noise_images(12).images)
    answers = model.probabilities(pixels).argmax(-1)
    rows = compare(model, tmp_path, pixels[:4], pixels, [int(place) for place in answers])
    other = [OTHER] * bool(importlib.util.find_spec("nncf"))
    assert [row["way"] for row in rows] == [
        FP32,
        int8.PLAIN.name,
        *(way.name for way in int8.WAYS),
        *other,
    ]
    assert (rows[0]["accuracy"], rows[0]["same"], rows[0]["difference"]) == (100, 100, 0)
    assert all(
        row["accuracy"] == pytest.approx(row["same"], abs=0.01) for row in rows
    )  # labels are fp32's answers
    assert [row["chosen"] for row in rows].count(True) == 1
    assert not rows[0]["chosen"]
    assert not rows[1]["chosen"]


def test_the_table_has_a_line_of_each_set_and_the_means() -> None:
    def row(way: str, accuracy: float, rate: float, chosen: bool = False) -> dict[str, Any]:
        return {
            "way": way,
            "MB": 20.0,
            "accuracy": accuracy,
            "same": 98.0,
            "difference": 0.01,
            "rate": rate,
            "chosen": chosen,
        }

    first = {
        "data": "a",
        "images": 10,
        "rows": [row(FP32, 50, 10), row("smooth", 49, 30, True), row("blocks", 50, 20)],
    }
    second = {
        "data": "b",
        "images": 10,
        "rows": [row(FP32, 60, 10), row("smooth", 57, 20), row("blocks", 61, 20, True)],
    }
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table([first, second]).splitlines()
    ]
    found = {(line[0], line[2]): (line[5], line[9]) for line in lines[2:]}
    assert found == {
        ("a", "smooth"): ("-1.0", "3.00"),
        ("b", "blocks"): ("+1.0", "2.00"),
        ("mean of 2", FP32): ("+0.0", "1.00"),
        ("mean of 2", "smooth"): ("-2.0", "2.50"),
        ("mean of 2", "taken"): ("+0.0", "2.50"),
        ("mean of 2", "blocks"): ("+0.5", "2.00"),
    }


def test_the_docs_have_the_table_of_the_lines() -> None:
    docs = Path(__file__).parents[2] / "docs"
    lines = [json.loads(line) for line in (docs / "results/int8.jsonl").read_text().splitlines()]
    page = (docs / "deploy.md").read_text(encoding="utf-8")
    assert table(lines) in page
    taken = [
        (row["accuracy"], line["rows"][0]["accuracy"])
        for line in lines
        for row in line["rows"]
        if row["chosen"]
    ]
    lost = sum(plain - own for own, plain in taken) / len(taken)
    assert f"it is {lost:.1f} points lower" in page
    assert lost > 0
