"""Weights of 8 bits: several ways are tried, and the answers to training images choose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rmadapter.backbones import Backbone
from rmadapter.deploy.export import graph, int8
from rmadapter.deploy.export.folder import transform_facts
from rmadapter.deploy.export.runtime import GRAPH, LABELS, TRANSFORM, Model
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.support.files import write_json
from rmadapter.training.contract import Known
from tests.helpers.shots import noise_images

pytest.importorskip("onnxruntime", reason="pip install 'rmadapter[export]'")
pytest.importorskip("onnxscript", reason="pip install 'rmadapter[export]'")


@pytest.fixture
def stage(tiny_clip: Backbone, tmp_path: Path) -> Path:
    """An exported folder in float32."""
    names = ("cat", "dog", "tree")
    fitted = ZeroShot().restore(tiny_clip, Known(names), {})
    graph.write(graph.trace(fitted, names), tmp_path / GRAPH)
    write_json(tmp_path / LABELS, names)
    write_json(tmp_path / TRANSFORM, transform_facts(tiny_clip))
    return tmp_path


def test_the_chosen_one_is_smaller_and_near(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "LARGE", 2**10)
    monkeypatch.setattr(int8, "BLOCK", 32)
    images = noise_images(20).images
    before, size = Model(stage), (stage / GRAPH).stat().st_size
    pixels = before.pixels(images)
    rows = int8.search(stage, images)
    assert [row["weights in 8 bits"] for row in rows] == [
        "none: fp32",
        *(way.name for way in int8.WAYS),
    ]
    assert (rows[0]["same answers in %"], rows[0]["mean difference"], rows[0]["chosen"]) == (
        100,
        0,
        False,
    )
    del rows[0]
    assert {file.name for file in stage.iterdir()} == {GRAPH, LABELS, TRANSFORM}
    (chosen,) = [row for row in rows if row["chosen"]]
    assert chosen["same answers in %"] == max(
        min(row["same answers in %"], 99.5) for row in rows
    ) or (chosen["same answers in %"] >= 99.5)
    assert (stage / GRAPH).stat().st_size < 0.6 * size
    difference = np.abs(Model(stage).probabilities(pixels) - before.probabilities(pixels))
    assert 0 < difference.mean() == pytest.approx(chosen["mean difference"], rel=0.06)
    assert len({row["mean difference"] for row in rows}) > 2  # they are different ways indeed


def test_the_fastest_that_is_good_enough_is_taken_else_the_best() -> None:
    assert int8.taken([(0.996, 3), (1.0, 4), (0.9, 1)]) == 0
    assert int8.taken([(0.98, 2), (0.99, 4), (0.97, 1)]) == 1


@pytest.mark.slow
def test_only_products_that_read_no_norm_are_in_blocks(
    stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each block of the encoder, the products after attention and after the activation function."""
    import onnx

    monkeypatch.setattr(int8, "LARGE", 2**10)
    monkeypatch.setattr(int8, "BLOCK", 32)
    large = len(int8._products(int8._loaded(stage / GRAPH))[0])
    assert (
        large == 4 * 4 + 1 + 1
    )  # of the blocks, the query of the top one by itself, and the projection
    found = {}
    pixels = Model(stage).pixels(noise_images(4).images)
    for way in int8.candidates(stage, pixels, (int8.PLAIN, *int8.WAYS)):
        nodes = [node.op_type for node in onnx.load(str(stage / int8.CANDIDATE)).graph.node]
        found[way.name] = nodes.count("MatMulNBits"), nodes.count("MatMulInteger")
    assert found["plain"] == found["smooth"] == (0, large)
    assert found["smooth, all in blocks"] == (large, 0)
    some, rest = found["smooth, others in blocks"]
    assert some + rest == large
    assert min(some, rest) > large / 3


@pytest.mark.slow
def test_large_products_alone(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx

    model = onnx.load(str(stage / GRAPH))
    monkeypatch.setattr(int8, "LARGE", 64 * 64)
    large, others = int8._products(model)
    assert (
        len(large) >= 3 * 3 + 1
    )  # three in each block, and of the top one, which runs for one token, key and value
    attention = [node.name for node in model.graph.node if "scaled_dot" in node.name]
    assert attention
    assert set(attention) <= set(others)
