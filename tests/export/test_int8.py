"""Weights of 8 bits: what is quantised, and what balancing leaves as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmadapter.backbones import Backbone
from rmadapter.export import graph
from rmadapter.export.engines import GRAPH
from rmadapter.export.folder import transform_facts
from rmadapter.export.runtime import LABELS, TRANSFORM, Model
from rmadapter.methods.zero_shot import ZeroShot
from rmadapter.support.files import write_json
from rmadapter.training.contract import Known
from tests.helpers.shots import noise_images

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime", reason="pip install 'rmadapter[export]'")
pytest.importorskip("onnxscript", reason="pip install 'rmadapter[export]'")
int8 = pytest.importorskip("rmadapter.export.int8")


@pytest.fixture
def stage(tiny_clip: Backbone, tmp_path: Path) -> Path:
    """An exported folder in float32."""
    names = ("cat", "dog", "tree")
    fitted = ZeroShot().restore(tiny_clip, Known(names), {})
    graph.write(graph.trace(fitted, names), tmp_path / GRAPH)
    write_json(tmp_path / LABELS, names)
    write_json(tmp_path / TRANSFORM, transform_facts(tiny_clip))
    return tmp_path


@pytest.mark.ci
def test_the_model_is_smaller_and_close(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "MIN_WEIGHT_SIZE", 2**10)
    before, size = Model(stage), (stage / GRAPH).stat().st_size
    pixels = before.pixels(noise_images(20).images)
    large = int8.large_products(int8.load_graph(stage / GRAPH))
    # of the blocks, the query of the top one by itself, and the projection
    assert len(large) == 4 * 4 + 1 + 1
    int8.quantize(stage / GRAPH, pixels)
    assert {file.name for file in stage.iterdir()} == {GRAPH, LABELS, TRANSFORM}
    assert (stage / GRAPH).stat().st_size < 0.6 * size
    nodes = [node.op_type for node in onnx.load(str(stage / GRAPH)).graph.node]
    assert nodes.count("MatMulInteger") == len(large)
    difference = np.abs(Model(stage).probabilities(pixels) - before.probabilities(pixels))
    assert 0 < difference.mean() < 0.02


@pytest.mark.ci
def test_small_products_and_attention_stay_in_float32(
    stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(str(stage / GRAPH))
    monkeypatch.setattr(int8, "MIN_WEIGHT_SIZE", 64 * 64)
    large = int8.large_products(model)
    # three in each block, and of the top one, which runs for one token, key and value
    assert len(large) >= 3 * 3 + 1
    attention = [node.name for node in model.graph.node if "scaled_dot" in node.name]
    assert attention
    assert not set(attention) & set(large)


# Balanced channels


def norm_model(more: bool = False) -> Any:
    """pixels [B, 3, 4, 8] -> norm -> two products, one with its axes turned; their sum. more: the
    norm, too."""
    rng, helper = np.random.default_rng(0), onnx.helper
    scale = np.array([1] * 7 + [100], np.float32)  # one channel is far larger than the others
    first, second = (rng.standard_normal((8, 5)).astype(np.float32) for _ in range(2))
    values = {"scale": scale, "shift": scale / 3, "first": first, "second": second}
    nodes = [
        helper.make_node("LayerNormalization", ["pixels", "scale", "shift"], ["norm"]),
        helper.make_node("MatMul", ["norm", "first"], ["a"]),
        helper.make_node("Transpose", ["norm"], ["turned"], perm=[1, 0, 2, 3]),
        helper.make_node("MatMul", ["turned", "second"], ["c"]),
        helper.make_node("Transpose", ["c"], ["b"], perm=[1, 0, 2, 3]),
        helper.make_node("Add", ["a", "b"], ["sum"]),
    ]
    real, shape = onnx.TensorProto.FLOAT, ["batch", 3, 4]
    outputs = [helper.make_tensor_value_info("sum", real, [*shape, 5])]
    outputs += [helper.make_tensor_value_info("norm", real, [*shape, 8])] if more else []
    entry = helper.make_tensor_value_info("pixels", real, [*shape, 8])
    weights = [onnx.numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "test", [entry], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run_model(model: Any, pixels: np.ndarray) -> np.ndarray:
    import onnxruntime

    content, providers = model.SerializeToString(), ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(content, providers=providers)
    return session.run(["sum"], {"pixels": pixels})[0]


def test_balancing_keeps_the_function() -> None:
    """Eq. 4 with alpha = 1/2: afterwards a channel's largest number and the largest of its weights
    are the same."""
    model = norm_model()
    pixels = np.random.default_rng(1).standard_normal((40, 3, 4, 8)).astype(np.float32)
    before = run_model(model, pixels)
    int8.balance(model, pixels)
    after = run_model(model, pixels)
    assert np.abs(after - before).max() < 1e-6 * np.abs(before).max() * 8
    to_array = onnx.numpy_helper.to_array
    weights = {weight.name: to_array(weight) for weight in model.graph.initializer}
    assert len(weights) == 4  # none of the old ones is left
    used = [name for node in model.graph.node for name in node.input if name in weights]
    scale, shift, first, second = (weights[name] for name in used)
    mean, deviation = pixels.mean(-1, keepdims=True), np.sqrt(pixels.var(-1, keepdims=True) + 1e-5)
    channels = np.abs((pixels - mean) / deviation * scale + shift).max((0, 1, 2))
    largest = np.abs(np.concatenate([first, second], 1)).max(1)
    np.testing.assert_allclose(channels, largest, rtol=1e-4)


def test_norms_with_other_readers_stay() -> None:
    assert [len(nodes) for nodes in int8.behind_norms(norm_model()).values()] == [2]
    model = norm_model(more=True)
    assert int8.behind_norms(model) == {}
    before = model.SerializeToString()
    int8.balance(model, np.zeros((1, 3, 4, 8), np.float32))
    assert model.SerializeToString() == before
