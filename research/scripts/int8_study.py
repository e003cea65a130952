"""Measure what 8-bit weights cost and save: a linear probe of each data set, put into 8 bits in
several ways, on test images.

    python research/scripts/int8_study.py grocery pacs/photo --root DATA \\
        --out research/results/int8.jsonl

    python research/scripts/int8_study.py --out research/results/int8.jsonl --tables

A line is one data set: ways to quantise an ONNX graph, and that of `--to openvino` if NNCF is
installed. `smooth` is that of `--to onnx`. A search chooses one of the balanced ways by training
images alone: the fastest that keeps enough of float32's answers, else the one that keeps most.
Finished lines are kept: repeat the command to resume. CPU seconds are of one thread.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from studies import Line, Lines, append_lines, make_parser, markdown, read_lines

from rmadapter.artifacts.checkpoint import Saved, load
from rmadapter.export import graph
from rmadapter.export.engines import GRAPH
from rmadapter.export.folder import transform_facts
from rmadapter.export.int8 import (
    balance_file,
    behind_norms,
    large_products,
    load_graph,
    quantize_products,
)
from rmadapter.export.parity import compared_images, training_images
from rmadapter.export.runtime import LABELS, TRANSFORM, Model
from rmadapter.metrics import accuracy
from rmadapter.support.files import write_json
from rmadapter.support.machine import processor, versions
from rmadapter.support.terminal import silenced

FP32, OTHER = "none: fp32", "--to openvino"
CANDIDATE, BALANCED = "candidate.onnx", "balanced.onnx"
ENOUGH = 0.995  # share of equal answers from which speed decides
BLOCK_SIZE = 128  # numbers that share a range
INT8_LEVEL = 4  # onnxruntime's accuracy level for products of integers
HEAD = (
    "data", "test images", "weights in 8 bits", "MB", "accuracy", "change", "same answers in %",
    "mean difference", "images per CPU second", "of fp32's",
)  # fmt: skip


class Way(NamedTuple):
    """How activations are quantised: with one range per batch, or in blocks, where every BLOCK_SIZE
    numbers of a row have a range of their own: closer to float32, but slower.

    Attributes:
        balanced: Whether the channels behind norms are balanced before.
        blocks: Which large products use blocks: none, the "others" that do not read a norm, "all".
    """

    name: str
    balanced: bool = False
    blocks: str = ""


PLAIN = Way("plain")  # what libraries do; the search does not try it
WAYS = (
    Way("smooth", balanced=True),
    Way("smooth, others in blocks", balanced=True, blocks="others"),
    Way("smooth, all in blocks", balanced=True, blocks="all"),
)


def candidates(stage: Path, pixels: np.ndarray) -> Iterator[Way]:
    """Yield each way while its model is in an exported folder as CANDIDATE. pixels: of training
    images."""
    shutil.copyfile(stage / GRAPH, stage / BALANCED)
    balance_file(stage / BALANCED, pixels)
    for way in (PLAIN, *WAYS):
        _quantise(stage / (BALANCED if way.balanced else GRAPH), stage / CANDIDATE, way)
        yield way
    for name in (CANDIDATE, BALANCED):
        (stage / name).unlink()


def _quantise(source: Path, target: Path, way: Way) -> None:
    """Write a graph in 8 bits. source: a graph in float32, already balanced if the way is."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    model = load_graph(source)
    large = large_products(model)
    after_norms = {node.name for nodes in behind_norms(model).values() for node in nodes}
    in_blocks = [
        name for name in large if way.blocks == "all" or (way.blocks and name not in after_norms)
    ]
    if in_blocks:
        products = [node.name for node in model.graph.node if node.op_type == "MatMul"]
        with silenced(logging.WARNING, output=True):
            quantizer = MatMulNBitsQuantizer(
                model,
                bits=8,
                block_size=BLOCK_SIZE,
                is_symmetric=True,
                accuracy_level=INT8_LEVEL,
                nodes_to_exclude=[name for name in products if name not in in_blocks],
            )
            quantizer.process()
        model = quantizer.model.model
    rest = [name for name in large if name not in in_blocks]
    if rest:
        quantize_products(model, rest, target)
    else:
        onnx.save(model, str(target))


def best_way(measured: Sequence[tuple[float, float]]) -> int:
    """Return the index of the way to take. measured: share of equal answers and seconds of each."""
    marks = [(min(share, ENOUGH), -seconds) for share, seconds in measured]
    return marks.index(max(marks))


def agreement(table: np.ndarray, expected: np.ndarray) -> float:
    """Return the share of equal answers of two tables of probabilities [N, C]."""
    return float((table.argmax(-1) == expected.argmax(-1)).mean())


def timed_answers(model: Model, pixels: np.ndarray) -> tuple[np.ndarray, float]:
    """Return probabilities [N, C], and the CPU seconds that they took."""
    model.probabilities(pixels[:1])
    started = time.process_time()
    return model.probabilities(pixels), time.process_time() - started


def study(data: str, root: Path, shots: int, most: int) -> dict[str, Any]:
    """Fit a probe, and make a line: facts of fp32 and of each way."""
    with tempfile.TemporaryDirectory() as folder:
        run, stage = Path(folder) / "run", Path(folder) / "stage"
        options = ("--method", "linear-probe", "--shots", shots, "--folds", 0, "--quiet")
        words = ("fit", root / data, "--out", run, *options)
        command = [sys.executable, "-m", "rmadapter", *map(str, words)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        saved = load(run, None, device="cpu")
        _stage(stage, saved)
        model = Model(stage, threads=1)
        tests = compared_images(run, saved, None, False, most)
        rows = compare(
            model,
            stage,
            model.pixels(training_images(run)),
            model.pixels(tests.images),
            tests.labels,
        )
    return {
        "data": data, "shots": shots, "method": "linear-probe",
        "backbone": saved.fitted.backbone.name,
        "images": len(tests.images), "rows": rows, "cpu": processor(),
        "versions": versions() | _engines(),
    }  # fmt: skip


def _engines() -> dict[str, str]:
    names = ("onnxruntime", "openvino", "nncf")
    return {name: metadata.version(name) for name in names if importlib.util.find_spec(name)}


def _stage(stage: Path, saved: Saved) -> None:
    stage.mkdir()
    graph.write(graph.trace(saved.fitted, saved.names), stage / GRAPH)
    write_json(stage / LABELS, saved.labels)
    write_json(stage / TRANSFORM, transform_facts(saved.fitted.backbone))


def compare(
    model: Model, stage: Path, training: np.ndarray, test: np.ndarray, labels: Sequence[int]
) -> list[dict[str, Any]]:
    """Return rows of fp32 and of each way, with the one that the search takes marked.

    Args:
        model: The exported model in fp32.
        stage: Its folder.
        training: Pixels [N, 3, H, W] of training images.
        test: Pixels of test images.
        labels: Of the test images.
    """
    (known, _), (wanted, seconds) = timed_answers(model, training), timed_answers(model, test)
    rows, measured = [_row(FP32, stage / GRAPH, wanted, wanted, labels, seconds)], []
    for way in candidates(stage, training):
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(shutil.copytree(stage, Path(folder) / "candidate"))
            (copy / CANDIDATE).replace(copy / GRAPH)
            quantised = Model(copy, threads=1)
        table, spent = timed_answers(quantised, training)
        measured.append((agreement(table, known) if way is not PLAIN else 0.0, spent))
        table, spent = timed_answers(quantised, test)
        rows.append(_row(way.name, stage / CANDIDATE, table, wanted, labels, spent))
    if importlib.util.find_spec("nncf"):
        with tempfile.TemporaryDirectory() as folder:
            other = Path(shutil.copytree(stage, Path(folder) / "openvino"))
            balance_file(other / GRAPH, training)
            graph.write_openvino(other, "int8")
            table, spent = timed_answers(Model(other, threads=1), test)
            rows.append(_row(OTHER, other / graph.WEIGHTS, table, wanted, labels, spent))
    return [{**row, "chosen": place == 1 + best_way(measured)} for place, row in enumerate(rows)]


def _row(
    name: str,
    file: Path,
    table: np.ndarray,
    wanted: np.ndarray,
    labels: Sequence[int],
    seconds: float,
) -> dict[str, Any]:
    return {
        "way": name,
        "MB": round(file.stat().st_size / 1e6, 1),
        "accuracy": round(accuracy(table, labels), 2),
        "same": round(100 * agreement(table, wanted), 2),
        "difference": float(f"{np.abs(table - wanted).mean():.2g}"),
        "rate": round(len(table) / seconds, 1),
    }


def table(lines: Lines) -> str:
    """Make a table of what the search takes for each set, and the means of each way over all
    sets."""
    rows, parts = [], []
    for line in lines:
        plain = line["rows"][0]
        parts += [(row, plain) for row in line["rows"]]
        parts += [({**row, "way": "taken"}, plain) for row in line["rows"] if row["chosen"]]
        chosen = [row for row in line["rows"] if row["chosen"]]
        rows += [_cells(line["data"], line["images"], [(row, plain)]) for row in chosen]
    for name in dict.fromkeys(row["way"] for row, _ in parts):
        pairs = [(row, plain) for row, plain in parts if row["way"] == name]
        rows.append(_cells(f"mean of {len(lines)}", sum(line["images"] for line in lines), pairs))
    return markdown(HEAD, rows, spaced=True)


def _cells(data: str, images: int, pairs: Sequence[tuple[Line, Line]]) -> list[str]:
    def mean(key: str) -> float:
        return fmean(row[key] for row, _ in pairs)

    change = fmean(row["accuracy"] - plain["accuracy"] for row, plain in pairs)
    times = fmean(row["rate"] / plain["rate"] for row, plain in pairs)
    return [
        data, str(images), pairs[0][0]["way"], f"{mean('MB'):.1f}", f"{mean('accuracy'):.1f}",
        f"{change:+.1f}",
        f"{mean('same'):.1f}", f"{mean('difference'):.2g}", f"{mean('rate'):.1f}", f"{times:.2f}",
    ]  # fmt: skip


def main() -> None:
    parser = make_parser(__doc__, seeds=False)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--images", type=int, default=200, help="of the test split, at most")
    args = parser.parse_args()
    lines = read_lines(args.out)
    if args.tables:
        print(table(lines))
        return
    done = {line["data"] for line in lines}
    for data in args.data:
        if data not in done:
            line = study(data, args.root, args.shots, args.images)
            append_lines(args.out, [line])
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
