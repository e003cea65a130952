"""An ONNX graph with weights of 8 bits: some ways to get one, of which the answers to training images choose.

Products of two activations, as attention has them, and small products stay in float32: they take little time, and
cost accuracy. No image that the model is judged by is seen here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rmadapter.data.images import ImageSource
from rmadapter.deploy.engines import GRAPH, INPUT
from rmadapter.deploy.graph import quiet
from rmadapter.deploy.runtime import BATCH, Model

ASKED = 1000  # images before an export is done: half a point of accuracy is five of them
ENOUGH = 0.995  # share of equal answers from which the faster model is taken
LARGE = 2**16  # numbers of a weight that is worth it
BLOCK = 128  # numbers
INT8 = 4  # onnxruntime's word for products of integers
CANDIDATE = "candidate.onnx"


class Way(NamedTuple):
    """How activations meet the weights. static: with one range for all images, taken from those of the training; else
    with that of each batch. blocks: the first and the last share of the large products, where every BLOCK numbers of a
    row have a range of their own: nearer to float32, and slower."""

    name: str
    static: bool = False
    blocks: tuple[float, float] = (0.0, 0.0)


WAYS = (
    Way("dynamic"),
    Way("static", static=True),
    Way("dynamic, first half in blocks", blocks=(0.5, 0)),
    Way("dynamic, last half in blocks", blocks=(0, 0.5)),
    Way("blocks", blocks=(1, 0)),
)


def search(stage: Path, images: Sequence[ImageSource]) -> list[dict[str, Any]]:
    """Put the best model of 8 bits in the place of the one in an exported folder. images: of the training.

    Taken is the fastest one that answers them as the model in float32 does, or else the one that does so most often.
    Returns what was found of each way, the chosen one marked.
    """
    model, file, best = Model(stage, threads=1), stage / CANDIDATE, stage / f"best.{CANDIDATE}"
    pixels = np.concatenate([model.pixels(images[i : i + BATCH]) for i in range(0, len(images), BATCH)])
    wanted, seconds = _asked(model, pixels)
    rows, kept = [_row("none: fp32", stage / GRAPH, wanted, wanted, seconds)], []
    for way in WAYS:
        with quiet():
            _quantise(stage / GRAPH, file, way, pixels)
        found, seconds = _asked(Model(stage, threads=1, graph=CANDIDATE), pixels)
        rows.append(_row(way.name, file, found, wanted, seconds))
        kept.append((min(_same(found, wanted), ENOUGH), -seconds))
        if kept[-1] == max(kept):
            file.replace(best)
    best.replace(stage / GRAPH)
    file.unlink(missing_ok=True)
    chosen = 1 + kept.index(max(kept))
    return [{**row, "chosen": place == chosen} for place, row in enumerate(rows)]


def _row(name: str, file: Path, found: np.ndarray, wanted: np.ndarray, seconds: float) -> dict[str, Any]:
    return {
        "weights in 8 bits": name,
        "MB": round(file.stat().st_size / 1e6, 1),
        "same answers in %": round(100 * _same(found, wanted), 1),
        "mean difference": float(f"{np.abs(found - wanted).mean():.2g}"),
        "images per CPU second": round(len(found) / seconds, 1),
    }


def _same(found: np.ndarray, wanted: np.ndarray) -> float:
    return float((found.argmax(-1) == wanted.argmax(-1)).mean())


def _asked(model: Model, pixels: np.ndarray) -> tuple[np.ndarray, float]:
    """Probabilities [N, C], and seconds of all processors."""
    model.probabilities(pixels[:1])
    started = time.process_time()
    return model.probabilities(pixels), time.process_time() - started


def _quantise(source: Path, target: Path, way: Way, pixels: np.ndarray) -> None:
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.parts: Iterator[np.ndarray] = iter(np.split(pixels, range(BATCH, len(pixels), BATCH)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            part = next(self.parts, None)
            return None if part is None else {INPUT: part}

    model = onnx.load(str(source))
    large, others = _products(model)
    first, last = (round(share * len(large)) for share in way.blocks)
    fine = large[:first] + large[len(large) - last :]
    common: dict[str, Any] = {"per_channel": True, "weight_type": QuantType.QInt8, "op_types_to_quantize": ["MatMul"]}
    if way.static:
        common |= {"quant_format": QuantFormat.QDQ, "activation_type": QuantType.QInt8}
        quantize_static(str(source), str(target), Reader(), nodes_to_exclude=others, **common)
        return
    model = _in_blocks(model, [node for node in (*others, *large) if node not in fine]) if fine else model
    if len(fine) == len(large):
        onnx.save(model, str(target))
    else:
        quantize_dynamic(model, str(target), nodes_to_exclude=others + fine, **common)


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
