"""Read the weights of an ONNX file without the onnx package: a few fields of protobuf's wire format.

Formats: https://protobuf.dev/programming-guides/encoding and onnx.proto of https://github.com/onnx/onnx.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# Field numbers of onnx.proto
MODEL_GRAPH = 7
GRAPH_NODE, GRAPH_INITIALIZER = 1, 5
NODE_INPUT, NODE_NAME = 1, 3
TENSOR_DIMS, TENSOR_TYPE, TENSOR_FLOATS, TENSOR_NAME, TENSOR_RAW = 1, 2, 4, 8, 9
FLOAT32 = 1

VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5  # wire types


def read_onnx(data: bytes) -> dict[str, np.ndarray]:
    """The float32 weights of a model by name.

    Exporters store the matrix of a linear layer transposed and under a number; it is given here as the layer has it,
    [out, in], under the name of its MatMul node: `/encoder/fc1/MatMul` becomes `encoder.fc1.weight`.
    Raises ValueError or IndexError when the bytes are no ONNX model.
    """
    graph = next((value for number, value in _fields(memoryview(data)) if number == MODEL_GRAPH), None)
    if not isinstance(graph, memoryview):
        raise ValueError("no ONNX model: it has no graph")
    weights: dict[str, np.ndarray] = {}
    matmuls: dict[str, str] = {}  # layer -> name of its right factor
    for number, value in _fields(graph):
        if number == GRAPH_INITIALIZER:
            weights.update(_tensor(value))
        elif number == GRAPH_NODE:
            inputs, name = _node(value)
            if name.endswith("/MatMul"):
                matmuls[name.removesuffix("/MatMul").strip("/").replace("/", ".")] = inputs[1]
    linear = {f"{layer}.weight": weights[matrix].T for layer, matrix in matmuls.items() if matrix in weights}
    return weights | linear


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """(field number, value) of one message; a value is an integer or the bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == LENGTH:
            size, position = _varint(data, position)
        elif wire in (FOUR_BYTES, EIGHT_BYTES):
            size = 4 if wire == FOUR_BYTES else 8
        else:
            raise ValueError(f"protobuf wire type {wire} is not read here")
        if position + size > len(data):
            raise ValueError("the file is cut short")
        yield number, data[position : position + size]
        position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """An integer in groups of seven bits, lowest first, and the position behind it."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, position


def _tensor(message: memoryview | int) -> dict[str, np.ndarray]:
    assert isinstance(message, memoryview)
    name, shape, floats, kind = "", [], b"", None
    for number, value in _fields(message):
        if number == TENSOR_DIMS:
            shape += [value] if isinstance(value, int) else _packed(value)
        elif number == TENSOR_TYPE:
            kind = value
        elif number == TENSOR_NAME:
            name = bytes(value).decode()
        elif number in (TENSOR_RAW, TENSOR_FLOATS):
            floats += bytes(value)
    return {name: np.frombuffer(floats, "<f4").reshape(shape)} if kind == FLOAT32 else {}


def _packed(data: memoryview) -> list[int]:
    values, position = [], 0
    while position < len(data):
        value, position = _varint(data, position)
        values.append(value)
    return values


def _node(message: memoryview | int) -> tuple[list[str], str]:
    assert isinstance(message, memoryview)
    inputs, name = [], ""
    for number, value in _fields(message):
        if number == NODE_INPUT:
            inputs.append(bytes(value).decode())
        elif number == NODE_NAME:
            name = bytes(value).decode()
    return inputs, name
