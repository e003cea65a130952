"""Balance channels between LayerNorms and products: the same function in float32, closer to it in 8
bits.

SmoothQuant (https://arxiv.org/abs/2211.10438), Eq. 4 with alpha = 1/2: for each channel j between a
LayerNorm and products, s_j = sqrt(max|X_j| / max|W_j|) makes the maxima of activations X, over a
few images, and weights W equal. The norm's scale and shift are divided by s, and rows of the
weights multiplied by it; no operation is added.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rmadapter.deploy.export.engines import INPUT

AT_ONCE = 16  # images
TINY = 1e-4  # least magnitude, for a channel that is never used


def behind_norms(model: Any) -> dict[str, list[Any]]:
    """Output of each LayerNorm that only products with constant weights read -> those products."""
    weights, readers = {weight.name for weight in model.graph.initializer}, defaultdict(list)
    for reader in (*model.graph.node, *model.graph.output):
        for name in getattr(reader, "input", [reader.name]):
            readers[name].append(reader)

    def products(name: str) -> list[Any]:
        """Products that read a tensor or its transpose, as attention may put tokens first; None for
        other readers."""
        return [
            product
            for node in readers[name]
            for product in (
                products(node.output[0])
                if _turns(node)
                else [node if _product(node, weights) else None]
            )
        ]

    norms = [
        node for node in model.graph.node if node.op_type == "LayerNormalization" and _last(node)
    ]
    found = {
        norm.output[0]: products(norm.output[0])
        for norm in norms
        if weights.issuperset(norm.input[1:])
    }
    return {name: nodes for name, nodes in found.items() if nodes and None not in nodes}


def _product(reader: Any, weights: set[str]) -> bool:
    return getattr(reader, "op_type", "") == "MatMul" and reader.input[1] in weights


def _turns(reader: Any) -> bool:
    """Whether it is a transpose that leaves the last axis in place."""
    if getattr(reader, "op_type", "") != "Transpose":
        return False
    order = list(reader.attribute[0].ints)
    return order[-1] == len(order) - 1


def _last(norm: Any) -> bool:
    """Whether it normalises each token by itself."""
    return all(part.i == -1 for part in norm.attribute if part.name == "axis")


def smooth(model: Any, pixels: np.ndarray) -> None:
    """Balance the channels of an onnx.ModelProto in place. pixels: [N, 3, H, W] of some images."""
    from onnx import numpy_helper

    weights = {weight.name: weight for weight in model.graph.initializer}
    products, norms = behind_norms(model), {node.output[0]: node for node in model.graph.node}

    def change(node: Any, place: int, factor: np.ndarray) -> None:
        """Scale an input of a node, in a new tensor: nodes with identical ones share a tensor."""
        values = numpy_helper.to_array(weights[node.input[place]]) * factor
        node.input[place] = f"{node.input[place]}_{node.output[0]}_smooth"
        model.graph.initializer.append(
            numpy_helper.from_array(values.astype(np.float32), node.input[place])
        )

    for name, peak in _peaks(model, list(products), pixels).items():
        rows = [
            np.abs(numpy_helper.to_array(weights[node.input[1]])).max(1) for node in products[name]
        ]
        ratio = np.sqrt(np.maximum(peak, TINY) / np.maximum(np.max(rows, 0), TINY))
        for place in range(1, len(norms[name].input)):
            change(norms[name], place, 1 / ratio)
        for node in products[name]:
            change(node, 1, ratio[:, None])
    used = {name for node in model.graph.node for name in node.input}
    kept = [weight for weight in model.graph.initializer if weight.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _peaks(model: Any, names: Sequence[str], pixels: np.ndarray) -> Mapping[str, np.ndarray]:
    """Largest magnitude of each channel of these tensors: name -> [channels]."""
    import onnx
    from onnxruntime import InferenceSession, SessionOptions

    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    del seen.graph.output[:]
    seen.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    options = SessionOptions()
    options.log_severity_level = 3  # errors
    session = InferenceSession(
        seen.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    size = session.get_inputs()[0].shape[0]
    step, found = size if isinstance(size, int) else AT_ONCE, [np.zeros(1)] * len(names)
    for start in range(0, len(pixels), step):
        tensors = session.run(None, {INPUT: pixels[start : start + step]}) if names else []
        found = [
            np.maximum(old, np.abs(new).reshape(-1, new.shape[-1]).max(0))
            for old, new in zip(found, tensors, strict=True)
        ]
    return dict(zip(names, found, strict=True))
