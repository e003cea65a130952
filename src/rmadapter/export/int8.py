"""An ONNX graph with 8-bit weights: several ways to make one, the best chosen by its answers to
training images.

Products of two activations, as in attention, and small products stay in float32: they take little
time, and would cost accuracy. No image that the model is judged by is used here.

Channels between LayerNorms and products are balanced first, which leaves the function the same in
float32 and brings 8 bits closer to it: SmoothQuant (https://arxiv.org/abs/2211.10438), Eq. 4 with
alpha = 1/2. For each channel j between a LayerNorm and products, s_j = sqrt(max|X_j| / max|W_j|)
makes the maxima of activations X, over a few images, and weights W equal. The norm's scale and
shift are divided by s, and rows of the weights multiplied by it; no operation is added.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rmadapter.data.read import ImageSource
from rmadapter.export.engines import GRAPH, INPUT
from rmadapter.export.runtime import BATCH, Model
from rmadapter.support.terminal import silenced

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

IMAGES = 1000  # images to compare on, at most: half a point of accuracy is five of them
ENOUGH = 0.995  # share of equal answers from which speed decides
LARGE = 2**17  # numbers in a weight from which 8 bits are worth it
BLOCK = 128  # numbers that share a range
INT8 = 4  # onnxruntime's accuracy level for products of integers
SEEN = 64  # images that channels are balanced on
CANDIDATE, BALANCED = "candidate.onnx", "balanced.onnx"
AT_ONCE = 16  # images
TINY = 1e-4  # least magnitude, for a channel that is never used

Row = dict[str, str | float | bool]  # of a table of ways


class Way(NamedTuple):
    """How activations are quantised: with one range per batch, or in blocks, where every BLOCK
    numbers of a row have a range of their own: closer to float32, but slower.

    balanced: balance the channels behind norms first. blocks: used by no large product, by the
    "others" that do not read a norm, or by "all".
    """

    name: str
    balanced: bool = False
    blocks: str = ""


PLAIN = Way("plain")  # what libraries do; no faster than the first of WAYS
WAYS = (
    Way("smooth", balanced=True),
    Way("smooth, others in blocks", balanced=True, blocks="others"),
    Way("smooth, all in blocks", balanced=True, blocks="all"),
)


def search(stage: Path, images: Sequence[ImageSource]) -> list[Row]:
    """Replace the model in an exported folder by the best 8-bit one. images: training images.

    The best is the fastest whose share of answers equal to float32's reaches ENOUGH, else the one
    that has most. Returns a row for float32 and for each way, the chosen one marked.
    """
    model = Model(stage, threads=1)
    best = stage / f"best.{CANDIDATE}"
    batches = range(0, len(images), BATCH)
    pixels = np.concatenate([model.pixels(images[i : i + BATCH]) for i in batches])
    expected, seconds = timed_answers(model, pixels)
    rows = [_row("none: fp32", stage / GRAPH, expected, expected, seconds)]
    measured: list[tuple[float, float]] = []
    for way in candidates(stage, pixels):
        table, seconds = timed_answers(Model(stage, threads=1, graph=CANDIDATE), pixels)
        rows.append(_row(way.name, stage / CANDIDATE, table, expected, seconds))
        measured.append((agreement(table, expected), seconds))
        if best_way(measured) == len(measured) - 1:
            shutil.copyfile(stage / CANDIDATE, best)
    best.replace(stage / GRAPH)
    return [{**row, "chosen": place == 1 + best_way(measured)} for place, row in enumerate(rows)]


def candidates(stage: Path, pixels: np.ndarray, ways: Sequence[Way] = WAYS) -> Iterator[Way]:
    """Yield each way while its model is in an exported folder as CANDIDATE. pixels: of training
    images."""
    write_balanced(stage / GRAPH, stage / BALANCED, pixels)
    for way in ways:
        _quantise(stage / (BALANCED if way.balanced else GRAPH), stage / CANDIDATE, way)
        yield way
    for name in (CANDIDATE, BALANCED):
        (stage / name).unlink()


def best_way(measured: Sequence[tuple[float, float]]) -> int:
    """Return the index of the way to take. measured: share of equal answers and seconds of each."""
    marks = [(min(share, ENOUGH), -seconds) for share, seconds in measured]
    return marks.index(max(marks))


def _row(name: str, file: Path, table: np.ndarray, expected: np.ndarray, seconds: float) -> Row:
    return {
        "weights in 8 bits": name,
        "MB": round(file.stat().st_size / 1e6, 1),
        "same answers in %": round(100 * agreement(table, expected), 1),
        "mean difference": float(f"{np.abs(table - expected).mean():.2g}"),
        "images per CPU second": round(len(table) / seconds, 1),
    }


def agreement(table: np.ndarray, expected: np.ndarray) -> float:
    """Return the share of equal answers of two tables of probabilities [N, C]."""
    return float((table.argmax(-1) == expected.argmax(-1)).mean())


def timed_answers(model: Model, pixels: np.ndarray) -> tuple[np.ndarray, float]:
    """Return probabilities [N, C], and the CPU seconds that they took."""
    model.probabilities(pixels[:1])
    started = time.process_time()
    return model.probabilities(pixels), time.process_time() - started


def _quantise(source: Path, target: Path, way: Way) -> None:
    """source: a float32 graph, already balanced if the way is."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = load_graph(source)
    large, others = products(model)
    after_norms = {node.name for nodes in behind_norms(model).values() for node in nodes}
    in_blocks: list[str] = []
    if way.blocks:
        in_blocks = [name for name in large if way.blocks == "all" or name not in after_norms]
    with silenced(logging.WARNING, output=True):
        if in_blocks:
            model = _in_blocks(model, [n for n in (*others, *large) if n not in in_blocks])
        if len(in_blocks) == len(large):
            onnx.save(model, str(target))
            return
        quantize_dynamic(
            model,
            str(target),
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=[name for name in large if name not in in_blocks],
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )


def load_graph(file: Path) -> ModelProto:
    """Load a graph, with MatMul for the Gemm that PyTorch's exporter writes where attention
    flattens its tokens."""
    import onnx
    from onnxruntime.quantization.onnx_model import ONNXModel

    wrapped = ONNXModel(onnx.load(str(file)))
    wrapped.replace_gemm_with_matmul()
    graph: ModelProto = wrapped.model
    return graph


def _in_blocks(model: ModelProto, others: list[str]) -> ModelProto:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        model,
        bits=8,
        block_size=BLOCK,
        is_symmetric=True,
        accuracy_level=INT8,
        nodes_to_exclude=others,
    )
    quantizer.process()
    graph: ModelProto = quantizer.model.model
    return graph


def products(model: ModelProto) -> tuple[list[str], list[str]]:
    """Name the products with large weights, in graph order, and all others."""
    size = {weight.name: int(np.prod(weight.dims)) for weight in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "MatMul"]
    large = [node.name for node in nodes if size.get(node.input[1], 0) >= LARGE]
    return large, [node.name for node in nodes if node.name not in set(large)]


# Balanced channels


def write_balanced(source: Path, target: Path, pixels: np.ndarray) -> None:
    """Write a graph with its channels balanced. pixels: [N, 3, H, W] of training images."""
    import onnx

    model = load_graph(source)
    balance(model, pixels[:SEEN])
    onnx.save(model, str(target))


def balance(model: ModelProto, pixels: np.ndarray) -> None:
    """Balance the channels of a graph in place. pixels: [N, 3, H, W] of some images."""
    from onnx import numpy_helper

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
        ratio = np.sqrt(np.maximum(peak, TINY) / np.maximum(largest, TINY))
        for place in range(1, len(norms[name].input)):
            scale(norms[name], place, 1 / ratio)
        for node in readers[name]:
            scale(node, 1, ratio[:, None])
    used = {name for node in model.graph.node for name in node.input}
    used_weights = [weight for weight in model.graph.initializer if weight.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(used_weights)


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
    import onnx
    from onnxruntime import InferenceSession, SessionOptions

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
    step = size if isinstance(size, int) else AT_ONCE
    peaks = [np.zeros(1)] * len(names)
    for start in range(0, len(pixels), step):
        tensors = session.run(None, {INPUT: pixels[start : start + step]})
        for i, tensor in enumerate(tensors):
            largest = np.abs(tensor).reshape(-1, tensor.shape[-1]).max(0)
            peaks[i] = np.maximum(peaks[i], largest)
    return dict(zip(names, peaks, strict=True))
