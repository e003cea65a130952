"""An ONNX graph with 8-bit weights, by onnxruntime's dynamic quantisation.

Products of two activations, as in attention, and small products stay in float32: they take little
time, and would cost accuracy.

Channels between LayerNorms and products are balanced first, which leaves the function the same in
float32 and brings 8 bits closer to it: SmoothQuant (https://arxiv.org/abs/2211.10438), Eq. 4 with
alpha = 1/2. For each channel j between a LayerNorm and products, s_j = sqrt(max|X_j| / max|W_j|)
makes the maxima of activations X, over a few images, and weights W equal. The norm's scale and
shift are divided by s, and rows of the weights multiplied by it; no operation is added.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper
from onnxruntime import InferenceSession, SessionOptions
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.onnx_model import ONNXModel

from rmadapter.export.engines import INPUT
from rmadapter.support.terminal import silenced

MIN_WEIGHT_SIZE = 2**17  # numbers in a weight from which 8 bits are worth it
BALANCE_BATCH = 16  # images at once
MIN_MAGNITUDE = 1e-4  # for a channel that is never used


def quantize(file: Path, pixels: np.ndarray) -> None:
    """Put the large products of a float32 graph into 8 bits, after balancing its channels.

    Args:
        file: The graph, which is replaced.
        pixels: Training images [N, 3, H, W] to balance the channels on.
    """
    model = load_graph(file)
    balance(model, pixels)
    quantize_products(model, large_products(model), file)


def quantize_products(model: ModelProto, names: Sequence[str], file: Path) -> None:
    """Write a graph with products of these names in 8 bits."""
    with silenced(logging.WARNING, output=True):
        quantize_dynamic(
            model,
            str(file),
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=list(names),
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )


def load_graph(file: Path) -> ModelProto:
    """Load a graph, with MatMul for the Gemm that PyTorch's exporter writes where attention
    flattens its tokens."""
    wrapped = ONNXModel(onnx.load(str(file)))
    wrapped.replace_gemm_with_matmul()
    graph: ModelProto = wrapped.model
    return graph


def large_products(model: ModelProto) -> list[str]:
    """Name the products with large weights, in graph order."""
    size = {weight.name: int(np.prod(weight.dims)) for weight in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "MatMul"]
    return [node.name for node in nodes if size.get(node.input[1], 0) >= MIN_WEIGHT_SIZE]


# Balanced channels


def balance_file(file: Path, pixels: np.ndarray) -> None:
    """Balance the channels of a graph in a file, which is replaced.

    Args:
        file: The file.
        pixels: As for `quantize`.
    """
    model = load_graph(file)
    balance(model, pixels)
    onnx.save(model, str(file))


def balance(model: ModelProto, pixels: np.ndarray) -> None:
    """Balance the channels of a graph in place.

    Args:
        model: The graph.
        pixels: [N, 3, H, W] of some images.
    """
    weights = {weight.name: weight for weight in model.graph.initializer}
    readers = behind_norms(model)
    norms = {node.output[0]: node for node in model.graph.node}

    def scale(node: NodeProto, place: int, factor: np.ndarray) -> None:
        """Scale an input of a node, in a new tensor: nodes with identical ones share a tensor."""
        values = numpy_helper.to_array(weights[node.input[place]]) * factor
        node.input[place] = f"{node.input[place]}_{node.output[0]}_smooth"
        tensor = numpy_helper.from_array(values.astype(np.float32), node.input[place])
        model.graph.initializer.append(tensor)

    for name, peak in _peaks(model, list(readers), pixels).items():
        arrays = [numpy_helper.to_array(weights[node.input[1]]) for node in readers[name]]
        largest = np.max([np.abs(array).max(1) for array in arrays], 0)
        ratio = np.sqrt(np.maximum(peak, MIN_MAGNITUDE) / np.maximum(largest, MIN_MAGNITUDE))
        for place in range(1, len(norms[name].input)):
            scale(norms[name], place, 1 / ratio)
        for node in readers[name]:
            scale(node, 1, ratio[:, None])
    ONNXModel(model).clean_initializers()


def behind_norms(model: ModelProto) -> dict[str, list[NodeProto]]:
    """Map the output of each LayerNorm that only products with constant weights read to those
    products."""
    weights = {weight.name for weight in model.graph.initializer}
    readers: dict[str, list[NodeProto | None]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            readers[name].append(node)
    for output in model.graph.output:
        readers[output.name].append(None)  # no product reads it

    def products_of(name: str) -> list[NodeProto | None]:
        """Products that read a tensor or its transpose, as attention may put tokens first; None for
        other readers."""
        readers_of: list[NodeProto | None] = []
        for node in readers[name]:
            if node is not None and _keeps_last_axis(node):
                readers_of += products_of(node.output[0])
            elif node is not None and node.op_type == "MatMul" and node.input[1] in weights:
                readers_of.append(node)
            else:
                readers_of.append(None)
        return readers_of

    result: dict[str, list[NodeProto]] = {}
    for norm in model.graph.node:
        if norm.op_type != "LayerNormalization" or not weights.issuperset(norm.input[1:]):
            continue
        per_token = all(part.i == -1 for part in norm.attribute if part.name == "axis")
        nodes = products_of(norm.output[0])
        if per_token and nodes and None not in nodes:
            result[norm.output[0]] = [node for node in nodes if node is not None]
    return result


def _keeps_last_axis(node: NodeProto) -> bool:
    """Return whether a node is a transpose that leaves the last axis in place."""
    if node.op_type != "Transpose":
        return False
    order = list(node.attribute[0].ints)
    return bool(order[-1] == len(order) - 1)


def _peaks(model: ModelProto, names: Sequence[str], pixels: np.ndarray) -> Mapping[str, np.ndarray]:
    """Return the largest magnitude of each channel of these tensors: name -> [channels]."""
    if not names:
        return {}
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    for name in names:
        info = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        watched.graph.output.append(info)
    options = SessionOptions()
    options.log_severity_level = 3  # errors
    session = InferenceSession(
        watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    size = session.get_inputs()[0].shape[0]
    step = size if isinstance(size, int) else BALANCE_BATCH
    peaks: dict[str, np.ndarray] = {}
    for start in range(0, len(pixels), step):
        tensors = session.run(None, {INPUT: pixels[start : start + step]})
        for name, tensor in zip(names, tensors, strict=True):
            largest = np.abs(tensor).reshape(-1, tensor.shape[-1]).max(0).astype(np.float64)
            peaks[name] = np.maximum(peaks.get(name, 0), largest)
    return peaks
