from __future__ import annotations

import numpy as np
import pytest

from rmadapter.onnx_weights import read_onnx


def varint(value: int) -> bytes:
    return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])


def message(number: int, content: bytes | int) -> bytes:
    """One protobuf field: an integer, or bytes with their length."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def tensor(name: str, array: np.ndarray, *, raw: bool = True, packed: bool = False, kind: int = 1) -> bytes:
    if packed:
        dims = message(1, b"".join(varint(size) for size in array.shape))
    else:
        dims = b"".join(message(1, size) for size in array.shape)
    return dims + message(2, kind) + message(8, name.encode()) + message(9 if raw else 4, array.astype("<f4").tobytes())


def test_reads_weights_and_names_linear_layers() -> None:
    rng = np.random.default_rng(0)
    bias, kernel, matrix = rng.random(300), rng.random((2, 3, 200)), rng.random((4, 5))
    node = message(1, b"/encoder/fc1/Add_output") + message(1, b"onnx::MatMul_7") + message(3, b"/encoder/fc1/MatMul")
    attention = message(1, b"queries") + message(1, b"keys") + message(3, b"/encoder/MatMul")  # two activations
    graph = message(1, node) + message(1, attention) + message(2, b"the graph's name")
    graph += message(5, tensor("encoder.fc1.bias", bias)) + message(5, tensor("kernel", kernel, packed=True))
    graph += message(5, tensor("onnx::MatMul_7", matrix, raw=False)) + message(5, tensor("counts", bias, kind=7))
    model = message(1, 8) + message(2, b"some exporter") + message(7, graph) + varint(9 << 3 | 5) + b"1234"
    weights = read_onnx(model)
    assert weights.keys() == {"encoder.fc1.bias", "kernel", "onnx::MatMul_7", "encoder.fc1.weight"}
    np.testing.assert_array_equal(weights["encoder.fc1.bias"], bias.astype("f4"))
    np.testing.assert_array_equal(weights["kernel"], kernel.astype("f4"))
    np.testing.assert_array_equal(weights["encoder.fc1.weight"], matrix.astype("f4").T)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 a zip file", message(7, b"x" * 100)[:50]])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        read_onnx(data)
