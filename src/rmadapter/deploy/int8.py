"""An ONNX graph with weights of 8 bits: some ways to get one, of which the answers to training images choose.

Products of two activations, as attention has them, and small products stay in float32: they take little time, and
cost accuracy. No image that the model is judged by is seen here.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rmadapter.data.images import ImageSource
from rmadapter.deploy.engines import GRAPH
from rmadapter.deploy.graph import quiet
from rmadapter.deploy.runtime import BATCH, Model
from rmadapter.deploy.smooth import behind_norms, smooth

ASKED = 1000  # images before an export is done: half a point of accuracy is five of them
ENOUGH = 0.995  # share of equal answers from which the faster model is taken
LARGE = 2**17  # numbers of a weight that is worth it
BLOCK = 128  # numbers
INT8 = 4  # onnxruntime's word for products of integers
SEEN = 64  # images that norms are made even by
CANDIDATE, SMOOTH = "candidate.onnx", "smooth.onnx"


class Way(NamedTuple):
    """How activations meet the weights: with one range for each batch, or in blocks, where every BLOCK numbers of a row
    have a range of their own: nearer to float32, and slower. smooth: what norms hand on is made even first. blocks: of
    no large product, of those "others" that do not read a norm, or of "all"."""

    name: str
    smooth: bool = False
    blocks: str = ""


PLAIN = Way("plain")  # what libraries do; no faster than the first that follows
WAYS = (
    Way("smooth", smooth=True),
    Way("smooth, others in blocks", smooth=True, blocks="others"),
    Way("smooth, all in blocks", smooth=True, blocks="all"),
)


def search(stage: Path, images: Sequence[ImageSource]) -> list[dict[str, Any]]:
    """Put the best model of 8 bits in the place of the one in an exported folder. images: of the training.

    Taken is the fastest one that answers them as the model in float32 does, or else the one that does so most often.
    Returns what was found of each way, the chosen one marked.
    """
    model, best = Model(stage, threads=1), stage / f"best.{CANDIDATE}"
    pixels = np.concatenate([model.pixels(images[i : i + BATCH]) for i in range(0, len(images), BATCH)])
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
    """Each way, while the model that it gives lies in an exported folder as CANDIDATE. pixels: of training images."""
    make_even(stage / GRAPH, stage / SMOOTH, pixels)
    for way in ways:
        _quantise(stage / (SMOOTH if way.smooth else GRAPH), stage / CANDIDATE, way)
        yield way
    for name in (CANDIDATE, SMOOTH):
        (stage / name).unlink()


def make_even(source: Path, target: Path, pixels: np.ndarray) -> None:
    """Write a graph again, so that it hands even numbers to its products. pixels: of training images."""
    import onnx

    model = _loaded(source)
    smooth(model, pixels[:SEEN])
    onnx.save(model, str(target))


def taken(found: Sequence[tuple[float, float]]) -> int:
    """Which of some ways it is. found: of each the share of equal answers, and seconds."""
    marks = [(min(share, ENOUGH), -seconds) for share, seconds in found]
    return marks.index(max(marks))


def _row(name: str, file: Path, found: np.ndarray, wanted: np.ndarray, seconds: float) -> dict[str, Any]:
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
    """Probabilities [N, C], and seconds of all processors."""
    model.probabilities(pixels[:1])
    started = time.process_time()
    return model.probabilities(pixels), time.process_time() - started


def _quantise(source: Path, target: Path, way: Way) -> None:
    """source: a graph in float32, smooth where the way asks for it."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = _loaded(source)
    large, others = _products(model)
    even = {node.name for nodes in behind_norms(model).values() for node in nodes}
    fine = {"": [], "others": [name for name in large if name not in even], "all": large}[way.blocks]
    with quiet():
        model = _in_blocks(model, [name for name in (*others, *large) if name not in fine]) if fine else model
        if len(fine) == len(large):
            onnx.save(model, str(target))
            return
        quantize_dynamic(
            model, str(target), per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"],
            nodes_to_quantize=[name for name in large if name not in fine],
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )  # fmt: skip


def _loaded(file: Path) -> Any:
    """Of products one kind alone: where attention flattens its tokens, PyTorch's exporter writes another one."""
    import onnx
    from onnxruntime.quantization.onnx_model import ONNXModel

    found = ONNXModel(onnx.load(str(file)))
    found.replace_gemm_with_matmul()
    return found.model


def _in_blocks(model: Any, others: list[str]) -> Any:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    found = MatMulNBitsQuantizer(
        model, bits=8, block_size=BLOCK, is_symmetric=True, accuracy_level=INT8, nodes_to_exclude=others
    )
    found.process()
    return found.model.model


def _products(model: Any) -> tuple[list[str], list[str]]:
    """Names of the products with large weights, from the first to the last one, and of all others."""
    size = {weight.name: int(np.prod(weight.dims)) for weight in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "MatMul"]
    large = [node.name for node in nodes if size.get(node.input[1], 0) >= LARGE]
    return large, [node.name for node in nodes if node.name not in set(large)]
