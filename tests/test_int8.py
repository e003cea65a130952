"""Weights of 8 bits: several ways are tried, and the answers to training images choose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rmadapter.backbones import Backbone
from rmadapter.deploy import graph, int8
from rmadapter.deploy.export import transform_of
from rmadapter.deploy.runtime import GRAPH, LABELS, TRANSFORM, Model
from rmadapter.files import write_json
from rmadapter.method import Known
from rmadapter.methods.zero_shot import ZeroShot
from shots import meaningless

pytest.importorskip("onnxruntime", reason="pip install 'rmadapter[export]'")
pytest.importorskip("onnxscript", reason="pip install 'rmadapter[export]'")


@pytest.fixture
def stage(tiny_clip: Backbone, tmp_path: Path) -> Path:
    """An exported folder in float32."""
    names = ("cat", "dog", "tree")
    fitted = ZeroShot().restore(tiny_clip, Known(names), {})
    graph.write(graph.trace(fitted, names), tmp_path / GRAPH)
    write_json(tmp_path / LABELS, names)
    write_json(tmp_path / TRANSFORM, transform_of(tiny_clip))
    return tmp_path


def test_the_chosen_one_is_smaller_and_near(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "LARGE", 2**10)
    monkeypatch.setattr(int8, "BLOCK", 32)
    images = meaningless(20).images
    before, size = Model(stage), (stage / GRAPH).stat().st_size
    pixels = before.pixels(images)
    rows = int8.search(stage, images)
    assert [row["weights in 8 bits"] for row in rows] == ["none: fp32", *(way.name for way in int8.WAYS)]
    assert (rows[0]["same answers in %"], rows[0]["mean difference"], rows[0]["chosen"]) == (100, 0, False)
    del rows[0]
    assert {file.name for file in stage.iterdir()} == {GRAPH, LABELS, TRANSFORM}
    (chosen,) = [row for row in rows if row["chosen"]]
    assert chosen["same answers in %"] == max(min(row["same answers in %"], 99.5) for row in rows) or (
        chosen["same answers in %"] >= 99.5
    )
    assert (stage / GRAPH).stat().st_size < 0.6 * size
    difference = np.abs(Model(stage).probabilities(pixels) - before.probabilities(pixels))
    assert 0 < difference.mean() == pytest.approx(chosen["mean difference"], rel=0.06)
    assert len({row["mean difference"] for row in rows}) > 3  # they are different ways indeed


def test_large_products_alone(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx

    model = onnx.load(str(stage / GRAPH))
    monkeypatch.setattr(int8, "LARGE", 64 * 64)
    large, others = int8._products(model)
    assert len(large) >= 4 * 4 - 4  # four in each block, but for those of the top one, which are for one token
    attention = [node.name for node in model.graph.node if "scaled_dot" in node.name]
    assert attention
    assert set(attention) <= set(others)
