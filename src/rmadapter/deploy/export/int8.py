"""An ONNX graph with 8-bit weights: several ways to make one, the best chosen by its answers to
training images.

Products of two activations, as in attention, and small products stay in float32: they take little
time, and would cost accuracy. No image that the model is judged by is used here.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rmadapter.data.read import ImageSource
from rmadapter.deploy.export.engines import GRAPH
from rmadapter.deploy.export.runtime import BATCH, Model
from rmadapter.deploy.export.smooth import behind_norms, smooth
from rmadapter.support.terminal import silenced

ASKED = 1000  # images to compare on, at most: half a point of accuracy is five of them
ENOUGH = 0.995  # share of equal answers from which speed decides
LARGE = 2**17  # numbers in a weight from which 8 bits are worth it
BLOCK = 128  # numbers that share a range
INT8 = 4  # onnxruntime's accuracy level for products of integers
SEEN = 64  # images that channels are balanced on
CANDIDATE, SMOOTH = "candidate.onnx", "smooth.onnx"


class Way(NamedTuple):
    """How activations are quantised: with one range per batch, or in blocks, where every BLOCK
    numbers of a row have a range of their own: closer to float32, but slower. smooth: balance the
    channels behind norms first. blocks: used by no large product, by the "others" that do not read
    a norm, or by "all"."""

    name: str
    smooth: bool = False
    blocks: str = ""


PLAIN = Way("plain")  # what libraries do; no faster than the first of WAYS
WAYS = (
    Way("smooth", smooth=True),
    Way("smooth, others in blocks", smooth=True, blocks="others"),
    Way("smooth, all in blocks", smooth=True, blocks="all"),
)


def search(stage: Path, images: Sequence[ImageSource]) -> list[dict[str, Any]]:
    """Replace the model in an exported folder by the best 8-bit one. images: training images.

    The best is the fastest whose share of answers equal to float32's reaches ENOUGH, else the one
    that has most. Returns a row for float32 and for each way, the chosen one marked.
    """
    model, best = Model(stage, threads=1), stage / f"best.{CANDIDATE}"
    pixels = np.concatenate(
        [model.pixels(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
    )
    wanted, seconds = asked(model, pixels)
    rows, kept = [_row("none: fp32", stage / GRAPH, wanted, wanted, seconds)], []
    for way in candidates(stage, pixels):
        found, seconds = asked(Model(stage, threads=1, graph=CANDIDATE), pixels)
        rows.append(_row(way.name, stage / CANDIDATE, found, wanted, seconds))
        kept.append((same(found, wanted), seconds))
        if taken(kept) == len(kept) - 1:
            shutil.copyfile(stage / CANDIDATE, best)
    best.replace(stage / GRAPH)
    return [{**row, "chosen": place == 1 + taken(kept)} for place, row in enumerate(rows)]


def candidates(stage: Path, pixels: np.ndarray, ways: Sequence[Way] = WAYS) -> Iterator[Way]:
    """Yield each way while its model is in an exported folder as CANDIDATE. pixels: of training
    images."""
    make_even(stage / GRAPH, stage / SMOOTH, pixels)
    for way in ways:
        _quantise(stage / (SMOOTH if way.smooth else GRAPH), stage / CANDIDATE, way)
        yield way
    for name in (CANDIDATE, SMOOTH):
        (stage / name).unlink()


def make_even(source: Path, target: Path, pixels: np.ndarray) -> None:
    """Write a graph with its channels balanced by `smooth`. pixels: of training images."""
    import onnx

    model = _loaded(source)
    smooth(model, pixels[:SEEN])
    onnx.save(model, str(target))


def taken(found: Sequence[tuple[float, float]]) -> int:
    """Index of the way to take. found: share of equal answers and seconds of each."""
    marks = [(min(share, ENOUGH), -seconds) for share, seconds in found]
    return marks.index(max(marks))


def _row(
    name: str, file: Path, found: np.ndarray, wanted: np.ndarray, seconds: float
) -> dict[str, Any]:
    return {
        "weights in 8 bits": name,
        "MB": round(file.stat().st_size / 1e6, 1),
        "same answers in %": round(100 * same(found, wanted), 1),
        "mean difference": float(f"{np.abs(found - wanted).mean():.2g}"),
        "images per CPU second": round(len(found) / seconds, 1),
    }


def same(found: np.ndarray, wanted: np.ndarray) -> float:
    return float((found.argmax(-1) == wanted.argmax(-1)).mean())


def asked(model: Model, pixels: np.ndarray) -> tuple[np.ndarray, float]:
    """Probabilities [N, C], and the CPU seconds that they took."""
    model.probabilities(pixels[:1])
    started = time.process_time()
    return model.probabilities(pixels), time.process_time() - started


def _quantise(source: Path, target: Path, way: Way) -> None:
    """source: a float32 graph, already smooth if the way asks for it."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = _loaded(source)
    large, others = _products(model)
    even = {node.name for nodes in behind_norms(model).values() for node in nodes}
    fine = {"": [], "others": [name for name in large if name not in even], "all": large}[
        way.blocks
    ]
    with silenced(logging.WARNING, output=True):
        model = (
            _in_blocks(model, [name for name in (*others, *large) if name not in fine])
            if fine
            else model
        )
        if len(fine) == len(large):
            onnx.save(model, str(target))
            return
        quantize_dynamic(
            model, str(target), per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"],
            nodes_to_quantize=[name for name in large if name not in fine],
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )  # fmt: skip


def _loaded(file: Path) -> Any:
    """Load a graph, with MatMul for the Gemm that PyTorch's exporter writes where attention
    flattens its tokens."""
    import onnx
    from onnxruntime.quantization.onnx_model import ONNXModel

    found = ONNXModel(onnx.load(str(file)))
    found.replace_gemm_with_matmul()
    return found.model


def _in_blocks(model: Any, others: list[str]) -> Any:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    found = MatMulNBitsQuantizer(
        model,
        bits=8,
        block_size=BLOCK,
        is_symmetric=True,
        accuracy_level=INT8,
        nodes_to_exclude=others,
    )
    found.process()
    return found.model.model


def _products(model: Any) -> tuple[list[str], list[str]]:
    """Names of the products with large weights, in graph order, and of all others."""
    size = {weight.name: int(np.prod(weight.dims)) for weight in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "MatMul"]
    large = [node.name for node in nodes if size.get(node.input[1], 0) >= LARGE]
    return large, [node.name for node in nodes if node.name not in set(large)]
