"""Norms made even: the same function, with channels of like sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rmadapter.deploy.export.smooth import behind_norms, smooth

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime", reason="pip install 'rmadapter[export]'")


def model(more: bool = False) -> Any:
    """pixels [B, 3, 4, 8] -> norm -> two products, one with its axes turned; their sum. more: the
    norm, too."""
    rng, helper = np.random.default_rng(0), onnx.helper
    scale = np.array(
        [1, 1, 1, 1, 1, 1, 1, 100], np.float32
    )  # one channel is far larger than the others
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


def run(found: Any, pixels: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        found.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(["sum"], {"pixels": pixels})[0]


def test_the_function_stays_and_channels_become_alike() -> None:
    """Eq. 4 with alpha = 1/2: afterwards a channel's largest number and the largest of its weights
    are the same."""
    found, pixels = (
        model(),
        np.random.default_rng(1).standard_normal((40, 3, 4, 8)).astype(np.float32),
    )
    before = run(found, pixels)
    smooth(found, pixels)
    after = run(found, pixels)
    assert np.abs(after - before).max() < 1e-6 * np.abs(before).max() * 8
    weights = {
        weight.name: onnx.numpy_helper.to_array(weight) for weight in found.graph.initializer
    }
    assert len(weights) == 4  # none of the old ones is left
    scale, shift, first, second = (
        weights[name] for node in found.graph.node for name in node.input if name in weights
    )
    mean, deviation = pixels.mean(-1, keepdims=True), np.sqrt(pixels.var(-1, keepdims=True) + 1e-5)
    channels = np.abs((pixels - mean) / deviation * scale + shift).max((0, 1, 2))
    np.testing.assert_allclose(
        channels, np.abs(np.concatenate([first, second], 1)).max(1), rtol=1e-4
    )


def test_a_norm_that_something_else_reads_stays() -> None:
    assert [len(nodes) for nodes in behind_norms(model()).values()] == [2]
    found = model(more=True)
    assert behind_norms(found) == {}
    before = found.SerializeToString()
    smooth(found, np.zeros((1, 3, 4, 8), np.float32))
    assert found.SerializeToString() == before
